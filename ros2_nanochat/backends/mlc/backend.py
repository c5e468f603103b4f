"""Models compiled by MLC-LLM, run directly with TVM's virtual machine and its paged KV cache; mlc-llm itself
is not needed.

Source of the libraries' functions and their arguments: mlc-llm (python/mlc_llm/model, cpp/serve/model.cc).
Knows nothing of prompts or sampling.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ros2_nanochat.backends.base import Chunk, Detokenizer
from ros2_nanochat.backends.check import check_model
from ros2_nanochat.backends.mlc import sampling as mlc_sampling
from ros2_nanochat.backends.mlc.arrays import DeviceLogits, IdArrays
from ros2_nanochat.backends.mlc.chat_template import chat_template, end_ids
from ros2_nanochat.backends.mlc.compiling import prepare
from ros2_nanochat.backends.mlc.folder import MLCFolder, cache_folder
from ros2_nanochat.backends.mlc.forwarding import MLCForward
from ros2_nanochat.backends.mlc.image_sizes import image_sizes
from ros2_nanochat.backends.mlc.images import MLCImages
from ros2_nanochat.backends.mlc.library import parse_metadata
from ros2_nanochat.backends.mlc.paged_kv import PagedKV
from ros2_nanochat.backends.mlc.tvm_runtime import Runtime, free_memory, give_back_memory
from ros2_nanochat.backends.mlc.weights import load_parameters, match_parameters
from ros2_nanochat.backends.tokenizer import Tokenizer
from ros2_nanochat.config import DEFAULT_CONTEXT, ModelConfig
from ros2_nanochat.errors import BackendError, one_line, require
from ros2_nanochat.memory import MemoryEstimate
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.prompt import Preceding

_log = logging.getLogger(__name__)
_MOST_TOKENS = 2048  # of one call: the KV cache has buffers for this many


class MLCBackend(MLCForward):
    """A model folder of MLC-LLM with its model library."""

    def __init__(self, path: str, config: ModelConfig):
        super().__init__(path, config)
        self._machine: Any = None

    @classmethod
    def prepare(cls, path: str, config: ModelConfig, stop: threading.Event | None = None) -> str:
        """Compile the model if it is not compiled; return the path to open."""
        return prepare(path, config, stop=stop)

    @classmethod
    def estimate(cls, path: str, config: ModelConfig) -> MemoryEstimate:
        folder = MLCFolder(path)
        library = folder.find_library(config) or ''
        kind, _, index = config.device.partition(':')
        if kind == 'cuda' or (kind == 'auto' and 'cuda' in library.rpartition('/')[2]):
            device = require('tvm', 'mlc').device('cuda', int(index or 0))
            return dataclasses.replace(folder.estimate(), available=free_memory(device))
        return folder.estimate()

    # --- opening ---

    def open(self, progress: Callable[[float], None] | None = None) -> None:
        folder = MLCFolder(self.path)
        library = folder.find_library(self.config)
        if library is None:
            raise BackendError(
                f'{folder.path} has no model library: it contains no .so, and there is none of its name in'
                f' {cache_folder()}; name one with model_lib, or make one:  nanochat-mlc {folder.path}'
            )
        shards = folder.check_shards()
        self._tokenizer = Tokenizer.from_folder(folder.path)
        self._runtime = runtime = Runtime(self.config.device, library)
        self._device_ids = IdArrays(runtime)
        self._machine = runtime.virtual_machine()
        self._metadata = self._read_metadata(library)
        rows = match_parameters(folder, shards, self._metadata['params'], library)
        self._find_functions(library)
        self._params = load_parameters(
            runtime, shards, [name for name, _, _ in self._metadata['params']], progress, self._aborted.is_set
        )
        self._vocabulary = rows or int(
            folder.config.get('vocab_size') or folder.model.get('vocab_size') or self._tokenizer.vocab_size
        )
        self._make_kv(folder)
        self._warm_up(library)
        self.info = self._read_info(folder, sum(record.size for shard in shards for record in shard.records))
        check_model(self)

    def _read_metadata(self, library: str) -> dict:
        describe = self._runtime.function(self._machine, '_metadata')
        if describe is None:
            raise BackendError(
                f'{library} is no model library: it has no function _metadata; name the .so that mlc_llm'
                ' compile made'
            )
        return parse_metadata(str(describe()), library)

    def _find_functions(self, library: str) -> None:
        names = (
            'embed',
            'prefill',
            'decode',
            'batch_prefill',
            'batch_decode',
            'extend',
            'batch_extend',
            'image_embed',
            *mlc_sampling.NAMES,
        )
        self._functions = {name: self._runtime.function(self._machine, name) for name in names}
        mask = mlc_sampling.MASK
        self._functions[mask] = self._runtime.function(self._machine, mask, kernel=True)
        if not self._functions['embed'] or not self._functions['prefill']:
            lacking = next(name for name in ('embed', 'prefill') if not self._functions[name])
            raise BackendError(
                f'{library} has no function {lacking!r}; compile the model again with an mlc_llm of 2024 or'
                ' newer'
            )
        self._sampler = mlc_sampling.DeviceSampler(self._runtime, self._functions)
        self._prefill = self._functions['prefill'], self._functions['batch_prefill']
        self._extend = (
            self._functions['extend'] or self._prefill[0],
            self._functions['batch_extend'] or self._prefill[1],
        )
        most = max(1, int(self._metadata.get('max_batch_size') or 1))
        # The library's buffers have these sizes: more rows of logits or sequences at once would not fit.
        self._most_rows = most if self._prefill[1] else 1
        self._most_sequences = most if self._prefill[1] else 1
        self._most_decoding = most if self._functions['batch_decode'] else 1

    def _make_kv(self, folder: MLCFolder) -> None:
        config, runtime = self.config, self._runtime
        own = (
            folder.context_length or max(self._metadata.get('context_window_size') or 0, 0) or DEFAULT_CONTEXT
        )
        self._context_length = min(config.max_context_len or min(own, DEFAULT_CONTEXT), own)
        self.max_sequences = config.max_sequences
        self.kv_capacity = config.kv_tokens or self._context_length * self.max_sequences
        self.max_batch_tokens = min(
            int(self._metadata.get('prefill_chunk_size') or 0) or _MOST_TOKENS, _MOST_TOKENS
        )
        try:
            row = runtime.host(
                self._functions['embed'](self._device_ids(np.zeros(1, np.int32)), self._params)
            )
        except Exception as error:  # this runs the first kernel
            raise self._does_not_run(error) from error
        self._width, self._dtype = row.shape[1], str(row.dtype)
        cache = self._metadata.get('kv_cache') or {}
        heads = [cache.get(name) or 0 for name in ('num_hidden_layers', 'num_key_value_heads', 'head_dim')]
        self._kv_bytes = 2 * int(np.prod(heads)) * row.dtype.itemsize or folder.kv_bytes_per_token
        free, need = runtime.free_memory(), self._kv_bytes * self.kv_capacity
        if free is not None and need > free:
            raise BackendError(
                f'a KV cache of {self.kv_capacity} tokens takes {need / (1 << 20):,.0f} MiB, and'
                f' {free / (1 << 20):,.0f} MiB are free on {runtime.device}: ask for less with'
                ' max_context_len, max_sequences or kv_tokens'
            )
        self._kv = PagedKV(
            runtime, self._machine, self.max_sequences, self.kv_capacity, self.max_batch_tokens
        )

    def _warm_up(self, library: str) -> None:
        """Run a prompt and one token, so that kernels which do not work here fail now, and buffers exist."""
        seq = self.new_sequence()
        try:
            for n in (2, 1) if self._context_length > 2 else (1,) * self._context_length:
                logits = self._forward([Chunk(seq, ids=np.zeros(n, np.int64), num_logits=1)], [0])
            if isinstance(logits, DeviceLogits):
                self._try_sampler(logits)
            rows = logits.numpy()
        except Exception as error:
            raise self._does_not_run(error) from error
        if not np.isfinite(rows).all():
            raise BackendError(
                f'{library} gives logits that are no numbers: the weights in {self.path} are damaged (copy'
                f' them again), or too large for the type they are computed in ({self._dtype}): take another'
                ' quantization'
            )
        self._logits_width = rows.shape[1]
        self.free(seq)

    def _does_not_run(self, error: Exception) -> BackendError:
        runtime = self._runtime
        return BackendError(
            f'{runtime.library} does not run on {runtime.device} with TVM {runtime.version}'
            f' ({one_line(error)}); it was compiled for another GPU or another TVM: compile it here with'
            ' nanochat-mlc; if you already did, mlc_llm does not support this model: use another api'
        )

    def _try_sampler(self, rows: DeviceLogits) -> None:
        """Choose ids from logits on the host if the library's own sampling functions do not work."""
        try:
            rows.argmax()
            if rows.can_sample:
                rows.sample([0], [1.0], [1.0], [0.5])
                rows.sample([0], [1.0], [0.9], [0.5])
            if rows.can_mask:
                rows.mask([0], np.ones((1, rows.shape[1]), bool))
        except Exception as error:
            _log.warning(
                'the functions of %s that sample on the device do not work (%s): logits are copied for each'
                ' token',
                self._runtime.library,
                one_line(error),
            )
            self._sampler = mlc_sampling.DeviceSampler(self._runtime, {})

    def _read_info(self, folder: MLCFolder, weights_bytes: int) -> ModelInfo:
        tokenizer = self._tokenizer
        return ModelInfo(
            name=folder.name,
            api='mlc',
            architecture=folder.model_type,
            path=folder.path,
            context_length=self._context_length,
            train_context_length=folder.context_length or self._context_length,
            vocab_size=self._logits_width,
            embedding_size=self._width,
            eos_token_ids=end_ids(folder, tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            add_bos=tokenizer.add_bos,
            named_tokens=tokenizer.named,
            special_tokens=tokenizer.special_tokens,
            chat_template=chat_template(folder, tokenizer),
            quantization=folder.quantization,
            weights_bytes=weights_bytes,
            kv_bytes_per_token=self._kv_bytes,
            has_embed=True,
            takes_embeddings=True,
            sliding_window=folder.sliding_window,
        )

    # --- text ---

    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        return self._tokenizer.tokenize(text, special, preceding)

    def detokenizer(self, preceding: Preceding = Preceding.START) -> Detokenizer:
        return self._tokenizer.detokenizer(preceding)

    def embed_tokens(self, ids: Sequence[int]) -> np.ndarray:
        ids = self._checked(np.asarray(ids, dtype=np.int64).reshape(-1))
        rows = np.empty((len(ids), self._width), np.float32)
        for at in range(0, len(ids), self.max_batch_tokens):
            with self._lock:
                rows[at : at + self.max_batch_tokens] = self._runtime.host(
                    self._embed(ids[at : at + self.max_batch_tokens])
                )
        return rows

    @property
    def image_embedder(self) -> MLCImages | None:
        if self._functions['image_embed'] is None:
            return None
        return MLCImages(self.info.path, str(self._runtime.library), self._embed_image)

    def _embed_image(self, pixels: np.ndarray) -> np.ndarray:
        """Return the rows [k, d] of a picture [h, w, 3]."""
        with self._lock:
            runtime = self._runtime
            image = runtime.from_numpy(np.ascontiguousarray(pixels[None]))
            sizes = [
                runtime.shape([n]) for n in image_sizes(self._metadata.get('model_type'), *pixels.shape[:2])
            ]
            rows = np.array(
                runtime.host(self._functions['image_embed'](image, *sizes, self._params)), np.float32
            )
        return rows.reshape(-1, self._width)

    # --- the end ---

    def abort(self) -> None:
        self._aborted.set()

    def close(self) -> None:
        with self._lock:
            self._kv = self._params = self._machine = None
            self._prefill = self._extend = self._sampler = self._device_ids = None  # type: ignore[assignment]
            self._functions = {}
        give_back_memory()
