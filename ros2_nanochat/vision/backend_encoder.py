"""The vision encoder of models whose backend embeds pictures itself, as MLC-LLM model libraries with
`image_embed` do.
"""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from ros2_nanochat.backends.base import Backend
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.vision.encoder import VisionEncoder


class BackendEncoder(VisionEncoder):
    """Encodes pictures with `Backend.embed_image`, which resizes them for its model.

    Args:
        backend: The backend of the model.
        info: The model.
    """

    image_token = '<image>'

    def __init__(self, backend: Backend, info: ModelInfo):
        super().__init__()
        self._backend: Backend | None = backend
        self.fingerprint = hashlib.blake2b(info.path.encode(), digest_size=16).digest()

    def _load(self) -> None:
        """Nothing to do: the backend has loaded the encoder."""

    def _encode(self, picture: Image.Image, digest: bytes) -> list:
        assert self._backend is not None  # `encode` does not get here after `close`
        return [self._span(self._backend.embed_image(np.asarray(picture, np.uint8)), digest)]

    def _unload(self) -> None:
        self._backend = None
