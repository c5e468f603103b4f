"""What of a conversation stays when the context is full."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.chat.model import ChatModel
from ros2_nanochat.prompt import surely_longer


def refuse_too_long(model: ChatModel, messages: Sequence[ChatMessage], limit: int) -> None:
    """Raise a ValueError for a message that has to stay and cannot fit, before all of it is tokenized."""
    for message in [*messages[:1], *messages[-1:]]:
        if message.text and surely_longer(model.tokenize, message.text, limit):
            raise ValueError(
                f'a message of {len(message.text)} characters has more than {limit} tokens, and'
                f' no more fit '
                f'(a context of {model.info.context_length}): shorten it, or raise max_context_len'
            )


def latest_turns(
    length: Callable[[Sequence[ChatMessage]], int],
    system: list[ChatMessage],
    messages: list[ChatMessage],
    wrap_tokens: int,
    at_least_one: bool = True,
) -> list[ChatMessage]:
    """The longest end of the messages that begins with the user and fits, behind the system prompt, into
    `wrap_tokens`. length: tokens that messages take in a prompt.
    """
    starts = [
        i
        for i, message in enumerate(messages)
        if message.role == 'user' and (i == 0 or messages[i - 1].role != 'user')
    ]
    low, high = 0, len(starts)
    while low < high:
        middle = (low + high) // 2
        if length([*system, *messages[starts[middle] :]]) <= wrap_tokens:
            high = middle
        else:
            low = middle + 1
    if low == len(starts) and (not at_least_one or not starts):
        return messages if at_least_one else []
    return messages[starts[min(low, len(starts) - 1)] :]
