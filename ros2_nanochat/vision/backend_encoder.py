"""The vision encoder of models whose backend embeds pictures itself: GGUF models with libmtmd, and MLC-LLM
model libraries with `image_embed`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from ros2_nanochat.backends.image_embedder import ImageEmbedder
from ros2_nanochat.errors import BackendError
from ros2_nanochat.vision.encoder import VisionEncoder


class BackendEncoder(VisionEncoder):
    """Encodes pictures with the image embedder of a backend, which resizes them for its model."""

    image_token = '<image>'

    def __init__(self, embedder: ImageEmbedder):
        super().__init__()
        self._embedder: ImageEmbedder | None = embedder
        self.fingerprint = hashlib.blake2b(embedder.identity.encode(), digest_size=16).digest()

    @property
    def image_markup(self) -> tuple[str, str]:  # type: ignore[override]
        return self._opened.markup

    def _load(self) -> None:
        self._opened.load()

    def _encode(self, picture: Image.Image, digest: bytes, stopped: Callable[[], bool] | None) -> list:
        parts: list = []
        for piece in self._opened.embed(np.asarray(picture, np.uint8), stopped):
            if piece.rows is None:
                parts.append(tuple(piece.ids))
                continue
            parts.append(
                self._span(
                    piece.rows,
                    digest,
                    len(parts),
                    positions=piece.positions,
                    advance=piece.advance,
                    bidirectional=piece.bidirectional,
                    deepstack=piece.deepstack,
                )
            )
        return parts

    @property
    def _opened(self) -> ImageEmbedder:
        if self._embedder is None:
            raise BackendError('the model is closed')
        return self._embedder

    def _unload(self) -> None:
        self._embedder = None
