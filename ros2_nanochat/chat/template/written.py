"""Stands in a rendering for a reply that keeps the ids that the model sampled."""

from __future__ import annotations

from dataclasses import dataclass

from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.chat.model import ChatModel


@dataclass(frozen=True, eq=False)
class Written:
    """A reply of the model that keeps its sampled ids.

    Attributes:
        message: The message.
        whole: All sampled ids go into the prompt, not only those of the answer.
    """

    message: ChatMessage
    whole: bool

    def ids(self, model: ChatModel) -> tuple[int, ...]:
        """Return the ids that go in. White space between reasoning and answer belongs to the reasoning."""
        ids = self.message.tokens or ()
        if self.whole:
            return ids
        start = self.message.num_reasoning
        while start < len(ids) and not model.detokenize([ids[start]]).strip():
            start += 1
        return ids[start:]
