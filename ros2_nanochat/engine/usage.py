"""What one reply took: the same object from the engine to whoever reports it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """Tokens and times of one reply. A value is also there under its name: `usage['new_tokens']`."""

    prompt_tokens: int = 0
    """Entries of the whole prompt."""
    reused_tokens: int = 0
    """Of those, what was not computed again."""
    shared_tokens: int = 0
    """Of those, what was taken from another conversation."""
    image_tokens: int = 0
    """Of the prompt, what stands for images or was given as embeddings."""
    reused_image_tokens: int = 0
    """Of the reused ones, what stands for images or was given as embeddings."""
    new_tokens: int = 0
    """Ids that the model produced."""
    queue_time: float | None = None
    """Seconds until the model began with it; None if it has not."""
    time_to_first_token: float | None = None
    """Seconds until the first id; None if there is none."""
    tokens_per_second: float | None = None
    """Speed of decoding; None before the second id."""

    def __getitem__(self, name: str) -> int | float | None:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def keys(self) -> list[str]:
        """Names of the values, so that `dict(usage)` works."""
        return [field.name for field in dataclasses.fields(self)]
