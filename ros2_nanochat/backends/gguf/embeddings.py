"""Token embeddings, read from a GGUF file."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ros2_nanochat.backends.gguf.header import parts_of, read_head
from ros2_nanochat.errors import BackendError, require

_NAME = 'token_embd.weight'


class EmbeddingTable:
    """The embeddings of one model. Thread-safe.

    Args:
        path: The file, or the first of several.
        architecture: `general.architecture`.
    """

    def __init__(self, path: str, architecture: str):
        self._path = path
        # Gemma scales embeddings of tokens inside its graph, but not embeddings that are passed in
        self._is_scaled = architecture.startswith('gemma')
        self._lock = threading.Lock()
        self._tensor: Any = None  # a tensor of the package gguf

    def rows(self, ids: Sequence[int], width: int) -> np.ndarray:
        """Return the embeddings [n, width] float32 of ids.

        Raises:
            BackendError: The file does not contain them.
        """
        gguf = require('gguf', 'gguf')
        with self._lock:
            if self._tensor is None:
                self._tensor = self._find(gguf)
            table = self._tensor
        if not len(ids):
            return np.empty((0, width), np.float32)
        rows = gguf.quants.dequantize(
            table.data[np.asarray(ids, dtype=np.int64).reshape(-1)], table.tensor_type
        ).astype(np.float32)
        return rows * np.float32(math.sqrt(rows.shape[-1])) if self._is_scaled else rows

    def _find(self, gguf):
        for part in parts_of(self._path):  # the first part of a split model may hold no tensors
            if _NAME in read_head(part).tensors:
                return next(tensor for tensor in gguf.GGUFReader(part).tensors if tensor.name == _NAME)
        raise BackendError(f'{self._path} does not hold the embeddings of tokens: pass ids')

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._tensor = None
