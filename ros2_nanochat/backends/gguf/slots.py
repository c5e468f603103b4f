"""Maps handles to llama.cpp sequences, and decides which sequences to exchange.

If each sequence has its own KV stream, llama.cpp computes two sequences together only if their numbers are
consecutive. So a handle of the engine is not such a number but has a slot, and sequences that decode together
are moved to neighboring slots if that costs less than computing them in pieces.

Knows only numbers; nothing of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

_SHARE_LOST = 0.5
"""Share of a step's time that is lost by decoding in many pieces rather than one: measured 75 ms rather
than 37, for 8 sequences in 8 pieces."""
_FORESIGHT = 8
"""A set of sequences that has run for this many steps is expected to run for as many again."""
_WEIGHT = 0.2  # of the newest measurement


class Slots:
    """The slots of all handles.

    Args:
        count: The number of slots.
    """

    def __init__(self, count: int):
        self._count = count
        self._slots: dict[int, int] = {}
        self._near = 0  # the slot where sequences ran last
        self.version = 0
        """Increases when a handle is added, removed or moved."""

    def __contains__(self, handle: int) -> bool:
        return handle in self._slots

    def __getitem__(self, handle: int) -> int:
        return self._slots[handle]

    def add(self) -> int:
        """Create a handle, with the free slot nearest to those that run."""
        self.version += 1
        handle = next(i for i in range(self._count) if i not in self._slots)
        taken = set(self._slots.values())
        self._slots[handle] = min(
            (i for i in range(self._count) if i not in taken), key=lambda slot: abs(slot - self._near)
        )
        return handle

    def remove(self, handle: int) -> None:
        """Remove a handle."""
        self.version += 1
        del self._slots[handle]

    def exchange(self, first: int, second: int) -> None:
        """Exchange the contents of two slots, one of which may be free."""
        self.version += 1
        for handle, slot in list(self._slots.items()):
            if slot in (first, second):
                self._slots[handle] = first + second - slot

    def at(self, slot: int) -> int | None:
        """Return the handle of a slot; None if it is free."""
        return next((handle for handle, other in self._slots.items() if other == slot), None)

    def pieces(self, handles: Collection[int]) -> int:
        """Return in how many calls llama.cpp computes these sequences."""
        slots = sorted([self._slots[handle] for handle in handles])
        if slots:
            self._near = slots[-1]
        if len(slots) < 2:
            return 1
        return 1 + sum([after != before + 1 for before, after in zip(slots, slots[1:])])

    def plan(self, handles: Collection[int], lengths: Mapping[int, int]) -> tuple[list[tuple[int, int]], int]:
        """Find the exchanges that make some sequences neighbors.

        Args:
            handles: The sequences.
            lengths: Number of entries of each handle.

        Returns:
            Pairs of slots to exchange, and the number of entries that this moves, which is minimal.
        """
        wanted = {self._slots[handle] for handle in handles}
        entries = [0] * self._count
        for handle, slot in self._slots.items():
            entries[slot] = lengths[handle]
        best: tuple[int, list[tuple[int, int]]] | None = None
        for start in range(self._count - len(wanted) + 1):
            window = range(start, start + len(wanted))
            outside = sorted(slot for slot in wanted if slot not in window)
            holes = sorted(slot for slot in window if slot not in wanted)
            moved = sum(entries[slot] for slot in outside) + sum(entries[slot] for slot in holes)
            if best is None or moved < best[0]:
                best = moved, list(zip(outside, holes))
        return (best[1], best[0]) if best else ([], 0)


class MovePolicy:
    """Decides whether moving sequences pays, as in the ski-rental problem: wait until the loss equals the
    cost of a move, and look ahead a little if the same set has run for some time.
    """

    def __init__(self, seconds_per_entry: float):
        self._seconds_per_entry = seconds_per_entry
        self._step = 0.0
        self._lost = 0.0
        self._steady = _FORESIGHT

    def pays(self, pieces: int, entries: int) -> bool:
        """Return whether to move `entries` entries, to compute in one piece what now takes `pieces`."""
        return self._lost + self._steady * self._loss(pieces) >= entries * self._seconds_per_entry

    def moved(self, entries: int, seconds: float) -> None:
        """Record the time of a move. The next one must pay again."""
        if entries:
            self._seconds_per_entry += _WEIGHT * (seconds / entries - self._seconds_per_entry)
        self._lost = self._steady = 0

    def stepped(self, pieces: int, seconds: float) -> None:
        """Record the time of a step, and what it lost by its pieces."""
        self._step += (_WEIGHT if self._step else 1.0) * (seconds - self._step)
        if pieces > 1:
            self._lost += self._loss(pieces)
        if self._steady < _FORESIGHT:
            self._steady += 1

    def _loss(self, pieces: int) -> float:
        return _SHARE_LOST * self._step * (1 - 1 / pieces)
