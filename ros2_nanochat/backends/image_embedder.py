"""What a backend that embeds pictures itself gives to `vision/`: the pieces that represent one picture in a
prompt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class ImagePiece:
    """Markup around or inside a picture, or rows of embeddings.

    Attributes:
        ids: The ids of markup; empty for rows.
        rows: [k, d] float32; None for markup.
        positions, advance, bidirectional, deepstack: See `prompt.EmbeddingSpan`.
    """

    ids: Sequence[int] = ()
    rows: np.ndarray | None = None
    positions: np.ndarray | None = None
    advance: int | None = None
    bidirectional: bool = False
    deepstack: np.ndarray | None = None


class ImageEmbedder(ABC):
    """Embeds pictures for the model of one backend. Thread-safe.

    Attributes:
        identity: What distinguishes its rows from those of any other embedder.
    """

    identity: str

    @property
    def markup(self) -> tuple[str, str]:
        """The markup that `embed` puts before and after a picture, as text. A template must not write it as
        well.
        """
        return '', ''

    def load(self) -> None:  # noqa: B027 (most are loaded with the model)
        """Load it now instead of at the first picture."""

    @abstractmethod
    def embed(self, pixels: np.ndarray, stopped: Callable[[], bool] | None = None) -> list[ImagePiece]:
        """Return what represents a picture in a prompt.

        Args:
            pixels: [h, w, 3] uint8, RGB.
            stopped: Asked now and then whether to stop.

        Raises:
            BackendError: It cannot be embedded.
            EncodingStopped: `stopped()` became true.
        """
