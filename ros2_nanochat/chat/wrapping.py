"""Chooses which messages stay when the context is full."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.chat.model import ChatModel
from ros2_nanochat.prompt import surely_longer


def refuse_too_long(model: ChatModel, messages: Sequence[ChatMessage], limit: int) -> None:
    """Raise a ValueError if a message that has to stay cannot fit, before all of it is tokenized.

    Args:
        model: The model whose tokenizer counts.
        messages: The conversation; its system prompt and its last message have to stay.
        limit: Tokens that the conversation may use.
    """
    system = [message for message in messages[:1] if message.role == 'system']
    for message in [*system, *messages[-1:]]:
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
    """Return as many of the latest messages as fit, beginning with a message of the user.

    Args:
        length: Counts the tokens of messages in a prompt.
        system: The system prompt, which counts too.
        messages: The other messages.
        wrap_tokens: Tokens that the result and the system prompt may use.
        at_least_one: Return the last turn even if it does not fit.
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
