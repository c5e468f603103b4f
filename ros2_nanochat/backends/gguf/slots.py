"""Which llama.cpp sequence each of our sequences is, and which of them should change places.

With a KV stream of its own for each sequence, llama.cpp computes two sequences together only if their numbers
follow one another. Handles that the engine holds are therefore not these numbers: each handle has a slot, and
what decodes together is brought into neighbouring slots when that costs less than computing it in pieces.

Knows numbers only; nothing of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

_SHARE_LOST = 0.5
"""Of a step's time, about what decoding in very many pieces costs more than in one: 75 ms were measured
against 37, for 8 sequences in 8 pieces of one."""
_FORESIGHT = 8
"""Steps that a set of sequences is expected to go on for, once it has for as many."""
_WEIGHT = 0.2  # of the newest measurement


class Slots:
    """The slots of all handles. count: how many slots there are."""

    def __init__(self, count: int):
        self._count = count
        self._slots: dict[int, int] = {}
        self._near = 0  # where sequences ran last

    def __contains__(self, handle: int) -> bool:
        return handle in self._slots

    def __getitem__(self, handle: int) -> int:
        return self._slots[handle]

    def add(self) -> int:
        """Make a handle, with the free slot that is nearest to those that run."""
        handle = next(i for i in range(self._count) if i not in self._slots)
        taken = set(self._slots.values())
        self._slots[handle] = min(
            (i for i in range(self._count) if i not in taken), key=lambda slot: abs(slot - self._near)
        )
        return handle

    def remove(self, handle: int) -> None:
        """Forget a handle."""
        del self._slots[handle]

    def exchange(self, first: int, second: int) -> None:
        """Let what has one slot have the other; one of them may be free."""
        for handle, slot in list(self._slots.items()):
            if slot in (first, second):
                self._slots[handle] = first + second - slot

    def at(self, slot: int) -> int | None:
        """The handle that has a slot."""
        return next((handle for handle, other in self._slots.items() if other == slot), None)

    def pieces(self, handles: Collection[int]) -> int:
        """In how many calls llama.cpp computes these sequences."""
        slots = sorted([self._slots[handle] for handle in handles])
        if slots:
            self._near = slots[-1]
        return 1 + sum([after != before + 1 for before, after in zip(slots, slots[1:])])

    def plan(self, handles: Collection[int], lengths: Mapping[int, int]) -> tuple[list[tuple[int, int]], int]:
        """How to make neighbours of some sequences.

        Args:
            handles: The sequences.
            lengths: Entries of each handle.

        Returns:
            Pairs of slots to exchange, and how many entries that moves: as few as can be.
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
    """Whether moving sequences pays: rent until as much was lost as buying costs, and look a little ahead if
    the set that runs has been the same for some time.
    """

    def __init__(self, seconds_per_entry: float):
        self._seconds_per_entry = seconds_per_entry
        self._step = 0.0
        self._lost = 0.0
        self._steady = _FORESIGHT

    def pays(self, pieces: int, entries: int) -> bool:
        """Whether to move so many entries, to compute in one piece what now takes `pieces`."""
        return self._lost + self._steady * self._loss(pieces) >= entries * self._seconds_per_entry

    def moved(self, entries: int, seconds: float) -> None:
        """Learn what a move took. The next one has to be earned."""
        if entries:
            self._seconds_per_entry += _WEIGHT * (seconds / entries - self._seconds_per_entry)
        self._lost = self._steady = 0

    def stepped(self, pieces: int, seconds: float) -> None:
        """Learn what a step took, and what it lost by its pieces."""
        self._step += (_WEIGHT if self._step else 1.0) * (seconds - self._step)
        self._lost += self._loss(pieces)
        self._steady = min(self._steady + 1, _FORESIGHT)

    def _loss(self, pieces: int) -> float:
        return _SHARE_LOST * self._step * (1 - 1 / pieces)
