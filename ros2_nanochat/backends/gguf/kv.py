"""The KV of sequences in a llama.cpp context: creates, forks, trims, saves and moves them."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.backends.gguf.slots import MovePolicy, Slots
from ros2_nanochat.backends.positions import Positions
from ros2_nanochat.errors import BackendError
from ros2_nanochat.memory import LARGE_BLOCK

_log = logging.getLogger(__name__)
_FORM = 8  # bytes that identify the form of saved KV
_COPY_BYTES_PER_SECOND = 2e9  # used until a move was measured


class Layout(NamedTuple):
    """Where sequences that run together are.

    Attributes:
        seqs: Their handles.
        version: `Slots.version` at that time.
        pieces: In how many pieces llama.cpp computes them.
        slots: Their llama.cpp numbers, ascending.
        order: Index in `seqs` of each of `slots`; None if they are in order.
        places: Index in `slots` of each of `seqs`, [n]; None if they are in order.
        positions: The positions of each of `slots`.
    """

    seqs: list[int]
    version: int
    pieces: int
    slots: list[int]
    order: list[int] | None
    places: np.ndarray | None
    positions: list[Positions]


class GGUFMemory:
    """Sequences by handle.

    Args:
        api: `llama_cpp.llama_cpp`.
        context: Its `llama_context`.
        max_sequences: Number of its streams.
        bytes_per_entry: Bytes of KV of one entry.
        form: How the context keeps KV, in words. Saved KV of another form is not loaded.
    """

    def __init__(self, api: Any, context: Any, max_sequences: int, bytes_per_entry: int, form: str = ''):
        self._api, self._context = api, context
        self._memory = api.llama_get_memory(context)
        self._form = hashlib.blake2b(form.encode(), digest_size=_FORM).digest()
        self._slots = Slots(max_sequences)
        self._policy = MovePolicy(2 * bytes_per_entry / _COPY_BYTES_PER_SECOND)
        self._positions: dict[int, Positions] = {}
        self._layout: Layout | None = None  # the last one
        self.moves = 0
        """How often sequences changed places."""

    # --- one sequence ---

    def new(self) -> int:
        """See `Backend.new_sequence`."""
        seq = self._slots.add()
        self._positions[seq] = Positions()
        return seq

    def length(self, seq: int) -> int:
        """Return the number of entries of a handle."""
        return self._positions[seq].length

    @property
    def used(self) -> int:
        """The number of entries of all sequences. Any thread may ask."""
        return sum(positions.length for positions in list(self._positions.values()))

    def next_positions(self, chunks: Sequence[Chunk]) -> list[int]:
        """Return the position of the first entry of each chunk: less than the number of entries before it
        after a picture with positions on several axes.
        """
        return [self._positions[chunk.seq].next for chunk in chunks]

    def append(self, chunks: Sequence[Chunk]) -> int:
        """Record that chunks were decoded; return how many rows of logits they gave."""
        outputs = 0
        for chunk in chunks:
            positions = self._positions[chunk.seq]
            positions.append(len(chunk), chunk.advance, chunk.positions is not None)
            outputs += chunk.num_logits
        return outputs

    @staticmethod
    def append_one_each(layout: Layout) -> None:
        """Record that one id of each sequence was decoded."""
        for positions in layout.positions:
            positions.length += 1
            positions.next += 1

    def fork(self, seq: int, n: int) -> tuple[int, int]:
        """See `Backend.fork`."""
        copy = self.new()
        try:
            data = self._state(
                self._slots[seq]
            )  # copies only the cells in use; llama.cpp would copy a whole context
        except MemoryError:
            return copy, 0
        if not self._restore(self._slots[copy], data):
            return copy, 0
        self._positions[copy] = self._positions[seq].duplicate()
        return copy, self.trim(copy, n)

    def trim(self, seq: int, n: int) -> int:
        """See `Backend.trim`."""
        positions = self._positions[seq]
        if n < positions.length:
            slot = self._slots[seq]
            positions.trim_by_position(n)
            if not self._api.llama_memory_seq_rm(self._memory, slot, positions.next, -1):
                self._clear(slot)  # a recurrent state cannot go back: start again
                positions.trim(0)
        return positions.length

    def free(self, seq: int) -> None:
        """See `Backend.free`."""
        self._clear(self._slots[seq])
        self._slots.remove(seq)
        del self._positions[seq]

    def save(self, seq: int) -> bytes:
        """See `Backend.save`."""
        head = np.array(self._positions[seq].to_list(), '<i8').tobytes()
        size = (len(head) // 8).to_bytes(8, 'little')
        return self._form + size + head + self._state(self._slots[seq]).tobytes()

    def load(self, data: bytes) -> int | None:
        """See `Backend.load`."""
        if data[:_FORM] != self._form:
            return None
        seq, start = self.new(), _FORM + 8
        size = int.from_bytes(data[_FORM:start], 'little')
        positions = Positions.of(np.frombuffer(data, '<i8', size, start).tolist())
        if self._restore(self._slots[seq], np.frombuffer(data, np.uint8, offset=start + 8 * size)):
            self._positions[seq] = positions
            return seq
        self.free(seq)
        return None

    def recount(self, seq: int) -> int:
        """Return the number of entries that a sequence holds after a failed forward."""
        slot, positions = self._slots[seq], self._positions[seq]
        if positions.spans:  # llama.cpp has removed by position what failed: also a picture that was begun
            positions.trim_by_position(positions.length)
            self._api.llama_memory_seq_rm(self._memory, slot, positions.next, -1)
        else:
            positions.append(self._api.llama_memory_seq_pos_max(self._memory, slot) + 1 - positions.length)
        return positions.length

    # --- several ---

    def layout(self, seqs: list[int]) -> Layout:
        """Move sequences that run together next to one another, if that pays; return where they are."""
        known = self._layout
        if known is not None and known.seqs == seqs and known.version == self._slots.version:
            return known
        pieces = self._gather(seqs)
        slots = [self._slots[seq] for seq in seqs]
        ascending = sorted(slots)
        order = places = None
        if slots != ascending:
            order = sorted(range(len(seqs)), key=slots.__getitem__)
            places = np.argsort(order)
        positions = [self._positions[seq] for seq in (seqs if order is None else [seqs[i] for i in order])]
        found = Layout(seqs, self._slots.version, pieces, ascending, order, places, positions)
        self._layout = found if pieces == 1 else None  # else each step adds to what is lost by the pieces
        return found

    def _gather(self, seqs: Sequence[int]) -> int:
        """Return the number of pieces in which llama.cpp computes some sequences, after moving them."""
        pieces = self._slots.pieces(seqs)
        if pieces == 1:
            return 1
        lengths = {seq: positions.length for seq, positions in self._positions.items()}
        exchanges, entries = self._slots.plan(seqs, lengths)
        if not self._policy.pays(pieces, entries):
            return pieces
        began = time.perf_counter()
        for first, second in exchanges:
            if not self._exchange(first, second):
                break
        self._policy.moved(entries, time.perf_counter() - began)
        return self._slots.pieces(seqs)

    def stepped(self, pieces: int, seconds: float) -> None:
        """Record the time of a step."""
        self._policy.stepped(pieces, seconds)

    def _exchange(self, first: int, second: int) -> bool:
        """Exchange the KV of two slots; False if there is not enough memory."""
        filled = [
            slot
            for slot in (first, second)
            if (seq := self._slots.at(slot)) is not None and self.length(seq) > 0
        ]
        try:
            states = {slot: self._state(slot) for slot in filled}
        except MemoryError:
            _log.warning('not enough memory to move conversations that run together: they run slower')
            return False
        for slot in filled:
            self._clear(slot)
        if not all(self._restore(first + second - slot, state) for slot, state in states.items()):
            for slot in (first, second):
                self._clear(slot)
            if not all(self._restore(slot, state) for slot, state in states.items()):
                raise BackendError('llama.cpp does not take back the KV cache of a conversation')
            return False
        self._slots.exchange(first, second)
        self.moves += 1
        return True

    # --- llama.cpp ---

    def _state(self, slot: int) -> np.ndarray:
        size = self._api.llama_state_seq_get_size(self._context, slot)
        # A smaller block would leave a hole in the node's heap, which later allocations keep open. Pages that
        # are not written use no memory. A copy of short KV uses up to 2 MB, one huge page.
        state = np.empty(max(size, LARGE_BLOCK), np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return state[: self._api.llama_state_seq_get_data(self._context, pointer, size, slot)]

    def _restore(self, slot: int, state: np.ndarray) -> bool:
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(self._api.llama_state_seq_set_data(self._context, pointer, len(state), slot))

    def _clear(self, slot: int) -> None:
        self._api.llama_memory_seq_rm(self._memory, slot, -1, -1)
