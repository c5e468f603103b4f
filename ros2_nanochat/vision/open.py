"""Finds what encodes pictures for an opened model: an encoder beside it, its own, or its backend's."""

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
    """Find what encodes pictures for an opened model; None where nothing does.

    path: a LLaVA-form checkpoint, a folder or `owner/name` of the hub, `tiny` for the one that comes with the
    package, or None: what the model's own checkpoint holds, and for the embedded default model the tiny one,
    if torch and transformers are there.
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
