"""Tools for templates that know none: a text in the system prompt, and calls as JSON between tags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ros2_nanochat.answer.call_format import CallFormat, Slot
from ros2_nanochat.answer.json_arguments import JsonArguments
from ros2_nanochat.answer.tool import Tool
from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.chat.message import ChatMessage

_BEFORE = 'You can call these tools:'
_AFTER = 'To call a tool, answer only with its name and arguments:'


def tagged_calls(opening: str, closing: str) -> CallFormat:
    """Return the form of calls as JSON between two tags, or behind one as a list."""
    name, arguments = '{"name": "', '", "arguments": '
    if not closing:
        call = (f'{opening}[{name}', Slot.NAME, arguments, Slot.ARGUMENTS)
        return CallFormat(opening, call, '}]', JsonArguments(), (f'}}, {name}',))
    call = (f'{opening}\n{name}', Slot.NAME, arguments, Slot.ARGUMENTS)
    end = f'}}\n{closing}'
    return CallFormat(opening, call, end, JsonArguments(), (f'{end}\n{opening}\n{name}',))


PLAIN_CALLS = tagged_calls('<tool_call>', '</tool_call>')
"""How calls are written if the template does not say: in the form that many models were trained on."""


def describe(tools: Sequence[Tool], call_format: CallFormat) -> str:
    """Return what the system prompt says about tools, '' if there are none."""
    if not tools:
        return ''
    lines = [json.dumps(tool.as_openai()['function'], ensure_ascii=False) for tool in tools]
    example = call_format.write([WrittenCall('...', {}, '...')]).replace('{}', '{...}')
    return '\n'.join([_BEFORE, *lines, _AFTER, example])


def with_tools_described(
    messages: Sequence[ChatMessage], tools: Sequence[Tool], call_format: CallFormat
) -> list[ChatMessage]:
    """Return messages whose system prompt describes the tools, and how to call them."""
    described = describe(tools, call_format)
    if not described:
        return list(messages)
    first = messages[0] if messages and messages[0].role == 'system' else None
    text = f'{first.text}\n\n{described}' if first is not None and first.text else described
    return [ChatMessage('system', text=text), *messages[int(first is not None) :]]


def write_out(
    messages: Sequence[ChatMessage], call_format: CallFormat, takes_tool: bool
) -> list[ChatMessage]:
    """Return messages without calls and answers: as texts that say the same.

    Args:
        messages: The conversation.
        call_format: How calls are written.
        takes_tool: Whether the template has a place for messages of the role `tool`.
    """
    return [_written(message, call_format, takes_tool) for message in messages]


def _written(message: ChatMessage, call_format: CallFormat, takes_tool: bool) -> ChatMessage:
    if message.calls:
        text = '\n'.join(part for part in (message.text, call_format.write(message.calls)) if part)
        return _copy(message, text)
    if message.role == 'tool' and message.call_id and not takes_tool:
        return ChatMessage('user', text=f'<tool_response>\n{message.text}\n</tool_response>')
    return message


def _copy(message: ChatMessage, text: str) -> ChatMessage:
    arguments: dict[str, Any] = {
        'tokens': message.tokens,
        'reasoning': message.reasoning,
        'num_reasoning': message.num_reasoning,
    }
    return ChatMessage(message.role, text=text, **arguments)
