"""GGUF models on llama.cpp, through the low-level interface of llama-cpp-python: ids or embeddings in, logits
out, KV operations by sequence.

Every sequence has a KV stream of its own (`kv_unified` off): an idle conversation then costs the running ones
nothing; the price is that a fork copies. Knows nothing of prompts, sampling or text beyond tokens.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import threading
from collections.abc import Callable, Sequence

import numpy as np

from ros2_nanochat.backends.base import Backend, Chunk, Detokenizer
from ros2_nanochat.backends.gguf.header import architecture_memory, attention_heads, check_gguf, read_metadata
from ros2_nanochat.backends.gguf.process import LogLines, interruptible, physical_cores
from ros2_nanochat.backends.gguf.vocabulary import GGUFText
from ros2_nanochat.backends.logits import HostLogits, Logits
from ros2_nanochat.config import DEFAULT_CONTEXT, ModelConfig
from ros2_nanochat.errors import BackendError, ForwardError, LoadAborted, require
from ros2_nanochat.memory import MemoryEstimate
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.prompt import Preceding

_KV_PADDING = 256  # llama.cpp rounds a stream's cells up to this
_BATCH = 512
# From 64 rows of one sequence on, flash attention on the CPU goes another way and rounds otherwise. Below
# that the logits are the same bit for bit
# however a prompt is cut and whatever else is in the batch, so an edited or shared KV equals a fresh one. One
# case is left: a row that runs all alone
# behind more than 256 entries, whose KV llama.cpp then divides among its threads
# (ggml_compute_forward_flash_attn_ext_f16).
_EXACT_CHUNK = 63
_DRAFT_ROWS = 24  # rows of logits a sequence may ask for in one forward, besides the one to sample


class GGUFBackend(Backend):
    """A GGUF file on llama.cpp, on the CPU and, with a GPU build of llama-cpp-python and `gpu_layers`, on a
    GPU.
    """

    max_batch_tokens = _BATCH

    def __init__(self, path: str, config: ModelConfig):
        super().__init__(path, config)
        self._api = require('llama_cpp', 'gguf').llama_cpp
        self._model = self._context = None
        self._abort_flag = ctypes.create_string_buffer(2)
        self._embedding_table = None
        self._table_lock = threading.Lock()
        self._text: GGUFText | None = None

    @classmethod
    def estimate(cls, path: str, config: ModelConfig) -> MemoryEstimate:
        weights, metadata = check_gguf(path), read_metadata(path)
        kv_per_token, overhead, context = architecture_memory(metadata, _BATCH)
        if not config.flash_attention:
            overhead += (
                4
                * _BATCH
                * min(config.max_context_len or DEFAULT_CONTEXT, context or DEFAULT_CONTEXT)
                * attention_heads(metadata)
            )
        return MemoryEstimate(
            weights=weights,
            kv_per_token=kv_per_token,
            overhead=overhead,
            available=None,
            context_length=context,
        )

    # --- opening ---

    def open(self, progress: Callable[[float], None] | None = None) -> None:
        with interruptible(self.abort):
            self._open(progress)

    def _open(self, progress: Callable[[float], None] | None) -> None:
        api = self._api
        log = LogLines(api)
        check_gguf(self.path)
        api.llama_backend_init()
        if self.config.gpu_layers and not api.llama_supports_gpu_offload():
            raise BackendError(
                f'gpu_layers={self.config.gpu_layers} needs a GPU build of llama-cpp-python, and this one has'
                ' none: set it to 0 for the CPU, or reinstall with  CMAKE_ARGS=-DGGML_CUDA=on pip install'
                ' --no-binary llama-cpp-python --force-reinstall llama-cpp-python'
            )

        @api.llama_progress_callback
        def report(share, _):
            if progress:
                progress(share)
            return not self._aborted

        params = api.llama_model_default_params()
        params.n_gpu_layers = self.config.gpu_layers if self.config.gpu_layers >= 0 else 0x7FFFFFFF
        params.progress_callback = report
        with log:
            self._model = api.llama_model_load_from_file(os.fsencode(self.path), params)
        if self._aborted:
            self.close()
            raise LoadAborted(f'loading {self.path} was stopped')
        if not self._model:
            raise BackendError(f'{self.path} cannot be loaded: {log.reason()}')
        with log:
            self._open_context()
        if not self._context:
            self.close()
            raise BackendError(
                f'no memory for a context of {self.config.kv_tokens} tokens: {log.reason()}; ask for less'
                ' with max_context_len'
            )
        self.info = self._read_info()
        self._prepare_batch()

    def _open_context(self) -> None:
        api, config = self._api, self.config
        trained = api.llama_model_n_ctx_train(self._model)
        length = config.max_context_len or min(trained, DEFAULT_CONTEXT)
        self.max_sequences = min(config.max_sequences, api.llama_max_parallel_sequences())
        if config.kv_tokens is not None:  # every stream has a whole context
            self.max_sequences = min(self.max_sequences, max(1, config.kv_tokens // length))
        self._stream_cells = -(-length // _KV_PADDING) * _KV_PADDING
        self.kv_capacity = length * self.max_sequences
        self._context_length = length
        threads = config.threads or physical_cores()
        params = api.llama_context_default_params()
        params.n_ctx = self._stream_cells * self.max_sequences
        params.n_batch = params.n_ubatch = _BATCH
        params.n_seq_max = self.max_sequences
        params.n_outputs_max = min(_BATCH, max(64, self.max_sequences * (1 + _DRAFT_ROWS)))
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = False
        params.flash_attn_type = (
            api.LLAMA_FLASH_ATTN_TYPE_AUTO if config.flash_attention else api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        if config.flash_attention and not config.gpu_layers:
            self.max_chunk_tokens = _EXACT_CHUNK
        params.swa_full = (
            True  # a window that forgets could not be trimmed to where a conversation was edited
        )
        params.no_perf = True
        # llama.cpp asks this for every node of the graph. strlen of a buffer answers without taking the GIL:
        # 0 until abort() writes to it.
        params.abort_callback = ctypes.cast(ctypes.CDLL(None).strlen, type(params.abort_callback))
        params.abort_callback_data = ctypes.addressof(self._abort_flag)
        self._context = api.llama_init_from_model(self._model, params)
        if self._context:
            self._memory = api.llama_get_memory(self._context)
            self._lengths: dict[int, int] = {}

    def _read_info(self) -> ModelInfo:
        api, model = self._api, self._model
        metadata = read_metadata(self.path)
        self._text = text = GGUFText(api, model, metadata)
        self._architecture = metadata.get('general.architecture', 'unknown')
        buffer = ctypes.create_string_buffer(128)
        api.llama_model_desc(model, buffer, len(buffer))
        kv_per_token, _, _ = architecture_memory(metadata, _BATCH)
        return ModelInfo(
            name=metadata.get('general.name') or os.path.splitext(os.path.basename(self.path))[0],
            api='gguf',
            architecture=self._architecture,
            path=self.path,
            context_length=self._context_length,
            train_context_length=api.llama_model_n_ctx_train(model),
            vocab_size=text.size,
            embedding_size=api.llama_model_n_embd(model),
            eos_token_ids=text.eos_token_ids,
            bos_token_id=text.bos_token_id,
            add_bos=text.add_bos,
            named_tokens=text.named_tokens,
            special_tokens=tuple(text.special_tokens),
            chat_template=text.chat_template,
            quantization=buffer.value.decode('utf-8', 'replace'),
            weights_bytes=api.llama_model_size(model),
            kv_bytes_per_token=kv_per_token,
            has_embed=importlib.util.find_spec('gguf') is not None,
            takes_embeddings=True,
        )

    def _prepare_batch(self) -> None:
        self._tokens = np.zeros(_BATCH, np.int32)
        self._positions = np.zeros(_BATCH, np.int32)
        self._wanted = np.zeros(_BATCH, np.int8)
        self._ones = np.ones(_BATCH, np.int32)
        self._ids = np.arange(self.max_sequences, dtype=np.int32)
        self._id_pointers = np.zeros(_BATCH, np.uintp)  # one pointer to a sequence id for each entry
        batch = self._api.llama_batch()
        fields = dict(self._api.llama_batch._fields_)
        for name, array in (
            ('token', self._tokens),
            ('pos', self._positions),
            ('n_seq_id', self._ones),
            ('seq_id', self._id_pointers),
            ('logits', self._wanted),
        ):
            setattr(batch, name, ctypes.cast(array.ctypes.data, fields[name]))
        self._batch, self._float_pointer = batch, fields['embd']
        self._token_pointer = ctypes.cast(
            self._tokens.ctypes.data, fields['token']
        )  # batch.token would be a view that follows the field

    # --- text ---

    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        return self._text.tokenize(text, special, preceding)

    def detokenizer(self) -> Detokenizer:
        return self._text.detokenizer()

    def embed_tokens(self, ids: Sequence[int]) -> np.ndarray:
        gguf = require('gguf', 'gguf')
        with self._table_lock:
            if not self._model:
                raise BackendError('the model is closed')
            if self._embedding_table is None:
                tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(self.path).tensors}
                if 'token_embd.weight' not in tensors:
                    raise BackendError(f'{self.path} does not hold the embeddings of tokens: pass ids')
                self._embedding_table = tensors['token_embd.weight']
            table = self._embedding_table
        if not len(ids):
            return np.empty((0, self.info.embedding_size), np.float32)
        rows = gguf.quants.dequantize(
            table.data[np.asarray(ids, dtype=np.int64).reshape(-1)], table.tensor_type
        ).astype(np.float32)
        # Gemma scales the embeddings of tokens, and only of tokens, inside its graph
        return (
            rows * np.float32(math.sqrt(rows.shape[-1])) if self._architecture.startswith('gemma') else rows
        )

    # --- sequences ---

    def new_sequence(self) -> int:
        seq = next(i for i in range(self.max_sequences) if i not in self._lengths)
        self._lengths[seq] = 0
        return seq

    def fork(self, seq: int, n: int) -> tuple[int, int]:
        copy = self.new_sequence()
        try:
            data = self.save(
                seq
            )  # copies the cells in use; llama.cpp's own copy between streams would move a whole context
        except MemoryError:
            return copy, 0
        if not self._restore(copy, data):
            return copy, 0
        self._lengths[copy] = self._lengths[seq]
        return copy, self.trim(copy, n)

    def trim(self, seq: int, n: int) -> int:
        if n < self._lengths[seq]:
            if not self._api.llama_memory_seq_rm(self._memory, seq, n, -1):
                self._api.llama_memory_seq_rm(
                    self._memory, seq, -1, -1
                )  # a recurrent state cannot go back: begin anew
                n = 0
            self._lengths[seq] = n
        return self._lengths[seq]

    def free(self, seq: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, seq, -1, -1)
        del self._lengths[seq]

    def save(self, seq: int) -> bytes:
        size = self._api.llama_state_seq_get_size(self._context, seq)
        buffer = (ctypes.c_uint8 * size)()
        written = self._api.llama_state_seq_get_data(self._context, buffer, size, seq)
        return self._lengths[seq].to_bytes(8, 'little') + memoryview(buffer)[:written].tobytes()

    def load(self, data: bytes) -> int | None:
        seq = self.new_sequence()
        if self._restore(seq, data):
            self._lengths[seq] = int.from_bytes(data[:8], 'little')
            return seq
        self.free(seq)
        return None

    def _restore(self, seq: int, data: bytes) -> bool:
        state = np.frombuffer(data, np.uint8, offset=8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(self._api.llama_state_seq_set_data(self._context, pointer, len(state), seq))

    # --- forward ---

    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        before = [self._lengths[chunk.seq] for chunk in chunks]
        plain = [i for i, chunk in enumerate(chunks) if chunk.embeddings is None]
        rows: dict[int, np.ndarray] = {}
        try:
            if len(plain) == len(chunks):
                return HostLogits(self._decode(chunks, None))
            # llama.cpp takes ids or embeddings, not both in one batch; attention both ways is a switch of the
            # whole batch
            runs = ([plain] if plain else []) + [
                [i] for i, chunk in enumerate(chunks) if chunk.embeddings is not None
            ]
            for run in runs:
                logits = self._decode([chunks[i] for i in run], chunks[run[0]].embeddings).copy()
                for i in run:
                    rows[i], logits = logits[: chunks[i].num_logits], logits[chunks[i].num_logits :]
            return HostLogits(np.concatenate([rows[i] for i in range(len(chunks))]))
        except BackendError as error:
            for chunk in chunks:
                self._lengths[chunk.seq] = self._api.llama_memory_seq_pos_max(self._memory, chunk.seq) + 1
            committed = [self._lengths[chunk.seq] - start for chunk, start in zip(chunks, before)]
            raise ForwardError(str(error), committed) from error

    def _decode(self, chunks: Sequence[Chunk], embeddings: np.ndarray | None) -> np.ndarray:
        at = outputs = 0
        self._wanted[:] = 0
        for chunk in chunks:
            if chunk.positions is not None:
                raise BackendError(
                    f'{self.info.name} takes no positions of more than one axis through gguf; use api=hf for'
                    ' this model'
                )
            n, start = len(chunk), self._lengths[chunk.seq]
            end = at + n
            if start + n > self._context_length or end > _BATCH:
                raise BackendError(
                    f'{n} entries do not fit behind {start}: the context holds {self._context_length}, a'
                    f' batch {_BATCH}'
                )
            if chunk.embeddings is None:
                self._tokens[at:end] = chunk.ids
            self._positions[at:end] = np.arange(start, start + n)
            self._id_pointers[at:end] = self._ids.ctypes.data + 4 * chunk.seq
            if chunk.num_logits:
                self._wanted[end - chunk.num_logits : end] = 1
            outputs += chunk.num_logits
            at = end
        batch = self._batch
        batch.n_tokens = at
        if embeddings is None:
            batch.token, batch.embd = self._token_pointer, None
        else:
            embeddings = np.ascontiguousarray(embeddings, np.float32)
            batch.token, batch.embd = None, ctypes.cast(embeddings.ctypes.data, self._float_pointer)
        bidirectional = any(chunk.bidirectional for chunk in chunks)
        if bidirectional:
            self._api.llama_set_causal_attn(self._context, False)
        try:
            code = self._api.llama_decode(self._context, batch)
        finally:
            if bidirectional:
                self._api.llama_set_causal_attn(self._context, True)
        if code:
            self._abort_flag[0] = b'\0' if code == 2 else self._abort_flag[0]
            raise (
                LoadAborted('the forward was stopped')
                if code == 2
                else BackendError(
                    'the KV cache has no room; lower max_sequences or max_context_len'
                    if code == 1
                    else f'llama_decode failed with code {code}'
                )
            )
        for chunk in chunks:
            self._lengths[chunk.seq] += len(chunk)
        if not outputs:
            return np.empty((0, self.info.vocab_size), np.float32)
        pointer = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (outputs, self.info.vocab_size))

    @property
    def kv_used(self) -> int:
        return sum(self._lengths.values())

    # --- the end ---

    @property
    def _aborted(self) -> bool:
        return self._abort_flag[0] != b'\0'

    def abort(self) -> None:
        self._abort_flag[0] = b'x'

    def close(self) -> None:
        if self._context:
            self._api.llama_free(self._context)
            self._context = None
        if self._text is not None:
            self._text.close()
        if self._model:
            self._api.llama_model_free(self._model)
            self._model = None
        self._embedding_table = None
