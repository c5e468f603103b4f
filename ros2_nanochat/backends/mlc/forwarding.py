"""A forward on a compiled model: cuts chunks into calls of its library, and keeps the KV of its sequences."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ros2_nanochat.backends.base import Backend, Chunk
from ros2_nanochat.backends.logits import HostLogits, Logits
from ros2_nanochat.backends.mlc import sampling as mlc_sampling
from ros2_nanochat.backends.mlc.arrays import DeviceLogits, IdArrays, to_bfloat16
from ros2_nanochat.backends.mlc.calls import ChunkSlice, split
from ros2_nanochat.backends.mlc.tvm_runtime import Runtime
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, ForwardError, one_line


class MLCForward(Backend):
    """The running part of `MLCBackend`, which opens what this class uses."""

    _runtime: Runtime
    _sampler: mlc_sampling.DeviceSampler
    _device_ids: IdArrays
    _functions: dict[str, Any]
    _prefill: tuple[Any, Any]
    _extend: tuple[Any, Any]
    _context_length: int
    _vocabulary: int
    _width: int
    _dtype: str
    _logits_width: int
    _most_rows: int
    _most_sequences: int
    _most_decoding: int

    def __init__(self, path: str, config: ModelConfig):
        super().__init__(path, config)
        # any thread may call `embed_tokens`, and a virtual machine runs one function at a time
        self._lock = threading.Lock()
        self._aborted = threading.Event()
        self._kv: Any = None
        self._params: Any = None
        self._threads_of: int | None = None

    # --- sequences ---

    def new_sequence(self) -> int:
        return self._kv.new()

    def fork(self, seq: int, n: int) -> tuple[int, int]:
        return self._kv.fork(seq, n), n

    def trim(self, seq: int, n: int) -> int:
        return self._kv.trim(seq, n)

    def free(self, seq: int) -> None:
        self._kv.free(seq)

    @property
    def kv_used(self) -> int:
        return self._kv.used if self._kv else 0

    # --- forward ---

    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        committed = [0] * len(chunks)
        try:
            with self._lock:
                return self._forward(chunks, committed)
        except Exception as error:  # also of the library's kernels, which raise tvm's own classes
            raise ForwardError(one_line(error), committed) from error

    def _forward(self, chunks: Sequence[Chunk], committed: list[int]) -> Logits:
        if self.config.threads and self._threads_of != threading.get_ident():
            self._threads_of = threading.get_ident()
            self._runtime.set_threads(self.config.threads)
        decoding = plain = True
        lengths, most = self._kv.lengths, self._context_length
        for chunk in chunks:
            n = len(chunk)
            if chunk.positions is not None or chunk.bidirectional:
                raise BackendError(
                    f'{self.config.model or self.path} takes no positions on more than one axis and no'
                    ' bidirectional attention through mlc; use api=hf for this model'
                )
            if lengths[chunk.seq] + n > most:
                raise BackendError(
                    f'{n} entries do not fit behind {lengths[chunk.seq]}: the context holds {most}'
                )
            decoding = decoding and n == 1
            plain = plain and chunk.num_logits == 1 and chunk.embeddings is None
        if decoding and plain and self._functions['decode'] and 0 < len(chunks) <= self._most_decoding:
            return self._step(chunks, committed)
        sequences = self._most_decoding if decoding else self._most_sequences
        runs = split(chunks, sequences, self.max_batch_tokens, self._most_rows)
        return self._logits([self._run(chunks, slices, committed) for slices in runs])

    def _step(self, chunks: Sequence[Chunk], committed: list[int]) -> Logits:
        """One token for each of some sequences: the most frequent call."""
        seqs, count = [chunk.seq for chunk in chunks], len(chunks)
        ids = [int(_ids(chunk)[0]) for chunk in chunks]
        if min(ids) < 0 or max(ids) >= self._vocabulary:
            self._checked(np.array(ids))
        self._stop_if_asked()
        embeddings = self._runtime.view(
            self._functions['embed'](self._device_ids(ids), self._params), (count, 1, self._width)
        )
        with self._kv.appending(seqs, [1] * count):
            logits = self._functions['decode' if count == 1 else 'batch_decode'](
                embeddings, self._kv.state, self._params
            )[0]
        committed[:] = [1] * count
        if not self._runtime.on_cpu:
            return DeviceLogits(self._runtime, logits, self._sampler)
        return _on_host(self._runtime.host(logits).reshape(count, -1))

    def _run(self, chunks: Sequence[Chunk], slices: list[ChunkSlice], committed: list[int]):
        """One call of the library; returns `(logits, the needed rows of it, or None for all)`."""
        self._stop_if_asked()
        seqs = [chunks[part.index].seq for part in slices]
        counts = [part.stop - part.start for part in slices]
        embeddings = self._embed_slices(chunks, slices)
        extends = any(self._kv.lengths[seq] for seq in seqs)
        with self._kv.appending(seqs, counts):
            logits, rows = self._call(embeddings, slices, counts, extends)
        for part, count in zip(slices, counts):
            committed[part.index] += count
        return logits, rows

    def _stop_if_asked(self) -> None:
        if self._aborted.is_set():
            self._aborted.clear()
            raise BackendError('the forward was stopped')

    def _call(self, embeddings, slices: list[ChunkSlice], counts: list[int], extends: bool):
        total, several = sum(counts), len(slices) > 1
        view, kv, params = self._runtime.view, self._kv.state, self._params
        decode = self._functions['batch_decode' if several else 'decode']
        if total == len(slices) and decode:
            logits = decode(view(embeddings, (total, 1, self._width)), kv, params)[0]
            return logits, None if all(part.rows for part in slices) else [
                i for i, part in enumerate(slices) if part.rows
            ]
        one, batch = self._extend if extends else self._prefill
        rows = sum(part.rows for part in slices)
        embeddings = view(embeddings, (1, total, self._width))
        if not several and rows <= 1:
            return one(embeddings, kv, params)[0], None if rows else []
        ends = np.cumsum(counts)
        positions = np.concatenate([np.arange(end - part.rows, end) for part, end in zip(slices, ends)])
        if not rows:
            positions = ends[-1:] - 1  # a call needs at least one
        positions = self._runtime.from_numpy(positions.astype(np.int32))
        return batch(embeddings, positions, kv, params)[0], None if rows else []

    def _logits(self, runs: list[tuple]) -> Logits:
        if not runs:
            return HostLogits(np.empty((0, self._logits_width), np.float32))
        if len(runs) == 1 and not self._runtime.on_cpu and runs[0][1] is None:
            return DeviceLogits(self._runtime, runs[0][0], self._sampler)
        host = []
        for logits, rows in runs:
            array = self._runtime.host(logits)
            array = array.reshape(-1, array.shape[-1])
            host.append(array if rows is None else array[rows])
        return _on_host(host[0] if len(host) == 1 else np.concatenate(host))

    # --- embeddings ---

    def _embed(self, ids: np.ndarray):
        return self._functions['embed'](self._device_ids(ids), self._params)

    def _embed_slices(self, chunks: Sequence[Chunk], slices: list[ChunkSlice]):
        """Device array [n, d] of all entries of a run; the library looks up the ids."""
        if all(chunks[part.index].embeddings is None for part in slices):
            ids = [_ids(chunks[part.index])[part.start : part.stop] for part in slices]
            return self._embed(self._checked(np.asarray(ids[0]) if len(ids) == 1 else np.concatenate(ids)))
        rows = [self._rows(chunks[part.index], part) for part in slices]
        return self._upload(rows[0] if len(rows) == 1 else np.concatenate(rows))

    def _rows(self, chunk: Chunk, part: ChunkSlice) -> np.ndarray:
        if chunk.embeddings is None:
            ids = self._checked(np.asarray(_ids(chunk)[part.start : part.stop]))
            return np.asarray(self._runtime.host(self._embed(ids)), np.float32)
        rows = np.asarray(chunk.embeddings[part.start : part.stop], np.float32)
        if rows.ndim != 2 or rows.shape[1] != self._width:
            raise BackendError(f'embeddings must have the shape [n, {self._width}], not {list(rows.shape)}')
        return rows

    def _upload(self, rows: np.ndarray):
        rows = np.ascontiguousarray(
            rows.astype(self._dtype) if self._dtype != 'bfloat16' else to_bfloat16(rows)
        )
        return self._runtime.from_bytes(rows.reshape(-1).view(np.uint8), rows.shape, self._dtype)

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        """Check ids: the library does not, and would read beyond its memory."""
        if len(ids) and (ids.min() < 0 or ids.max() >= self._vocabulary):
            raise BackendError(
                f'token ids go from 0 to {self._vocabulary - 1}, and one is'
                f' {ids.min() if ids.min() < 0 else ids.max()}'
            )
        return ids


def _on_host(rows: np.ndarray) -> HostLogits:
    return HostLogits(rows if rows.dtype == np.float32 else rows.astype(np.float32))


def _ids(chunk: Chunk) -> np.ndarray:
    assert chunk.ids is not None  # it has no embeddings
    return chunk.ids
