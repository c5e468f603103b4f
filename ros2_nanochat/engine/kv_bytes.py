"""The keys and values of one conversation as bytes that outlive the process.

They include the entries, the model that computed them, and a digest over all, so that damaged or foreign data
is recognized. Nothing in them is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np

from ros2_nanochat.engine.sequence import Parked
from ros2_nanochat.model_info import ModelInfo

_MAGIC = b'nanochat-kv 1\n'
_DIGEST = 16  # bytes, of the content and of the model each


def pack(kv: Parked, info: ModelInfo) -> bytes:
    """Return the bytes of a conversation: magic, digest of what follows, digest of the model, the number of
    entries (8 bytes), the entries (int64), what `Backend.save` gave; little-endian.
    """
    content = b''.join(
        [
            _model_digest(info),
            len(kv.entries).to_bytes(8, 'little'),
            kv.entries.astype('<i8').tobytes(),
            kv.data,
        ]
    )
    return _MAGIC + _digest(content) + content


def unpack(data: bytes, info: ModelInfo) -> Parked:
    """Return what `pack` was given.

    Raises:
        ValueError: The bytes are damaged, or from another model.
    """
    content = memoryview(data)[len(_MAGIC) + _DIGEST :]
    if data[: len(_MAGIC)] != _MAGIC or _digest(content) != data[len(_MAGIC) : len(_MAGIC) + _DIGEST]:
        raise ValueError(f'these {len(data)} bytes are no saved KV cache, or a damaged one')
    if content[:_DIGEST] != _model_digest(info):
        raise ValueError(
            f'the KV cache was saved with another model than {info.name}, or another state of its files'
        )
    start = _DIGEST + 8
    count = int.from_bytes(content[_DIGEST:start], 'little')
    return Parked(
        bytes(content[start + 8 * count :]), np.frombuffer(content, '<i8', count, start).astype(np.int64)
    )


def _model_digest(info: ModelInfo) -> bytes:
    """Identifies the opened model by its facts, and the size and time of its files."""
    facts = [
        info.api,
        info.name,
        info.architecture,
        info.quantization,
        info.weights_bytes,
        info.vocab_size,
        info.kv_bytes_per_token,
    ]
    if os.path.isdir(info.path):
        paths = sorted(entry.path for entry in os.scandir(info.path) if entry.is_file())
    else:
        paths = [info.path] if os.path.isfile(info.path) else []
    stats = [(os.path.basename(path), os.stat(path)) for path in paths]
    return _digest(repr([facts, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]).encode())


def _digest(data) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
