"""The messages of a conversation as a list that can be indexed and cut. Knows no template and no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ros2_nanochat.chat.message import ChatMessage, check_role


def is_continued(messages: Sequence[ChatMessage]) -> bool:
    """Whether the last message is the beginning of a reply, not sampled by the model, possibly empty."""
    last = messages[-1] if messages else None
    unsampled = last is not None and last.role == 'bot' and last.tokens is None
    return last is not None and unsampled and last.image is None and not last.calls


class MessageList:
    """A list of messages.

    Attributes:
        messages: The messages in order. You may replace the whole list.
    """

    messages: list[ChatMessage]

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[ChatMessage]:
        return iter(self.messages)

    def __getitem__(self, key: int | slice) -> ChatMessage | list[ChatMessage]:
        return self.messages[key]

    def __delitem__(self, key: int | slice | ChatMessage) -> None:
        """Remove messages: `del history[-2]`, `del history[1:]`, `del history[message]`."""
        if isinstance(key, ChatMessage):
            at = next((i for i, message in enumerate(self.messages) if message is key), None)
            if at is None:
                raise ValueError('this message is not in the history')
            key = at
        del self.messages[key]

    def pop(self, count: int = 1) -> list[ChatMessage]:
        """Remove the last `count` messages and return them.

        Raises:
            ValueError: There are fewer messages.
        """
        if not 0 <= count <= len(self.messages):
            raise ValueError(f'pop({count}): the history has {len(self.messages)} messages')
        kept = len(self.messages) - count
        removed = self.messages[kept:]
        del self.messages[kept:]
        return removed

    def remove(self, start: int, stop: int | None = None) -> list[ChatMessage]:
        """Remove the messages from `start` to `stop`, exclusive, and return them.

        Both may be negative and then count from the end. A `stop` of 0 means the end: `remove(-2, 0)` removes
        the last two messages.

        Args:
            start: The first message to remove.
            stop: The message after the last one; None removes one message.

        Raises:
            ValueError: The range is not within the history.
        """
        count = len(self.messages)
        first = start + count if start < 0 else start
        last = first + 1 if stop is None else stop + count if stop <= 0 else stop
        if not 0 <= first <= last <= count or (first == count and count):
            raise ValueError(f'remove({start}, {stop}): the history has {count} messages')
        removed = self.messages[first:last]
        del self.messages[first:last]
        return removed

    def turn(self, role: str = 'user') -> bool:
        """Whether it is this role's turn to speak."""
        role = check_role(role)
        last = self.messages[-1] if self.messages else None
        if role == 'system':
            return last is None
        asked = last is not None and (last.role == 'tool' or (last.role == 'user' and last.type == 'text'))
        return (
            asked
            if role == 'bot'
            else last is not None and last.role == 'bot'
            if role == 'tool'
            else not asked
        )

    def to_list(self) -> list[dict]:
        """Return the messages as dicts with `role`, and those of `text`, `image`, `reasoning`, `calls`,
        `call_id` and `name` that are present.
        """
        return [
            {
                'role': message.role,
                **({'image': message.image} if message.image is not None else {}),
                **({'text': message.text} if message.text is not None else {}),
                **({'reasoning': message.reasoning} if message.reasoning else {}),
                **({'calls': [call.as_dict() for call in message.calls]} if message.calls else {}),
                **({'call_id': message.call_id} if message.call_id else {}),
                **({'name': message.name} if message.name else {}),
            }
            for message in self.messages
        ]
