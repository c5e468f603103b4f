"""Positions of entries in their sequences, and the lists of a model's layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.positions import Positions


def layer_lists(model) -> list:
    """Return the language model's list of layers: the longest list that is not part of another."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return [max(lists, key=len)] if lists else []


def join_positions(chunks: Sequence[tuple[Positions, Chunk]]) -> torch.Tensor:
    """Return the position ids of all chunks in one row: [1, n], or [axes, 1, n] if a chunk has positions on
    several axes.
    """
    runs = []
    for sequence, chunk in chunks:
        relative = np.arange(len(chunk)) if chunk.positions is None else np.asarray(chunk.positions)
        runs.append(sequence.next + relative.astype(np.int64))
    axes = max((run.shape[0] for run in runs if run.ndim == 2), default=0)
    if not axes:
        return torch.as_tensor(np.concatenate(runs))[None]
    return torch.as_tensor(
        np.concatenate([np.broadcast_to(run, (axes, run.shape[-1])) for run in runs], axis=1)
    )[:, None]


def commit(sequence: Positions, chunk: Chunk) -> None:
    """Record that a chunk was appended to its sequence."""
    sequence.append(len(chunk), chunk.advance, whole=chunk.bidirectional or chunk.positions is not None)
