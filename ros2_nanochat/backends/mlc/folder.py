"""Reads and checks a folder of MLC-LLM; runs nothing, needs no TVM. It holds `mlc-chat-config.json`, the
index of the weights (`tensor-cache.json`, before 2025 `ndarray-cache.json`), shards and a tokenizer. The
model library is in it, in the cache folder, or named.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ros2_nanochat.backends.mlc.library import library_kind, target_of, unfit_for
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError
from ros2_nanochat.files import read_json
from ros2_nanochat.locate import MLC_CONFIG
from ros2_nanochat.memory import MemoryEstimate

_MADE = re.compile(r'-[0-9a-f]{10}\.so\Z')
_NOT_COMPILED = (
    *('version', 'conv_template', 'tokenizer_files', 'tokenizer_info', 'temperature', 'top_p'),
    *(
        'presence_penalty',
        'frequency_penalty',
        'repetition_penalty',
        'bos_token_id',
        'eos_token_id',
        'pad_token_id',
    ),
)
"""Parts of a configuration that do not affect the library."""
INDEXES = ('tensor-cache.json', 'ndarray-cache.json')


def cache_folder() -> str:
    """Return the folder for quantized models and libraries: `$XDG_CACHE_HOME/nanochat/mlc`."""
    return os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'nanochat', 'mlc')


@dataclass(frozen=True)
class Record:
    """One tensor in a shard.

    Attributes:
        format: `raw`, or `f32-to-bf16`, which stores the upper halves of float32.
        offset, nbytes: Its place in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    offset: int
    nbytes: int

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * dtype_bits(self.dtype) // 8


@dataclass(frozen=True)
class Shard:
    """One file of weights."""

    path: str
    nbytes: int
    records: tuple[Record, ...]


class NoneFits(BackendError):
    """There are libraries, but none for this machine and the requested device."""


