"""Finds the vision encoder of an opened model: a separate checkpoint, the model's own, or its backend's."""

from __future__ import annotations

import os
from pathlib import Path

from ros2_nanochat.backends.base import Backend
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError
from ros2_nanochat.locate import NO_VISION, is_mmproj
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.vision.backend_encoder import BackendEncoder
from ros2_nanochat.vision.encoder import TINY, VisionEncoder, read_config
from ros2_nanochat.vision.llava import FAMILIES, LlavaEncoder
from ros2_nanochat.vision.onepiece import OnePieceEncoder


def open_vision(
    path: str | None, info: ModelInfo, backend: Backend, config: ModelConfig
) -> VisionEncoder | None:
    """Find the vision encoder of an opened model.

    Args:
        path: A LLaVA-form checkpoint (a folder), `tiny` for the one in this
            package, `none`, or None for what the model itself contains. The gguf backend has opened an mmproj
            file already.
        info: The model.
        backend: Its backend.
        config: How it was opened.

    Returns:
        The encoder, None if the model has none.

    Raises:
        BackendError: The encoder cannot be loaded or does not fit the model.
    """
    if path == NO_VISION:
        return None
    embedder = backend.image_embedder
    if embedder is not None and (not path or info.api == 'gguf'):  # over gguf, that of the path
        return BackendEncoder(embedder)
    if path and is_mmproj(os.path.expanduser(path)):
        raise BackendError(f'vision={path!r} is a file of llama.cpp: only models over api=gguf can use it')
    if path:
        folder = TINY if path == 'tiny' else Path(path).expanduser()
        encoder = LlavaEncoder(folder, info, config)
        encoder.load()
        return encoder
    kind = read_config(info.path).get('model_type') if os.path.isdir(info.path) else None
    if part := backend.vision_part:
        if kind in FAMILIES:
            return LlavaEncoder(Path(info.path), info, config, part)
        return OnePieceEncoder(part, info)
    if info.takes_embeddings and kind in FAMILIES:
        encoder = LlavaEncoder(Path(info.path), info, config)
        encoder.load()
        return encoder
    return None
