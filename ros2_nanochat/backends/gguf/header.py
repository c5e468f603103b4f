"""Reads the head of a GGUF file: enough to know a model's shape and memory before it is loaded.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. (The `gguf` package reads whole files, but
takes a second for a vocabulary.)
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from typing import Any

from ros2_nanochat.errors import BackendError

_SCALARS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd'}
_STRING, _ARRAY = 8, 9
_LONGEST_ARRAY_KEPT = 4096  # vocabularies are passed over
_F16 = 2


def check_gguf(path: str) -> int:
    """Raise a BackendError where `path` is no GGUF file; return the bytes of the file, or of all files of a
    split model.
    """
    if not os.path.exists(path):
        raise BackendError(f'{path} does not exist')
    if os.path.isdir(path):
        raise BackendError(f'{path} is a folder; name the .gguf file in it')
    try:
        with open(path, 'rb') as file:
            head = file.read(8)
    except OSError as error:
        raise BackendError(f'{path} cannot be read: {error.strerror}') from error
    if head[:4] != b'GGUF' or len(head) < 8:
        raise BackendError(
            f'{path} is not a GGUF file: it starts with {head[:4]!r}, a GGUF file with {b"GGUF"!r}'
        )
    return sum(os.path.getsize(part) for part in _parts(path))


def _parts(path: str) -> list[str]:
    split = re.fullmatch(r'(.*)-(\d{5})-of-(\d{5})\.gguf', path)
    if not split:
        return [path]
    parts = [f'{split[1]}-{i:05d}-of-{split[3]}.gguf' for i in range(1, int(split[3]) + 1)]
    missing = [part for part in parts if not os.path.exists(part)]
    if missing:
        raise BackendError(
            f'{path} is one part of {len(parts)}, and {os.path.basename(missing[0])} does not lie beside it'
        )
    if split[2] != '00001':
        raise BackendError(f'{path} is not the first part of its model; name {os.path.basename(parts[0])}')
    return parts


def read_metadata(path: str) -> dict[str, Any]:
    """Key-value pairs of a GGUF file; arrays of strings, and long ones, are left out. Raises a BackendError
    where the head is cut short.
    """
    try:
        with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            version, _, pairs = struct.unpack_from('<IQQ', data, 4)
            if version not in (2, 3):
                raise BackendError(f'{path} is GGUF version {version}; versions 2 and 3 can be read')
            metadata, at = {}, 24
            for _ in range(pairs):
                key, at = _string(data, at)
                (kind,) = struct.unpack_from('<I', data, at)
                value, at = _value(data, at + 4, kind)
                if value is not None:
                    metadata[key] = value
            return metadata
    except (
        struct.error,
        IndexError,
        KeyError,
        ValueError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        raise BackendError(
            f'{path} is damaged or cut short ({os.path.getsize(path)} bytes): its head cannot be read;'
            ' download it again'
        ) from error


def _string(data, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from('<Q', data, at)
    end = at + 8 + length
    if end > len(data):
        raise ValueError('string behind the end')
    return data[at + 8 : end].decode('utf-8'), end


def _value(data, at: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _string(data, at)
    if kind != _ARRAY:
        code = '<' + _SCALARS[kind]
        return struct.unpack_from(code, data, at)[0], at + struct.calcsize(code)
    kind, count = struct.unpack_from('<IQ', data, at)
    at += 12
    if kind in _SCALARS:
        code = f'<{count}{_SCALARS[kind]}'
        end = at + struct.calcsize(code)
        if end > len(data):
            raise ValueError('array behind the end')
        return (list(struct.unpack_from(code, data, at)) if count <= _LONGEST_ARRAY_KEPT else None), end
    if kind == _STRING:
        length_of = struct.Struct('<Q').unpack_from
        for _ in range(count):
            at += 8 + length_of(data, at)[0]
        return None, at
    for _ in range(count):
        _, at = _value(data, at, kind)
    return None, at


def architecture_memory(metadata: dict[str, Any], batch: int) -> tuple[int, int, int]:
    """`(bytes of KV per token at 16 bit, bytes of compute buffers, trained context in tokens)` of a model
    with this metadata.
    """
    try:
        return _architecture_memory(metadata, batch)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BackendError(
            f'the head of the GGUF file is damaged, its figures make no sense ({ascii(str(error))[:100]}):'
            ' download it again'
        ) from error


def attention_heads(metadata: dict[str, Any]) -> int:
    """Heads of a layer, of the one that has most."""
    heads = metadata.get(f'{metadata.get("general.architecture", "")}.attention.head_count', 1)
    return max(heads) if isinstance(heads, list) else heads


def _architecture_memory(metadata: dict[str, Any], batch: int) -> tuple[int, int, int]:
    prefix = metadata.get('general.architecture', '')

    def get(name: str, default: Any) -> Any:
        value = metadata.get(f'{prefix}.{name}', default)
        if any(
            not isinstance(number, int) or number < 0
            for number in (value if isinstance(value, list) else [value])
        ):
            raise ValueError(f'{prefix}.{name} is {value!r}')
        return value

    layers, width, heads = get('block_count', 0), get('embedding_length', 0), get('attention.head_count', 1)
    most_heads = attention_heads(metadata)
    kv_heads = get('attention.head_count_kv', heads)
    kv_heads = sum(kv_heads) if isinstance(kv_heads, list) else kv_heads * layers
    head_width = width // max(1, most_heads)
    row = get('attention.key_length', head_width) + get('attention.value_length', head_width)
    feed_forward = get('feed_forward_length', 4 * width)
    feed_forward = max(feed_forward) if isinstance(feed_forward, list) else feed_forward
    vocabulary = get('vocab_size', 0) or 128_000
    overhead = 4 * (64 * vocabulary + batch * (2 * feed_forward + 12 * width)) + (32 << 20)
    return kv_heads * row * _F16, overhead, get('context_length', 0)
