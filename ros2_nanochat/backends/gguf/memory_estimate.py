"""Estimates the memory of a GGUF model and its vision part, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ros2_nanochat.backends.gguf.devices import gpu_memory
from ros2_nanochat.backends.gguf.header import architecture_memory, attention_heads
from ros2_nanochat.backends.gguf.mmproj import find_mmproj, mmproj_memory
from ros2_nanochat.config import DEFAULT_CONTEXT, FlashAttention, ModelConfig
from ros2_nanochat.memory import MemoryEstimate


def estimate_memory(
    path: str,
    weights: int,
    metadata: dict[str, Any],
    config: ModelConfig,
    batch: int,
    load: Callable[[], Any],
) -> MemoryEstimate:
    """Estimate the memory of a model and its vision part from their headers.

    Args:
        path: The GGUF file.
        weights: Bytes of the weights.
        metadata: The file's metadata.
        config: The options of the model, with `flash_attention` on or off.
        batch: Entries of the largest batch.
        load: Imports the package `llama_cpp`.
    """
    kv_per_token, overhead, context = architecture_memory(metadata, batch)
    if config.flash_attention is FlashAttention.OFF:
        length = min(config.max_context_len or DEFAULT_CONTEXT, context or DEFAULT_CONTEXT)
        overhead += 4 * batch * length * attention_heads(metadata)
    vision = find_mmproj(path, config)
    if vision is not None:
        of_vision = mmproj_memory(vision, config)
        weights, overhead = weights + of_vision[0], overhead + of_vision[1]
    return MemoryEstimate(
        weights=weights,
        kv_per_token=kv_per_token,
        overhead=overhead,
        available=gpu_memory(load) if _all_on_gpu(config, metadata) else None,
        context_length=context,
        decided={'flash_attention': config.flash_attention},
    )


def _all_on_gpu(config: ModelConfig, metadata: dict[str, Any]) -> bool:
    """Whether every layer, the output's too, goes to the GPU, and with them the KV cache."""
    layers = metadata.get(f'{metadata.get("general.architecture", "")}.block_count', 0)
    return config.gpu_layers < 0 or config.gpu_layers > layers