class MLCFolder:
    """One such folder.

    Attributes:
        config: Its `mlc-chat-config.json`.
        model: The `model_config` of the language model in it.
    """

    def __init__(self, path: str):
        self.path = os.path.abspath(os.path.expanduser(path))
        if not is_mlc_folder(self.path):
            raise BackendError(f'{self.path} holds no model of MLC-LLM: it has no {MLC_CONFIG}')
        self.config = read_json(self.path, MLC_CONFIG)
        model = self.config.get('model_config') or {}
        self.model = {
            **model,
            **(model.get('text_config') or {}),
        }  # vision models keep the sizes of their language model there
        self.quantization = str(self.config.get('quantization', 'unknown'))
        self.model_type = str(self.config.get('model_type', 'unknown'))
        self.name = os.path.basename(self.path)

    @property
    def context_length(self) -> int:
        """Tokens of one conversation. A sliding window limits it, so that nothing is forgotten."""
        for source in (self.config, self.model):
            for name in ('context_window_size', 'sliding_window_size'):
                value = source.get(name)
                if isinstance(value, int) and value > 0:
                    return value
        return 0

    @property
    def sliding_window(self) -> int | None:
        """Entries that the layers with a window of their own attend to; None if there are none."""
        values = [self.model.get(name) for name in ('sliding_window', 'sliding_window_size')]
        return next((value for value in values if isinstance(value, int) and value > 0), None)

    def shards(self) -> list[Shard]:
        """Return the index of the weights; a BackendError if it is missing or damaged."""
        name = next((name for name in INDEXES if os.path.isfile(os.path.join(self.path, name))), None)
        if name is None:
            raise BackendError(
                f'{self.path} has no weights: neither {INDEXES[0]} nor {INDEXES[1]} is there; copy or convert'
                ' the model again'
            )
        try:
            return [
                Shard(
                    os.path.join(self.path, shard['dataPath']),
                    int(shard['nbytes']),
                    tuple(
                        Record(
                            record['name'],
                            tuple(int(n) for n in record['shape']),
                            record['dtype'],
                            record['format'],
                            int(record['byteOffset']),
                            int(record['nbytes']),
                        )
                        for record in shard['records']
                    ),
                )
                for shard in read_json(self.path, name)['records']
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise BackendError(
                f'{os.path.join(self.path, name)} is no index of weights ({type(error).__name__}: {error});'
                ' copy it again'
            ) from error

    def check_shards(self) -> list[Shard]:
        """Return the shards after checking that all are complete; a BackendError names those that are not."""
        shards = self.shards()
        missing = [os.path.basename(shard.path) for shard in shards if not os.path.isfile(shard.path)]
        if missing:
            raise BackendError(
                f'{self.path} lacks {len(missing)} of {len(shards)} shards of weights'
                f' ({", ".join(missing[:4])}{", ..." if len(missing) > 4 else ""}); download or copy the rest'
            )
        for shard in shards:
            size = os.path.getsize(shard.path)
            if size != shard.nbytes:
                raise BackendError(
                    f'{shard.path} has {size} bytes and should have {shard.nbytes}; copy it again'
                )
            for record in shard.records:
                stored = (
                    record.size // 2
                    if record.format == 'f32-to-bf16' and record.dtype == 'float32'
                    else record.size
                )
                if record.nbytes != stored or record.offset < 0 or record.offset + record.nbytes > size:
                    raise BackendError(
                        f'{shard.path}: {record.name} {record.dtype}{list(record.shape)} takes {stored}'
                        f' bytes, and the index gives it {record.nbytes} at {record.offset} of {size}; copy'
                        ' or convert the model again'
                    )
        return shards

    def estimate(self) -> MemoryEstimate:
        """Estimate the memory of the model from the sizes in its files."""
        get = self.model.get
        weights = sum(record.size for shard in self.shards() for record in shard.records)
        value_bytes = 4 if 'f32' in self.quantization else 2
        chunk = self.config.get('prefill_chunk_size') or get('prefill_chunk_size') or 2048
        width = get('hidden_size') or get('n_embd') or 4096
        inner = get('intermediate_size') or 4 * width
        vocabulary = self.config.get('vocab_size') or get('vocab_size') or 0
        rows = min(get('max_batch_size') or 1, 128)
        overhead = chunk * (6 * width + 3 * inner) * value_bytes + rows * vocabulary * 4 + (32 << 20)
        return MemoryEstimate(weights, self.kv_bytes_per_token, overhead, None, self.context_length)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values per token, from the sizes in the configuration."""
        get: Callable[[str], Any] = self.model.get
        value_bytes = 4 if 'f32' in self.quantization else 2
        layers = get('num_hidden_layers') or get('n_layer') or get('num_layers') or 0
        if get('kv_lora_rank'):  # multi-head latent attention keeps one compressed vector
            return layers * (get('kv_lora_rank') + (get('qk_rope_head_dim') or 0)) * value_bytes
        heads = get('num_attention_heads') or get('n_head') or 0
        kv_heads = get('num_key_value_heads') or get('multi_query_group_num') or heads
        head_dim = get('head_dim') or (get('hidden_size') or get('n_embd') or 0) // max(1, heads)
        return 2 * layers * kv_heads * head_dim * value_bytes

    # --- the library ---

    def find_library(self, config: ModelConfig) -> str | None:
        """Return the model library; None if there is none.

        It is `model_lib`; else one that was compiled here for this model and device; else a .so next to the
        weights; else one with this model's name in the cache folder. One for another processor or device is
        used only if there is no other. A BackendError if `model_lib` does not exist, or several fit.
        """
        if config.model_lib:
            return self._named_library(os.path.expanduser(config.model_lib))
        made = self.made_library(target_of(config.device))
        if os.path.isfile(made):
            return made
        unfit = []
        for folder, names in (
            (self.path, ['*.so']),
            (cache_folder(), [f'{glob.escape(stem)}*.so' for stem in self._stems()]),
        ):
            found = {path for name in names for path in glob.glob(os.path.join(glob.escape(folder), name))}
            candidates = sorted(path for path in found if folder == self.path or not _MADE.search(path))
            fitting = [path for path in candidates if unfit_for(path, config.device) is None]
            if len(fitting) > 1:
                fitting = self._for_device(fitting, config.device)
            if fitting:
                return fitting[0]
            unfit += candidates
        if len(unfit) > 1:
            try:
                return self._for_device(unfit, config.device)[0]
            except BackendError as error:
                raise NoneFits(str(error)) from None
        return unfit[0] if unfit else None

    def made_library(self, target: str) -> str:
        """Return the path of a library that is compiled here. Its name contains a digest of the configuration
        and this machine's processor.
        """
        compiled = {name: value for name, value in self.config.items() if name not in _NOT_COMPILED}
        content = json.dumps([compiled, os.uname().machine], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:10]
        stem = re.sub(r'[-_]MLC$', '', self.name)
        stem = stem if self.quantization in stem else f'{stem}-{self.quantization}'
        return os.path.join(cache_folder(), f'{stem}-{target}-{digest}.so')

    def _named_library(self, name: str) -> str:
        places = [
            name,
            *(
                os.path.join(folder, name + end)
                for folder in (self.path, cache_folder())
                for end in ('', '.so')
            ),
        ]
        for place in places:
            if os.path.isfile(place):
                return os.path.abspath(place)
        raise BackendError(
            f'model_lib={name!r} is no file, neither here nor in {self.path} nor in {cache_folder()}'
        )

    def _stems(self) -> list[str]:
        """Possible names of a library of this model, before its device: `NAME-` for the folder `NAME-MLC`."""
        name = re.sub(r'[-_]MLC$', '', self.name)
        return [f'{name}-', f'{name}.'] if self.quantization in name else [f'{name}-{self.quantization}']

    def _for_device(self, paths: list[str], device: str) -> list[str]:
        kind = target_of(device)
        fitting = [path for path in paths if library_kind(path) == kind]
        if len(fitting) != 1:
            kinds = ('cpu', 'llvm', 'x86', 'aarch64') if kind == 'cpu' else (kind,)
            fitting = [path for path in paths if any(kind in os.path.basename(path) for kind in kinds)]
        if len(fitting) != 1:
            raise BackendError(
                f'{os.path.dirname(paths[0])} has {len(paths)} model libraries: name one with model_lib, out'
                f' of {", ".join(os.path.basename(path) for path in paths)}'
            )
        return fitting


def is_mlc_folder(path: str) -> bool:
    """Return whether a path is a model folder of MLC-LLM."""
    return os.path.isfile(os.path.join(path, MLC_CONFIG))


def dtype_bits(dtype: str) -> int:
    """Return the bits of one element of a TVM type: `float16`, `uint32`, `float8_e4m3fn`."""
    if dtype == 'bool':
        return 8
    match = re.match(r'[a-z]+(\d+)', dtype)
    if match is None:
        raise BackendError(f'the weights have elements of type {dtype!r}, which is not known')
    return int(match[1])
