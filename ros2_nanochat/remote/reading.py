"""Reads the values in the answers of servers, whatever a server puts in their place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ros2_nanochat.remote.failures import ServerError, Unavailable, message_in

_Read = TypeVar('_Read')

MAX_COUNT = (1 << 31) - 1
"""No server counts higher; the fields of messages hold no more."""

_FINISHED = {
    **dict.fromkeys(('stop', 'eos', 'tool_calls', 'function_call'), 'stop'),
    **dict.fromkeys(('eos_token', 'stop_sequence', 'end_turn'), 'stop'),  # of TGI and others
    **dict.fromkeys(('length', 'max_tokens'), 'length'),
}
_REASONING = ('reasoning_content', 'reasoning', 'thinking')
"""Names that servers have for the text of the reasoning: DeepSeek, llama.cpp and SGLang; vLLM, Ollama and
OpenRouter; Ollama's own API and Mistral.
"""
_REASONING_PARTS = ('thinking', 'reasoning')


def read_event(read: Callable[[Any], _Read], data: bytes, address: str) -> _Read:
    """Return what `read` makes of the JSON in an event.

    Raises:
        ServerError: It is not JSON, or reports an error.
    """
    try:
        return read(json.loads(data))
    except ServerError:
        raise
    except (ValueError, RecursionError):
        raise Unavailable(f'{address} sent an event that is not JSON') from None


def count_in(value: Any) -> int | None:
    """Return a number of tokens; None if it is none."""
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def usage_in(data: Any) -> dict[str, Any]:
    """Return the figures of OpenAI's `usage` that are there."""
    if not isinstance(data, Mapping):
        return {}
    details = data.get('prompt_tokens_details')
    found = {
        'prompt_tokens': count_in(data.get('prompt_tokens')),
        'new_tokens': count_in(data.get('completion_tokens')),
        'reused_tokens': count_in(details.get('cached_tokens')) if isinstance(details, Mapping) else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def models_in(listing: Any) -> list[dict]:
    """Return the models in a list of models that have a name. Some servers send the list without the
    enclosing object.
    """
    data = listing.get('data') if isinstance(listing, Mapping) else listing
    entries = data if isinstance(data, list) else []
    return [each for each in entries if isinstance(each, dict) and isinstance(each.get('id'), str)]


def choice_in(event: Any) -> Mapping[str, Any]:
    """Return the first choice of an event; {} if it has none.

    Raises:
        Unavailable: The event is none of a reply, or reports an error.
    """
    if not isinstance(event, Mapping):
        raise Unavailable(f'the server sent {str(event)[:80]!r}, which is no event of a reply')
    if event.get('error') or event.get('object') == 'error':  # the latter from vLLM up to 2025
        raise Unavailable(f'the server broke off: {message_in(event)}', status=200)
    choices = event.get('choices')
    for choice in choices if isinstance(choices, list) else ():
        # Others were not asked for. Some servers write numbers as strings.
        if isinstance(choice, Mapping) and str(choice.get('index') or 0) == '0':
            return choice
    return {}


def finish_in(reason: Any) -> str | None:
    """Return why a reply is complete, `stop` or `length`; None if it is not. Some servers write "" or "null"
    until then.

    Raises:
        Unavailable: The reply ended for another reason, or one that is not known.
    """
    if reason in (None, '', 'null'):
        return None
    known = _FINISHED.get(reason) if isinstance(reason, str) else None
    if known is None:
        raise Unavailable(f'the server ended the reply with {str(reason)[:40]!r}')
    return known


def ids_in(value: Any) -> tuple[int, ...]:
    """Return token ids; none if there are none.

    Raises:
        Unavailable: Something else stands there.
    """
    if not isinstance(value, list):
        return ()
    if not all(count_in(each) is not None for each in value):
        raise Unavailable(f'the server sent {str(value)[:80]!r}, which are no token ids')
    return tuple(value)


def check_ids(text: str, ids: Sequence[int], kept: Sequence[int], vocab_size: int) -> None:
    """Check the ids of a piece of a reply: the next prompt holds those before the end, and must be valid.

    Args:
        text: The text of the piece, if the reply begins with it; else ''.
        ids: Its ids.
        kept: Those before the end.
        vocab_size: Size of the vocabulary.

    Raises:
        Unavailable: A text has no ids, or one is not in the vocabulary.
    """
    if text and not ids:
        raise Unavailable('the server sent text without token ids: set server_input to messages')
    if kept and max(kept) >= vocab_size:
        raise Unavailable(
            f"the server sent token id {max(kept)}, but the tokenizer's highest id is {vocab_size - 1}: set"
            ' tokenizer to the files of its model'
        )


def text_in(value: Any) -> str:
    """Return a text, which some servers send in parts."""
    if isinstance(value, list):
        parts = [part for part in value if isinstance(part, Mapping)]
        texts = [part.get('text') for part in parts if part.get('type') not in _REASONING_PARTS]
        return ''.join(text for text in texts if isinstance(text, str))
    return value if isinstance(value, str) else ''


def reasoning_in(message: Mapping[str, Any]) -> str:
    """Return the text of the reasoning that a server separates from a message."""
    for name in _REASONING:
        if text := text_in(message.get(name)):
            return text
    content = message.get('content')
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    thoughts = [part for part in parts if part.get('type') in _REASONING_PARTS]
    return ''.join(text_in(part.get('thinking') or part.get('text')) for part in thoughts)
