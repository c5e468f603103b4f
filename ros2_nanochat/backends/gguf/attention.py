"""Decides whether a CPU computes attention faster with llama.cpp's flash attention or without it.

It times one attention of the model's shape both ways, in ggml, behind 1,024 entries. That takes some
milliseconds and none of the model's weights. The decision is kept per shape, processor and version in
`$XDG_CACHE_HOME/nanochat/attention.json`, so that replies do not round differently after a restart.
Conversations that stay short are not measured: there flash attention saves the steps around attention, which
the measurement does not see.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ros2_nanochat.config import DEFAULT_CONTEXT, FlashAttention, ModelConfig
from ros2_nanochat.files import write_whole
from ros2_nanochat.processor import processor_name

_log = logging.getLogger(__name__)
_HISTORY = 1024  # entries
_SHORT = 1024  # entries of a context that flash attention fills as fast or faster; on two cores of a Xeon
_CHUNK = 16  # rows of a prefill
_REPEATS = 3
_FASTER = 0.9  # of the time with flash attention: then it is switched off
_F32, _F16 = 0, 1  # enum ggml_type
_MASK_ROWS = 64  # llama.cpp pads a mask to this
_MEMORY = 64 << 20


class Shape(NamedTuple):
    """The attention of a layer: heads that share keys and values, and the width of a head's keys and
    values.
    """

    heads: int
    key: int
    value: int


def shape_of(metadata: dict[str, Any]) -> Shape | None:
    """Return the shape of a model's attention; None if the metadata does not tell it."""
    prefix = metadata.get('general.architecture', '')

    def get(name: str, default: Any = None) -> Any:
        value = metadata.get(f'{prefix}.{name}', default)
        return max(value, default=None) if isinstance(value, list) else value

    heads, width = get('attention.head_count'), get('embedding_length')
    shared = get('attention.head_count_kv', heads)
    try:
        shape = Shape(
            heads // shared,
            get('attention.key_length', width // heads),
            get('attention.value_length', width // heads),
        )
    except (TypeError, ZeroDivisionError):
        return None
    # ggml aborts the process if the tensors do not fit into _MEMORY
    sensible = all(isinstance(n, int) for n in shape) and 0 < shape.heads <= 128 and 0 < shape.key <= 512
    return shape if sensible and shape.key == shape.value else None


def with_choice(config: ModelConfig, metadata: dict[str, Any], load: Callable[[], Any]) -> ModelConfig:
    """Return the options with `flash_attention` on or off.

    Args:
        config: The options of the model.
        metadata: The file's metadata.
        load: Returns the package `llama_cpp`.
    """
    if config.flash_attention is not FlashAttention.AUTO:
        return config
    on = bool(config.gpu_layers) or _on_cpu(_context(config, metadata), metadata, load)
    return dataclasses.replace(config, flash_attention=FlashAttention.ON if on else FlashAttention.OFF)


def _context(config: ModelConfig, metadata: dict[str, Any]) -> int:
    """Return the number of entries that one conversation may have."""
    trained = metadata.get(f'{metadata.get("general.architecture", "")}.context_length')
    most = config.max_context_len or (trained if isinstance(trained, int) else DEFAULT_CONTEXT)
    return min(most, config.kv_tokens or most)


def _on_cpu(context: int, metadata: dict[str, Any], load: Callable[[], Any]) -> bool:
    shape = shape_of(metadata)
    if shape is None:
        return False
    if context <= _SHORT:
        return True
    package = load()
    key = ' '.join(map(str, [*shape, package.__version__, processor_name()]))
    known = _read()
    if not isinstance(known.get(key), bool):
        try:
            known[key] = _is_faster(package.llama_cpp, shape)
        except (AttributeError, OSError) as error:  # a build whose ggml cannot be called
            _log.debug('attention was not measured: %s', error)
            return False
        _write(known)
    return known[key]


def _is_faster(api: Any, shape: Shape) -> bool:
    """Whether flash attention is faster for a turn: 32 tokens that are read, and 32 that are written."""
    with _Measurement(api, shape) as measurement:
        flash, plain = (
            32 * measurement.seconds(1, on) + 32 / _CHUNK * measurement.seconds(_CHUNK, on)
            for on in (True, False)
        )
    _log.info(
        'attention behind %d entries takes %.2f of the time without flash attention', _HISTORY, plain / flash
    )
    return plain > _FASTER * flash


class _InitParams(ctypes.Structure):
    """`ggml_init_params` of ggml.h."""

    _fields_ = [('mem_size', ctypes.c_size_t), ('mem_buffer', ctypes.c_void_p), ('no_alloc', ctypes.c_bool)]


class _Measurement:
    """Attention of one group of heads on one thread, as llama.cpp's graphs compute it."""

    def __init__(self, api: Any, shape: Shape):
        # a library object of our own: the types that are set below are not those of llama_cpp
        self._library, self._shape = ctypes.CDLL(api._lib._name), shape

    def __enter__(self) -> _Measurement:
        init = self._library.ggml_init
        init.argtypes, init.restype = [_InitParams], ctypes.c_void_p
        self._context = ctypes.c_void_p(init(_InitParams(_MEMORY, None, False)))
        if not self._context:
            raise OSError('no memory')
        return self

    def __exit__(self, *_) -> None:
        free = self._library.ggml_free
        free.argtypes, free.restype = [ctypes.c_void_p], None
        free(self._context)

    def seconds(self, rows: int, flash: bool) -> float:
        """Return the time of one attention of `rows` new entries."""
        result = self._flash(rows) if flash else self._plain(rows)
        graph = self._call('ggml_new_graph', pointer=True)
        self._call('ggml_build_forward_expand', graph, result, without_context=True)
        times = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            self._call('ggml_graph_compute_with_ctx', graph, ctypes.c_int(1))
            times.append(time.perf_counter() - began)
        return min(times)

    def _flash(self, rows: int) -> ctypes.c_void_p:
        query, keys = self._query(rows), self._keys(self._shape.key)
        values = self._keys(self._shape.value)
        scale = ctypes.c_float(self._shape.key**-0.5)
        return self._call(
            'ggml_flash_attn_ext',
            query,
            keys,
            values,
            self._mask(),
            scale,
            *[ctypes.c_float(0)] * 2,
            pointer=True,
        )

    def _plain(self, rows: int) -> ctypes.c_void_p:
        query, keys = self._query(rows), self._keys(self._shape.key)
        values = self._tensor(_F16, _HISTORY, self._shape.value, 1)
        scale = ctypes.c_float(self._shape.key**-0.5)
        weights = self._call('ggml_mul_mat', keys, query, pointer=True)
        weights = self._call(
            'ggml_soft_max_ext', weights, self._mask(), scale, ctypes.c_float(0), pointer=True
        )
        mixed = self._call('ggml_mul_mat', values, weights, pointer=True)
        return self._call('ggml_cont', self._turned(mixed), pointer=True)

    def _query(self, rows: int) -> ctypes.c_void_p:
        return self._turned(self._tensor(_F32, self._shape.key, self._shape.heads, rows))

    def _keys(self, width: int) -> ctypes.c_void_p:
        return self._turned(self._tensor(_F16, width, 1, _HISTORY))

    def _mask(self) -> ctypes.c_void_p:
        return self._tensor(_F16, _HISTORY, _MASK_ROWS, 1, zero=True)

    def _turned(self, tensor: ctypes.c_void_p) -> ctypes.c_void_p:
        return self._call('ggml_permute', tensor, *map(ctypes.c_int, (0, 2, 1, 3)), pointer=True)

    def _tensor(self, kind: int, *lengths: int, zero: bool = False) -> ctypes.c_void_p:
        tensor = self._call(
            'ggml_new_tensor_3d', ctypes.c_int(kind), *map(ctypes.c_int64, lengths), pointer=True
        )
        data = self._call('ggml_get_data', tensor, pointer=True, without_context=True)
        element = np.float16 if kind == _F16 else np.float32
        count = int(np.prod(lengths))
        numbers = np.zeros(1) if zero else np.random.default_rng(0).standard_normal(1024)
        filled = np.resize(numbers.astype(element), count)
        ctypes.memmove(data, filled.ctypes.data, filled.nbytes)
        return tensor

    def _call(self, name: str, *arguments: Any, pointer: bool = False, without_context: bool = False) -> Any:
        function = getattr(self._library, name)
        function.restype = ctypes.c_void_p if pointer else ctypes.c_int
        result = function(*arguments) if without_context else function(self._context, *arguments)
        return ctypes.c_void_p(result) if pointer else result


def _file() -> str:
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return os.path.join(cache, 'nanochat', 'attention.json')


def _read() -> dict[str, Any]:
    try:
        with open(_file(), encoding='utf-8') as file:
            known = json.load(file)
        return known if isinstance(known, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _write(known: dict[str, Any]) -> None:
    try:
        os.makedirs(os.path.dirname(_file()), exist_ok=True)
        write_whole(_file(), json.dumps(known, indent=1).encode())
    except OSError as error:  # then the next start measures again
        _log.debug('%s cannot be written: %s', _file(), error)
