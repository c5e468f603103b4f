"""The arrays of a `llama_batch`, filled again for each forward."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.positions import Positions


class Batch:
    """A `llama_batch` whose arrays are NumPy's.

    Args:
        api: `llama_cpp.llama_cpp`.
        size: Maximum number of entries.
        max_sequences: Maximum number of sequences.
        axes: Positions of an embedding: 4 for M-RoPE, else 1.
    """

    def __init__(self, api, size: int, max_sequences: int, axes: int = 1):
        self._tokens = np.zeros(size, np.int32)
        self._axes = axes
        self._positions = np.zeros(axes * size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        self._ones = np.ones(size, np.int32)
        self._ids = np.arange(max_sequences, dtype=np.int32)
        self._addresses = [self._ids.ctypes.data + 4 * slot for slot in range(max_sequences)]
        self._id_pointers = np.zeros(size, np.uintp)  # for each entry, a pointer to its sequence id
        arrays = self._tokens, self._positions, self._wanted, self._id_pointers
        self._cells = [memoryview(array) for array in arrays]  # quicker than NumPy for single entries
        self._rows: np.ndarray | None = None  # keeps the embeddings alive while llama.cpp reads them
        self._slots: Sequence[int] | None = None  # of the last batch, if `fill_ids` filled it
        batch = api.llama_batch()
        fields = dict(api.llama_batch._fields_)
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
        )  # batch.token itself would follow later changes of the field

    def fill(
        self,
        chunks: Sequence[Chunk],
        slots: Sequence[int],
        starts: Sequence[int],
        embeddings: np.ndarray | None,
    ):
        """Return the `llama_batch` of some chunks.

        Args:
            chunks: The chunks.
            slots: The llama.cpp sequence of each.
            starts: The first position of each.
            embeddings: [n, d] of all of them, in place of ids.
        """
        at, self._slots = 0, None
        tokens, positions, wanted, id_pointers = self._cells
        several = embeddings is not None and self._axes > 1
        rows = (
            self._positions[: self._axes * sum(map(len, chunks))].reshape(self._axes, -1) if several else None
        )
        for chunk, slot, start in zip(chunks, slots, starts):
            length = len(chunk)
            if length == 1 and chunk.ids is not None:  # nearly always
                id_pointers[at] = self._addresses[slot]
                tokens[at], positions[at], wanted[at] = chunk.ids[0], start, chunk.num_logits
                at += 1
                continue
            end = at + length
            self._id_pointers[at:end] = self._addresses[slot]
            if chunk.ids is not None:
                self._tokens[at:end] = chunk.ids
            if rows is not None and chunk.positions is None:  # as libmtmd counts them
                rows[:, at:end] = np.arange(start, start + length)
            elif rows is not None:  # time, height, width, and an axis that is not used
                rows[:3, at:end] = start + np.asarray(chunk.positions)[:3]
                rows[3:, at:end] = 0
            else:
                self._positions[at:end] = np.arange(start, start + length)
            self._wanted[at:end] = 0
            if chunk.num_logits:
                self._wanted[end - chunk.num_logits : end] = 1
            at = end
        self._point_at(embeddings)
        self._batch.n_tokens = at
        return self._batch

    def fill_ids(self, ids: Sequence[int], slots: Sequence[int], positions: Sequence[Positions]):
        """Return the `llama_batch` of one id of each sequence, with logits. Most batches are of this kind.

        Args:
            ids: The id of each.
            slots: The llama.cpp sequence of each. The same object as in the call before means the same ones.
            positions: The positions of each, before the id.
        """
        tokens, places, wanted, id_pointers = self._cells
        if slots is not self._slots:
            self._slots = None
            self._point_at(None)
            for at, slot in enumerate(slots):
                id_pointers[at], wanted[at] = self._addresses[slot], 1
            self._batch.n_tokens, self._slots = len(slots), slots
        for at, token_id in enumerate(ids):
            tokens[at], places[at] = token_id, positions[at].next
        return self._batch

    def _point_at(self, embeddings: np.ndarray | None) -> None:
        """Let llama.cpp read some embeddings, or the ids."""
        batch = self._batch
        if embeddings is not None:
            self._rows = np.ascontiguousarray(embeddings, np.float32)
            batch.token, batch.embd = None, ctypes.cast(self._rows.ctypes.data, self._float_pointer)
        elif self._rows is not None:  # else it points at the ids already
            batch.token, batch.embd, self._rows = self._token_pointer, None, None
