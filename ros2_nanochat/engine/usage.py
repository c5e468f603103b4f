"""The tokens and times of one reply: one object from the engine to whatever reports it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """Tokens and times of one reply. Values are also accessible by name: `usage['new_tokens']`."""

    prompt_tokens: int = 0
    """Number of entries in the whole prompt."""
    reused_tokens: int | None = 0
    """How many of those were not recomputed; None if a server did not report it."""
    shared_tokens: int = 0
    """How many of those came from another conversation."""
    image_tokens: int = 0
    """How many entries of the prompt are images or other embeddings."""
    reused_image_tokens: int = 0
    """How many of the reused entries are images or other embeddings."""
    new_tokens: int = 0
    """Number of ids that the model produced."""
    queue_time: float | None = None
    """Seconds until the model started on it; None if it has not."""
    time_to_first_token: float | None = None
    """Seconds until the first id; None if there is none yet."""
    model_time: float = 0.0
    """Seconds of the model's time: its share of each step, by its entries in the batch."""
    tokens_per_second: float | None = None
    """Decoding speed; None before the second id."""

    def __getitem__(self, name: str) -> int | float | None:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> list[str]:
        """Return the names of the values, so that `dict(usage)` works."""
        return [field.name for field in dataclasses.fields(self)]
