"""GGUF models on llama.cpp, through the low-level interface of llama-cpp-python: ids or embeddings in, logits
out, KV operations by sequence.

Each sequence has its own KV stream (`kv_unified` off): an idle conversation then costs the running ones
nothing, but a fork copies. Knows nothing of prompts, sampling or text beyond tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from ros2_nanochat.backends.base import Backend, Chunk, Detokenizer
from ros2_nanochat.backends.gguf.attention import with_choice
from ros2_nanochat.backends.gguf.decoding import Decoder
from ros2_nanochat.backends.gguf.embeddings import EmbeddingTable
from ros2_nanochat.backends.gguf.first_check import FirstCheck
from ros2_nanochat.backends.gguf.header import architecture_memory, check_gguf, read_head, read_metadata
from ros2_nanochat.backends.gguf.images import GGUFImages, open_images
from ros2_nanochat.backends.gguf.kinds import check_loaded, check_metadata, check_tensors, no_memory_of_text
from ros2_nanochat.backends.gguf.kv import GGUFMemory
from ros2_nanochat.backends.gguf.memory_estimate import estimate_memory
from ros2_nanochat.backends.gguf.mmproj import Mmproj, find_mmproj
from ros2_nanochat.backends.gguf.opening import context_params, describe, load_model
from ros2_nanochat.backends.gguf.process import LogLines, interruptible
from ros2_nanochat.backends.gguf.trial import try_with
from ros2_nanochat.backends.gguf.vocabulary import GGUFText
from ros2_nanochat.backends.logits import HostLogits, Logits
from ros2_nanochat.backends.threads import ThreadChooser, fixed_threads
from ros2_nanochat.config import DEFAULT_CONTEXT, FlashAttention, ModelConfig
from ros2_nanochat.errors import BackendError, ForwardError, LoadAborted, printable, require
from ros2_nanochat.memory import MemoryEstimate
from ros2_nanochat.processor import IdleCores, physical_cores, threads_wait_briefly
from ros2_nanochat.prompt import Preceding

_BATCH = 512
# From 64 rows of one sequence on, flash attention on the CPU uses another method and rounds differently.
# Below that, the logits are the same bit for bit however a prompt is cut and whatever else is in the batch,
# so an edited or shared KV equals a fresh one. One exception remains: a single row after more than 256
# entries, whose KV llama.cpp divides among its threads (ggml_compute_forward_flash_attn_ext_f16).
_EXACT_CHUNK = 63


def _llama_cpp():
    with threads_wait_briefly('llama_cpp'):
        return require('llama_cpp', 'gguf')


class GGUFBackend(Backend):
    """A GGUF file on llama.cpp: on the CPU, or with `gpu_layers` on a GPU that llama-cpp-python supports."""

    max_batch_tokens = _BATCH

    def __init__(self, path: str, config: ModelConfig):
        super().__init__(path, config)
        package = _llama_cpp()
        self._api, self._version = package.llama_cpp, package.__version__
        self._model = self._context = None
        self._kv: GGUFMemory | None = None
        self._decoder: Decoder | None = None
        # with layers on a GPU, the CPU has little to do
        fixed = config.threads or config.gpu_layers
        cores = physical_cores(self.cpus)
        self._threads = None if fixed else ThreadChooser(cores, idle=IdleCores(cores, self.cpus))
        self._abort_flag = ctypes.create_string_buffer(2)
        self._embeddings: EmbeddingTable | None = None
        self._images: GGUFImages | None = None
        self._text: GGUFText | None = None

    @classmethod
    def estimate(cls, path: str, config: ModelConfig) -> MemoryEstimate:
        weights, metadata = check_gguf(path), read_metadata(path)
        check_metadata(path, metadata)
        config = with_choice(config, metadata, _llama_cpp)
        return estimate_memory(path, weights, metadata, config, _BATCH, _llama_cpp)

    # --- opening ---

    def open(self, progress: Callable[[float], None] | None = None) -> None:
        with interruptible(self.abort):
            check_gguf(self.path)
            head = read_head(self.path)
            metadata = head.metadata
            check_metadata(self.path, metadata)
            check_tensors(self.path, head)
            self.config = with_choice(self.config, metadata, _llama_cpp)
            vision = find_mmproj(self.path, self.config)
            vision = try_with(vision, self.path, self.config, self._version, lambda: self._aborted)
            self._open(metadata, vision, progress)

    def open_on_trial(self) -> None:
        """Open the model as `open` does, in a process that llama.cpp may end."""
        self._open(read_metadata(self.path), find_mmproj(self.path, self.config), None, on_trial=True)
        if self._images is not None:
            self._images.try_pictures()

    def try_narrow_pictures(self) -> None:
        """Embed narrow pictures, after `open_on_trial`."""
        if self._images is not None:
            self._images.try_pictures(narrow=True)

    def _open(
        self,
        metadata: dict,
        vision: Mmproj | None,
        progress: Callable[[float], None] | None,
        on_trial: bool = False,
    ) -> None:
        try:
            check = FirstCheck(self.path, self._api, self._version)
            self._model = load_model(
                self._api, self.path, self.config.gpu_layers, progress, lambda: self._aborted, on_trial
            )
            if vision is not None:
                longest = lambda: self.max_chunk_tokens or self.max_batch_tokens  # noqa: E731
                self._images = open_images(self._api, self._model, vision, self.config, longest)
            if self._images is not None and vision is not None and not vision.late:
                self.max_batch_tokens = max(_BATCH, self._images.largest_whole)
            self._open_context(metadata)
            self._text = GGUFText(self._api, self._model, metadata)
            self._embeddings = EmbeddingTable(self.path, str(metadata.get('general.architecture', '')))
            kv_per_token, _, _ = architecture_memory(metadata, self.max_batch_tokens)
            self.info = describe(
                self._api, self._model, self.path, metadata, self._text, self._context_length, kv_per_token
            )
            form = f'flash attention {self.config.flash_attention}, 16 bits, with positions'
            self._kv = GGUFMemory(self._api, self._context, self.max_sequences, kv_per_token, form)
            self._decoder = Decoder(
                self._api,
                self._context,
                self._kv,
                self.info,
                self.max_batch_tokens,
                self.max_sequences,
                self._threads,
            )
            check.run(self, always=on_trial)
            self.trims_exactly = self._context_length > 1 and self._goes_back()
        except BaseException:
            self.close()
            if self._aborted:
                raise LoadAborted(f'loading {self.path} was stopped') from None
            raise

    def _open_context(self, metadata: dict) -> None:
        api, config = self._api, self.config
        architecture = printable(metadata.get('general.architecture', 'unknown'))
        check_loaded(api, self._model, self.path, architecture)
        length = config.max_context_len or min(api.llama_model_n_ctx_train(self._model), DEFAULT_CONTEXT)
        self.max_sequences = min(config.max_sequences, api.llama_max_parallel_sequences())
        if config.kv_tokens is not None:  # each stream has a whole context
            self.max_sequences = min(self.max_sequences, max(1, config.kv_tokens // length))
        self.kv_capacity = length * self.max_sequences
        self._context_length = length
        if config.flash_attention is FlashAttention.ON and not config.gpu_layers:
            self.max_chunk_tokens = _EXACT_CHUNK
        params = context_params(api, config, length, self.max_sequences, self.max_batch_tokens)
        # llama.cpp calls this for every node of the graph. strlen of a buffer needs no GIL: it returns 0
        # until abort() writes to the buffer.
        params.abort_callback = ctypes.cast(ctypes.CDLL(None).strlen, type(params.abort_callback))
        params.abort_callback_data = ctypes.addressof(self._abort_flag)
        log = LogLines(api)
        with log:
            self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise BackendError(
                f'no memory for a context of {config.kv_tokens} tokens: {log.reason()}; ask for less with'
                ' max_context_len'
            )
        if not api.llama_get_memory(self._context):
            raise no_memory_of_text(self.path, architecture)

    def _goes_back(self) -> bool:
        """Whether a sequence can be trimmed: a recurrent state cannot."""
        seq = self.new_sequence()
        try:
            self.forward([Chunk(seq, ids=np.zeros(2, np.int64))])
            return self.trim(seq, 1) == 1
        finally:
            self.free(seq)

    # --- text ---

    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        return self._vocabulary.tokenize(text, special, preceding)

    def detokenizer(self, preceding: Preceding = Preceding.START) -> Detokenizer:
        return self._vocabulary.detokenizer(preceding)

    @property
    def _vocabulary(self) -> GGUFText:
        if self._text is None:
            raise BackendError('the model is not open')
        return self._text

    def embed_tokens(self, ids: Sequence[int]) -> np.ndarray:
        if self._embeddings is None or not self._model:
            raise BackendError('the model is closed')
        return self._embeddings.rows(ids, self.info.embedding_size)

    @property
    def image_embedder(self) -> GGUFImages | None:
        return self._images

    # --- sequences ---

    @property
    def _sequences(self) -> GGUFMemory:
        if self._kv is None:
            raise BackendError('the model is not open')
        return self._kv

    def new_sequence(self) -> int:
        return self._sequences.new()

    def fork(self, seq: int, n: int) -> tuple[int, int]:
        return self._sequences.fork(seq, n)

    def trim(self, seq: int, n: int) -> int:
        return self._sequences.trim(seq, n)

    def free(self, seq: int) -> None:
        self._sequences.free(seq)

    def save(self, seq: int) -> bytes:
        return self._sequences.save(seq)

    def load(self, data: bytes) -> int | None:
        return self._sequences.load(data)

    @property
    def kv_used(self) -> int:
        return self._kv.used if self._kv else 0

    # --- forward ---

    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        kv, decoder = self._kv, self._decoder
        if kv is None or decoder is None:
            raise BackendError('the model is not open')
        before = [kv.length(chunk.seq) for chunk in chunks]
        try:
            if all(chunk.embeddings is None for chunk in chunks):
                return decoder.decode(chunks)
            return self._in_runs(chunks, decoder)
        except BackendError as error:
            if isinstance(error, LoadAborted):
                self._abort_flag[0] = b'\0'
            committed = [kv.recount(chunk.seq) - start for chunk, start in zip(chunks, before)]
            raise ForwardError(str(error), committed) from error

    @staticmethod
    def _in_runs(chunks: Sequence[Chunk], decoder: Decoder) -> Logits:
        plain = [i for i, chunk in enumerate(chunks) if chunk.embeddings is None]
        # a batch of llama.cpp holds ids or embeddings, and bidirectional attention applies to all of it
        runs = [plain] if plain else []
        runs += [[i] for i, chunk in enumerate(chunks) if chunk.embeddings is not None]
        rows: dict[int, np.ndarray] = {}
        for run in runs:
            logits = decoder.decode([chunks[i] for i in run]).numpy().copy()
            for i in run:
                rows[i], logits = logits[: chunks[i].num_logits], logits[chunks[i].num_logits :]
        return HostLogits(np.concatenate([rows[i] for i in range(len(chunks))]))

    def stats(self) -> dict[str, int | str]:
        """Return `threads` that decode, `threads_prefill`, `threads_reason`, and `flash_attention`."""
        return {**self._thread_stats(), 'flash_attention': str(self.config.flash_attention)}

    def _thread_stats(self) -> dict[str, int | str]:
        if self._threads is not None:
            return self._threads.stats()
        if self.config.threads:
            return fixed_threads(self.config.threads, 'threads is set')
        return fixed_threads(physical_cores(self.cpus), 'the physical cores')

    # --- the end ---

    @property
    def _aborted(self) -> bool:
        return self._abort_flag[0] != b'\0'

    def abort(self) -> None:
        self._abort_flag[0] = b'x'

    def close(self) -> None:
        self._kv = self._decoder = None
        if self._images is not None:
            self._images.close()
        if self._context:
            self._api.llama_free(self._context)
            self._context = None
        if self._text is not None:
            self._text.close()
        if self._model:
            self._api.llama_model_free(self._model)
            self._model = None
        if self._embeddings is not None:
            self._embeddings.close()
