"""What a conversation holds, and how much of it is in the model's KV cache now.

`KVCache` is the user's end: a list of entries that can be cut and continued. `Sequence` is the engine's end:
the handle in the backend and the entries computed under it. The two may differ at any time (an edit, an
eviction); their common prefix is the part of the KV that is still valid.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ros2_nanochat.backends.base import Backend

if TYPE_CHECKING:
    from ros2_nanochat.engine.request import Request


class EntryBuffer:
    """A list of int64 entries that grows without copying at each step.

    Attributes:
        length: The number of entries.
    """

    def __init__(self, entries: np.ndarray = np.empty(0, np.int64), room: int = 64):
        self._data = np.empty(len(entries) + room, np.int64)
        self._data[: len(entries)] = entries
        self._cells = memoryview(self._data)  # quicker for single entries
        self.length = len(entries)

    def __len__(self) -> int:
        return self.length

    def extend(self, entries) -> None:
        """Append several entries."""
        end = self.length + len(entries)
        if end > len(self._data):
            grown = np.empty(2 * end, np.int64)
            grown[: self.length] = self.view()
            self._data, self._cells = grown, memoryview(grown)
        self._data[self.length : end] = entries
        self.length = end

    def append(self, entry: int) -> None:
        """Append one entry; the common case, at each step of each conversation."""
        length = self.length
        if length == len(self._cells):
            self.extend((entry,))
            return
        self._cells[length] = entry
        self.length = length + 1

    def follow(self, other: EntryBuffer) -> None:
        """Append the entry that a longer buffer has at index `length`."""
        length = self.length
        if length == len(self._cells):
            self.extend((other._cells[length],))
            return
        self._cells[length] = other._cells[length]
        self.length = length + 1

    def cut(self, length: int) -> None:
        """Keep the first `length` entries."""
        self.length = min(self.length, length)

    def view(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the entries from `start` up to `stop` (which is at most `length`, the default), [n] int64,
        without copying; valid until the next change.
        """
        return self._data[start : self.length if stop is None else stop]


@dataclass(frozen=True)
class Parked:
    """KV in host memory.

    Attributes:
        data: What `Backend.save` gave.
        entries: The entries that it holds.
    """

    data: bytes
    entries: np.ndarray


class Sequence:
    """A conversation as the engine sees it. Only the engine's thread uses it, except for `abandoned`."""

    _serial = itertools.count()

    def __init__(self):
        self.serial = next(self._serial)
        self.handle: int | None = None
        self.held = EntryBuffer()
        self.parked: Parked | None = None
        self.request: Request | None = None
        self.last_used = 0.0
        self.abandoned = False
        self.background = False  # whether the last request was background work

    def saved(self, backend: Backend) -> Parked | None:
        """Return a copy of its KV; None if there is none, or the backend cannot save it."""
        if self.handle is None or not len(self.held):
            return self.parked
        data = backend.save(self.handle)
        return None if data is None else Parked(data, self.held.view().copy())

    @property
    def placed(self) -> int:
        """The handle of a sequence that has one.

        Raises:
            RuntimeError: It has none.
        """
        if self.handle is None:
            raise RuntimeError('the sequence has no place in the model')
        return self.handle
