"""One forward on a llama.cpp context: chunks in, rows of logits out."""

from __future__ import annotations

import ctypes
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.gguf.batch import Batch
from ros2_nanochat.backends.gguf.kv import GGUFMemory, Layout
from ros2_nanochat.backends.logits import HostLogits
from ros2_nanochat.backends.threads import ThreadChooser
from ros2_nanochat.errors import BackendError, LoadAborted
from ros2_nanochat.model_info import ModelInfo

_log = logging.getLogger(__name__)
_REPORT_EVERY = 10.0  # seconds
_STOPPED, _NO_ROOM = 2, 1  # return values of llama_decode
_SEVERAL_AXES = (8, 40)  # LLAMA_ROPE_TYPE_MROPE and _IMROPE, arXiv:2409.12191, section 2.1


class Decoder:
    """Runs chunks whose sequences are in `kv`.

    Args:
        api: `llama_cpp.llama_cpp`.
        context: Its `llama_context`.
        kv: The sequences.
        info: Facts about the model.
        size: Maximum number of entries in a batch.
        max_sequences: Maximum number of sequences.
        threads: Chooses the number of threads; None leaves it unchanged.
    """

    def __init__(
        self,
        api: Any,
        context: Any,
        kv: GGUFMemory,
        info: ModelInfo,
        size: int,
        max_sequences: int,
        threads: ThreadChooser | None = None,
    ):
        self._api, self._context, self._kv, self._info, self._size = api, context, kv, info, size
        model = api.llama_get_model(context)
        self._axes = 4 if api.llama_model_rope_type(model) in _SEVERAL_AXES else 1
        self._width = getattr(api, 'llama_model_n_embd_inp', api.llama_model_n_embd)(model)
        self._batch = Batch(api, size, max_sequences, self._axes)
        self._threads, self._threads_set = threads, 0
        self._reported, self._reported_at = 0, -math.inf
        # `api.llama_get_logits`, which would return a new pointer object each time
        function = ctypes.cast(api.llama_get_logits, ctypes.c_void_p).value
        assert function is not None
        self._logits_at = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(function)
        self._seen_at, self._seen = 0, np.empty((0, 0), np.float32)  # the logits of the last forward

    def decode(self, chunks: Sequence[Chunk]) -> HostLogits:
        """Append chunks of ids, or one chunk of embeddings, which may be bidirectional.

        Returns:
            Their logits in the order of the chunks, valid until the next call.

        Raises:
            BackendError: It failed; the lengths of the sequences must be counted again.
        """
        layout = self._kv.layout([chunk.seq for chunk in chunks])
        order, ordered = layout.order, chunks
        if order is not None:
            ordered = [chunks[i] for i in order]
        ids = [
            chunk.ids[0]
            for chunk in ordered
            if chunk.num_logits == 1 and chunk.ids is not None and len(chunk.ids) == 1
        ]
        if len(ids) == len(chunks):
            self._check_room(layout)
            self._forward(self._batch.fill_ids(ids, layout.slots, layout.positions), len(ids), layout)
            self._kv.append_one_each(layout)
            return HostLogits(self._logits(len(ids)), layout.places)
        entries = self._check(chunks)
        rows = None if chunks[0].embeddings is None else self._rows(chunks[0])
        batch = self._batch.fill(ordered, layout.slots, self._kv.next_positions(ordered), rows)
        self._forward(batch, entries, layout, chunks[0].bidirectional)
        outputs = self._kv.append(chunks)
        if not outputs:
            return HostLogits(np.empty((0, self._info.vocab_size), np.float32))
        return HostLogits(self._logits(outputs), None if order is None else _row_order(chunks, order))

    def _forward(self, batch: Any, entries: int, layout: Layout, bidirectional: bool = False) -> None:
        threads = self._set_threads(entries)
        began = time.perf_counter()
        self._run(batch, bidirectional)
        seconds = time.perf_counter() - began
        self._kv.stepped(layout.pieces, seconds)
        if self._threads is not None:
            self._threads.record(entries, threads, seconds)
            if threads != self._reported:
                self._report(self._threads)

    def _logits(self, outputs: int) -> np.ndarray:
        """The rows [outputs, v] where llama.cpp has put them, which is nearly always the same place."""
        address = self._logits_at(self._context)
        if address != self._seen_at or outputs > self._seen.shape[0]:
            pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            self._seen = np.ctypeslib.as_array(pointer, (outputs, self._info.vocab_size))
            self._seen_at = address
        return self._seen if outputs == self._seen.shape[0] else self._seen[:outputs]

    def _set_threads(self, entries: int) -> int:
        if self._threads is None:
            return 0
        threads = self._threads.choose(entries)
        if threads != self._threads_set:
            self._threads_set = threads
            self._api.llama_set_n_threads(self._context, threads, threads)
        return threads

    def _report(self, threads: ThreadChooser) -> None:
        """Log a changed number of threads, but not each time that it goes back and forth."""
        now = time.monotonic()
        if now - self._reported_at < _REPORT_EVERY or threads.decoding == self._reported:
            return
        if self._reported:
            _log.info('decoding with %d threads, %s', threads.decoding, threads.reason)
        self._reported, self._reported_at = threads.decoding, now

    def _check_room(self, layout: Layout) -> None:
        longest = self._info.context_length
        for positions in layout.positions:
            if positions.length >= longest:
                raise BackendError(_full(1, positions.length, longest))

    def _check(self, chunks: Sequence[Chunk]) -> int:
        """Return the number of entries of chunks that can be decoded."""
        longest, entries = self._info.context_length, 0
        for chunk in chunks:
            if chunk.positions is not None and self._axes == 1:
                raise BackendError(f'{self._info.name} takes no positions on more than one axis')
            start, length = self._kv.length(chunk.seq), len(chunk)
            if start + length > longest:
                raise BackendError(_full(length, start, longest))
            entries += length
        if entries > self._size:
            raise BackendError(f'{entries} entries do not fit a batch of {self._size}')
        return entries

    def _rows(self, chunk: Chunk) -> np.ndarray:
        """The embeddings as wide as llama.cpp takes them: with those of deeper layers behind, or zeros."""
        rows = np.asarray(chunk.embeddings, np.float32)
        if chunk.deepstack is not None:
            rows = np.concatenate([rows, *np.asarray(chunk.deepstack, np.float32)], axis=1)
        if rows.shape[1] == self._info.embedding_size < self._width:
            rows = np.pad(rows, ((0, 0), (0, self._width - rows.shape[1])))
        if rows.shape[1] != self._width:
            raise BackendError(
                f'embeddings of {rows.shape[1]} do not fit {self._info.name}, whose are {self._width} wide'
            )
        return rows

    def _run(self, batch: Any, bidirectional: bool) -> None:
        if bidirectional:
            self._api.llama_set_causal_attn(self._context, False)
        try:
            code = self._api.llama_decode(self._context, batch)
        finally:
            if bidirectional:
                self._api.llama_set_causal_attn(self._context, True)
        if code == _STOPPED:
            raise LoadAborted('the forward was stopped')
        if code:
            raise BackendError(
                'the KV cache has no room; lower max_sequences or max_context_len'
                if code == _NO_ROOM
                else f'llama_decode failed with code {code}'
            )


def _full(entries: int, start: int, longest: int) -> str:
    return f'{entries} entries do not fit behind {start}: the context holds {longest}'


def _row_order(chunks: Sequence[Chunk], order: Sequence[int]) -> np.ndarray:
    """Index of each chunk's rows if the chunks are computed in this order."""
    starts, at = {}, 0
    for i in order:
        starts[i] = at
        at += chunks[i].num_logits
    return np.concatenate(
        [np.arange(starts[i], starts[i] + chunk.num_logits) for i, chunk in enumerate(chunks)]
    )
