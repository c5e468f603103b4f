"""How many threads a step should have, found by measuring the steps themselves.

On a machine of its own a model is fastest on all cores; beside other programs every thread waits for the one
that was held up, and fewer are faster, often many times. So the counts are compared while the model runs: the
fastest is used, and its neighbours are looked at again from time to time, at a cost of 2 %.

Knows numbers and times; nothing of any runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_SHARE = 0.02  # of the time, for looking at other counts
_MOST_SAVED = 0.5  # seconds of that share that may be kept for later
_FIRST_LOOKS = 2  # measurements of a count before it is judged
_WEIGHT = 0.3  # of the newest measurement
_SLOW_WEIGHT = 0.05
_HICCUP = 4.0  # times as long as usual: another program held the step up
_BETTER = 0.97  # of the time, before another count is preferred
_CHANGED = 0.25  # change of speed that says that the load is another
_SETTLED = 0.25  # seconds between two such findings
_SINGLE = 8  # entries up to which each number is a kind of step of its own


@dataclass
class _Count:
    """One number of threads. seconds: per entry. usual: the same over a longer time."""

    threads: int
    seconds: float = 0.0
    usual: float = 0.0
    looks: int = 0

    def record(self, seconds: float) -> None:
        if self.looks:
            seconds = min(seconds, _HICCUP * self.seconds)
            self.seconds += _WEIGHT * (seconds - self.seconds)
            self.usual += _SLOW_WEIGHT * (seconds - self.usual)
        else:
            self.seconds = self.usual = seconds
        self.looks += 1


class _Kind:
    """Steps of about the same size, and what each number of threads makes of them."""

    def __init__(self, candidates: list[int], first: int):
        self._counts = [_Count(threads) for threads in candidates]
        self.best = candidates.index(first)
        self._saved = 0.0
        self._changed = 0.0
        self._side = 1  # which neighbour is next

    @property
    def threads(self) -> int:
        return self._counts[self.best].threads

    def choose(self, entries: int) -> int:
        best = self._counts[self.best]
        if best.looks < _FIRST_LOOKS:
            return best.threads
        self._side = -self._side
        for side in (self._side, -self._side):
            at = self.best + side
            if 0 <= at < len(self._counts):
                other = self._counts[at]
                loss = max(0.0, other.seconds - best.seconds) * entries
                if other.looks < _FIRST_LOOKS or (loss or 0.1 * best.seconds * entries) <= self._saved:
                    return other.threads
        return best.threads

    def record(self, entries: int, threads: int, seconds: float, now: float) -> None:
        count = next(count for count in self._counts if count.threads == threads)
        best = self._counts[self.best]
        count.record(seconds / entries)
        if count is best:
            self._saved = min(_MOST_SAVED, self._saved + _SHARE * seconds)
        elif best.looks:
            # a look costs what it took longer, and something in any case, or there would be no end of looking
            cost = max(seconds - best.seconds * entries, 0.1 * best.seconds * entries)
            self._saved = max(-_MOST_SAVED, self._saved - cost)
        measured = [i for i, count in enumerate(self._counts) if count.looks >= _FIRST_LOOKS]
        if measured:
            fastest = min(measured, key=lambda i: self._counts[i].seconds)
            if best.looks < _FIRST_LOOKS or self._counts[fastest].seconds < _BETTER * best.seconds:
                self.best = fastest
        self._notice_change(now)

    def _notice_change(self, now: float) -> None:
        """Forget that other counts were far worse, if the load is another now."""
        best = self._counts[self.best]
        if abs(best.seconds - best.usual) <= _CHANGED * best.usual or now - self._changed < _SETTLED:
            return
        self._changed, best.usual = now, best.seconds
        for other in self._counts:
            other.seconds = min(other.seconds, 2 * best.seconds) if other is not best else other.seconds


class ThreadChooser:
    """Chooses the threads of each step. most: threads that may be used. clock: seconds."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic):
        self._candidates = _candidates(most)
        self._clock = clock
        self._kinds: dict[int, _Kind] = {}
        self._last = most

    def choose(self, entries: int) -> int:
        """Threads for a step of so many entries."""
        key = _kind(entries)
        if key not in self._kinds:
            self._kinds[key] = _Kind(self._candidates, self._last)
        return self._kinds[key].choose(max(1, entries))

    def record(self, entries: int, threads: int, seconds: float) -> None:
        """Learn what a step took."""
        kind = self._kinds[_kind(entries)]
        kind.record(max(1, entries), threads, seconds, self._clock())
        self._last = kind.threads

    @property
    def decoding(self) -> int:
        """The threads that are best for the smallest steps."""
        return self._kinds[min(self._kinds)].threads if self._kinds else self._last

    @property
    def prefilling(self) -> int:
        """The threads that are best for the largest steps."""
        return self._kinds[max(self._kinds)].threads if self._kinds else self._last


def _candidates(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... and `most` itself."""
    counts, n = {1, most}, 2
    while n < most:
        counts.add(n)
        if n + n // 2 < most:
            counts.add(n + n // 2)
        n *= 2
    return sorted(counts)


def _kind(entries: int) -> int:
    return entries if entries <= _SINGLE else _SINGLE + entries.bit_length()
