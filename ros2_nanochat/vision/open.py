"""Finds the vision encoder of an opened model: a separate checkpoint, the model's own, or its backend's."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path

from ros2_nanochat.backends.base import Backend
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.hub import download, hub_name
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
        path: A LLaVA-form checkpoint (a folder or `owner/name` on Hugging Face), `tiny` for the one in this
            package, or None for what the model's own checkpoint contains. For the embedded default model,
            None means the tiny one, if torch and transformers are installed.
        info: The model.
        backend: Its backend.
        config: How it was opened.

    Returns:
        The encoder, None if the model has none.

    Raises:
        BackendError: The encoder cannot be loaded or does not fit the model.
    """
    if path:
        folder = TINY if path == 'tiny' else Path(path).expanduser()
        if not folder.exists() and hub_name(path):
            folder = Path(download(dataclasses.replace(config, model=path, api=None)))
        encoder = LlavaEncoder(folder, info, config)
        encoder.load()
        return encoder
    kind = read_config(info.path).get('model_type') if os.path.isdir(info.path) else None
    if backend.embeds_images:
        return BackendEncoder(backend, info)
    if part := backend.vision_part:
        if kind in FAMILIES:
            return LlavaEncoder(Path(info.path), info, config, part)
        return OnePieceEncoder(part, info)
    if info.takes_embeddings and kind in FAMILIES:
        encoder = LlavaEncoder(Path(info.path), info, config)
        encoder.load()
        return encoder
    if (
        config.model is None
        and info.api == 'gguf'
        and TINY.is_dir()
        and all(importlib.util.find_spec(name) for name in ('torch', 'transformers'))
    ):
        return LlavaEncoder(TINY, info, config)
    return None
