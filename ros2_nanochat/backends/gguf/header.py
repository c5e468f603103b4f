"""Reads the header of a GGUF file: enough to know a model's shape and memory before it is loaded.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. (The `gguf` package also parses
vocabularies, which takes a second.)
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ros2_nanochat.errors import BackendError, printable

_SCALARS = {0: 'B', 1: 'b', 2: 'H', 3: 'h', 4: 'I', 5: 'i', 6: 'f', 7: '?', 10: 'Q', 11: 'q', 12: 'd'}
_STRING, _ARRAY = 8, 9
_LONGEST_ARRAY_KEPT = 4096  # vocabularies are skipped
_F16 = 2
_BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    30: (1, 2),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    20: (32, 18),
    39: (32, 17),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    34: (256, 54),
    35: (256, 66),
}
"""Values and bytes of a block, by the number of the tensor's type (ggml.h, `enum ggml_type`)."""


def check_gguf(path: str) -> int:
    """Check that `path` is a GGUF file; return its bytes, or those of all files of a split model.

    Raises:
        BackendError: It is not one, or a part is missing.
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
    if head[:4] == b'GGUF' and len(head) < 8:
        raise BackendError(
            f'{path} is not a GGUF file: it is cut short ({len(head)} bytes); download it again'
        )
    if head[:4] != b'GGUF':
        raise BackendError(
            f'{path} is not a GGUF file: it starts with {head[:4]!r}, a GGUF file with {b"GGUF"!r}'
        )
    return sum(os.path.getsize(part) for part in parts_of(path))


def parts_of(path: str) -> list[str]:
    """Return the files of a model in order: one, or those of a split model."""
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


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is: its first byte and its end in the file. The end is None for an unknown type."""

    start: int
    end: int | None


@dataclass(frozen=True)
class Head:
    """The header of a file: its metadata (see `read_metadata`), and its tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read_metadata(path: str) -> dict[str, Any]:
    """Return the key-value pairs of a GGUF file, without long arrays and arrays of strings.

    Bytes that are not UTF-8 are replaced.

    Raises:
        BackendError: The header is cut short.
    """
    return _read(path, lambda data: _pairs(data)[0])


def read_head(path: str) -> Head:
    """Return the key-value pairs of a GGUF file and where its tensors are.

    Raises:
        BackendError: The file is cut short.
    """
    return _read(path, lambda data: _head(path, data))


Result = TypeVar('Result')


def _read(path: str, parse: Callable[[mmap.mmap], Result]) -> Result:
    try:
        with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            (version,) = struct.unpack_from('<I', data, 4)
            if version in (2 << 24, 3 << 24):
                raise BackendError(
                    f'{path} is a big-endian GGUF file, made for another kind of processor: take the'
                    ' little-endian file of the model'
                )
            if version not in (2, 3):
                raise BackendError(f'{path} is GGUF version {version}; versions 2 and 3 can be read')
            return parse(data)
    except (
        struct.error,
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        MemoryError,
        RecursionError,
    ) as error:
        raise BackendError(
            f'{path} is damaged or cut short ({os.path.getsize(path)} bytes): its head cannot be read;'
            ' download it again'
        ) from error


def _pairs(data) -> tuple[dict[str, Any], int]:
    """The metadata, and where the list of tensors starts."""
    _, pairs = struct.unpack_from('<QQ', data, 8)
    metadata: dict[str, Any] = {}
    at = 24
    for _ in range(pairs):
        key, at = _string(data, at)
        (kind,) = struct.unpack_from('<I', data, at)
        value, at = _value(data, at + 4, kind)
        if value is not None:
            metadata[key] = value
    return metadata, at


def _head(path: str, data) -> Head:
    metadata, at = _pairs(data)
    (count,) = struct.unpack_from('<Q', data, 8)
    listed = []
    for _ in range(count):
        name, at = _string(data, at)
        (axes,) = struct.unpack_from('<I', data, at)
        *shape, kind, offset = struct.unpack_from(f'<{axes}QIQ', data, at + 4)
        at += 16 + 8 * axes
        listed.append((name, shape, kind, offset))
    alignment = metadata.get('general.alignment', 32)
    base = -(-at // alignment) * alignment
    tensors = {}
    for name, shape, kind, offset in listed:
        values, size = _BLOCKS.get(kind, (1, 0))
        end = base + offset + math.prod(shape) // values * size if size else None
        if (end or base + offset) > len(data):
            raise BackendError(
                f'{path} is cut short: it has {len(data)} bytes, and the tensor {printable(name)} ends at'
                f' {end or base + offset}; download it again'
            )
        tensors[name] = Tensor(base + offset, end)
    return Head(metadata, tensors)


def _string(data, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from('<Q', data, at)
    end = at + 8 + length
    if end > len(data):
        raise ValueError('string beyond the end')
    return data[at + 8 : end].decode('utf-8', 'replace'), end


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
            raise ValueError('array beyond the end')
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
    """Return `(bytes of KV per token at 16 bit, bytes of compute buffers, trained context in tokens)` of a
    model with this metadata.
    """
    try:
        return _architecture_memory(metadata, batch)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise BackendError(
            f'the head of the GGUF file is damaged, its figures make no sense ({ascii(str(error))[:100]}):'
            ' download it again'
        ) from error


def attention_heads(metadata: dict[str, Any]) -> int:
    """Return the number of attention heads in the layer that has most."""
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
