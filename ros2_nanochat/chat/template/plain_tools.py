"""Tools for templates that know none: a text in the system prompt, and calls as JSON between tags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ros2_nanochat.answer.call_format import CallFormat, Slot
from ros2_nanochat.answer.json_arguments import JsonArguments
from ros2_nanochat.answer.tool import Tool
from ros2_nanochat.chat.message import ChatMessage

_BEFORE = 'You can call these tools:'
_AFTER = (
    'To call a tool, answer only with its name and arguments:\n'
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
)

PLAIN_CALLS = CallFormat(
    '<tool_call>',
    ('<tool_call>\n{"name": "', Slot.NAME, '", "arguments": ', Slot.ARGUMENTS),
    '}\n</tool_call>',
    JsonArguments(),
    ('}\n</tool_call>\n<tool_call>\n{"name": "',),
)
"""How calls are written if the template does not say: in the form that many models were trained on."""


def describe(tools: Sequence[Tool]) -> str:
    """Return what the system prompt says about tools, '' if there are none."""
    if not tools:
        return ''
    lines = [json.dumps(tool.as_openai()['function'], ensure_ascii=False) for tool in tools]
    return '\n'.join([_BEFORE, *lines, _AFTER])


def write_out(messages: Sequence[ChatMessage], tools: Sequence[Tool], takes_tool: bool) -> list[ChatMessage]:
    """Return messages without tools, calls and answers: as texts that say the same.

    Args:
        messages: The conversation.
        tools: What may be called.
        takes_tool: Whether the template has a place for messages of the role `tool`.
    """
    written = [_written(message, takes_tool) for message in messages]
    described = describe(tools)
    if described:
        first = written[0] if written and written[0].role == 'system' else None
        text = f'{first.text}\n\n{described}' if first is not None and first.text else described
        written = [ChatMessage('system', text=text), *written[int(first is not None) :]]
    return written


def _written(message: ChatMessage, takes_tool: bool) -> ChatMessage:
    if message.calls:
        text = '\n'.join(part for part in (message.text, PLAIN_CALLS.write(message.calls)) if part)
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
