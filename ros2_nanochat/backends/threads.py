"""Chooses the number of threads of a step by measuring the steps themselves.

On an idle machine a model is fastest on all cores. Next to other programs every thread waits for the one that
was interrupted, and fewer threads are faster, often many times. So the numbers are compared while the model
runs: the fastest is used, and its neighbors are measured again now and then, at a cost of about 2 %, and when
other programs leave more cores idle.

Knows numbers and times; nothing of any runtime.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

_SHARE = 0.02  # of the time, for measuring other counts
_MOST_SAVED = 0.5  # seconds of that share that may be saved up; then one measurement may cost more
_FIRST_LOOKS = 2  # measurements of a count before it may be preferred
_CLEARLY = 1.2  # times the best time: a count that is this slow is not measured a second time at once
_UNKNOWN = 3.0  # times the best time: how slow more threads are thought to be before they are measured
_PAUSE = 0.5  # seconds between two measurements of another count, unless one surprised
_LONG_PAUSE = 4.0  # the same for a smaller count that can only be the best after a change that is noticed
_WEIGHT = 0.3  # of the newest measurement
_SLOW_WEIGHT = 0.05
_HICCUP = 4.0  # times as long as usual: another program delayed the step
_BETTER = 0.97  # of the current best time, to prefer another count
_CHANGED = 0.25  # change of speed that means that the load has changed
_SUSTAINED = 2  # steps with that speed, one after the other
_SETTLED = 0.25  # minimum seconds between two such changes
_IDLE_PERIOD = 1.0  # seconds between two questions about idle cores
_SINGLE = 8  # up to this many entries, each number is its own kind of step


@dataclass
class _Count:
    """One number of threads.

    Attributes:
        threads: The number.
        seconds: Per entry.
        usual: The same over a longer time.
        looks: How often it was measured.
        looked: When it was measured last.
    """

    threads: int
    seconds: float = 0.0
    usual: float = 0.0
    looks: int = 0
    looked: float = -math.inf

    def record(self, seconds: float, now: float = -math.inf) -> None:
        self.looked = now
        if self.looks:
            seconds = min(seconds, _HICCUP * self.seconds)
            self.seconds += _WEIGHT * (seconds - self.seconds)
            self.usual += _SLOW_WEIGHT * (seconds - self.usual)
        else:
            self.seconds = self.usual = seconds
        self.looks += 1

    @property
    def sustained(self) -> float:
        """Seconds per entry; a single slow step does not count."""
        return min(self.seconds, self.usual)


class _Kind:
    """Steps of about the same size, and their speed with each number of threads."""

    def __init__(self, candidates: list[int], first: int):
        self._counts = [_Count(threads) for threads in candidates]
        self.best = candidates.index(first)
        self._saved = 0.0
        self._changed = self._next_look = 0.0
        self._unusual = 0  # steps with the best number since the last one of about the usual speed
        self._side = 1  # which neighbor is next
        self._called = False  # whether to measure more threads although it may cost more than was saved

    @property
    def threads(self) -> int:
        return self._counts[self.best].threads

    @property
    def is_new(self) -> bool:
        """Whether one count was measured, once."""
        return sum(count.looks for count in self._counts) == 1

    @property
    def times(self) -> dict[int, float]:
        """Seconds per entry of each number that was measured."""
        return {count.threads: count.seconds for count in self._counts if count.looks}

    def expect(self, times: dict[int, float]) -> None:
        """Take the ratios of these times for counts that were not measured yet."""
        best = self._counts[self.best]
        if best.looks and times.get(best.threads):
            for count in self._counts:
                if not count.looks and count.threads in times:
                    count.record(best.seconds * times[count.threads] / times[best.threads])

    def choose(self, entries: int, now: float) -> int:
        best = self._counts[self.best]
        if best.looks < _FIRST_LOOKS:
            return best.threads
        self._side = -self._side
        for side in (self._side, -self._side):
            at = self.best + side
            if 0 <= at < len(self._counts) and self._wants(self._counts[at], best, entries, now):
                return self._counts[at].threads
        return best.threads

    def _wants(self, other: _Count, best: _Count, entries: int, now: float) -> bool:
        """Whether to measure a neighbor in this step."""
        if not other.looks and other.threads < best.threads:
            return True  # costs little, while more threads beside a busy program can cost very much
        if 0 < other.looks < _FIRST_LOOKS and other.seconds < _CLEARLY * best.seconds:
            return True
        if (
            other.threads < best.threads
            and now - other.looked < _LONG_PAUSE
            and other.seconds > (1 + _CHANGED) * best.usual
        ):
            return False  # other programs would first slow down more threads, which is noticed
        seconds = other.seconds or _UNKNOWN * best.sustained
        loss = max(0.1 * best.sustained, seconds - best.sustained) * entries
        affordable = loss <= self._saved or self._saved == _MOST_SAVED
        called = self._called and other.threads > best.threads and self._saved >= -best.sustained * entries
        return now >= self._next_look and (affordable or called)

    def record(self, entries: int, threads: int, seconds: float, now: float) -> None:
        best = count = self._counts[self.best]
        if count.threads != threads:
            count = next(count for count in self._counts if count.threads == threads)
        count.record(seconds / entries, now)
        if count is best:
            is_usual = abs(seconds / entries - best.usual) <= _CHANGED * best.usual
            self._unusual = 0 if is_usual else self._unusual + 1
            self._saved = min(_MOST_SAVED, self._saved + _SHARE * seconds)
        elif best.looks:
            # a measurement costs its extra time, and at least a little, so that measuring has an end
            cost = max(seconds - best.sustained * entries, 0.1 * best.sustained * entries)
            self._saved = max(-_MOST_SAVED, self._saved - cost)
            self._called = self._called and seconds < best.sustained * entries
            self._next_look = now if seconds < best.sustained * entries else now + _PAUSE
        fastest = -1
        for i, other in enumerate(self._counts):
            if other.looks >= _FIRST_LOOKS and (fastest < 0 or other.seconds < self._counts[fastest].seconds):
                fastest = i
        if fastest not in (-1, self.best) and (
            best.looks < _FIRST_LOOKS or self._counts[fastest].seconds < _BETTER * best.sustained
        ):
            self.best, self._unusual = fastest, 0
        if self._unusual >= _SUSTAINED:
            self._notice_change(now)

    @property
    def uses_all(self) -> bool:
        """Whether it uses all threads there are."""
        return self.best == len(self._counts) - 1

    def call(self, now: float) -> None:
        """Measure more threads soon, until one measurement is slower: other programs have ended."""
        self._called = True
        self._notice_change(now)

    def _notice_change(self, now: float) -> None:
        """The load has changed: forget that other counts were far worse."""
        best = self._counts[self.best]
        if now - self._changed < _SETTLED:
            return
        self._changed, self._next_look, self._unusual = now, now, 0
        best.usual = best.seconds
        for other in self._counts:
            other.looked = -math.inf
            other.seconds = min(other.seconds, 2 * best.seconds) if other is not best else other.seconds


class ThreadChooser:
    """Chooses the number of threads of each step.

    Args:
        most: Maximum number of threads.
        clock: Returns the time in seconds.
        idle: Returns how many cores other programs have left idle since the last call. The first number of
            threads is at most that, and when it rises, more threads are measured; by default it is `most`.
    """

    def __init__(
        self,
        most: int,
        clock: Callable[[], float] = time.monotonic,
        idle: Callable[[], int] | None = None,
    ):
        self._candidates = _candidates(most)
        self._clock = clock
        self._idle = idle or (lambda: most)
        self._num_idle, self._asked = most, -math.inf
        self._kinds: dict[int, _Kind] = {}
        self._last = most

    def choose(self, entries: int) -> int:
        """Return the number of threads for a step of `entries` entries."""
        key, now = _kind(entries), self._clock()
        if not self._kinds:
            self._num_idle = self._ask(now)
            self._last = max((n for n in self._candidates if n <= self._num_idle), default=1)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind(self._candidates, self._last)
        elif not kind.uses_all and now - self._asked >= _IDLE_PERIOD:
            self._look_at_idle(now)
        return kind.choose(max(1, entries), now)

    def _ask(self, now: float) -> int:
        self._asked = now
        return self._idle()

    def _look_at_idle(self, now: float) -> None:
        """If other programs have ended, measure more threads, however slow they were beside those."""
        before, self._num_idle = self._num_idle, self._ask(now)
        if self._num_idle > before:
            for kind in self._kinds.values():
                kind.call(now)

    def record(self, entries: int, threads: int, seconds: float) -> None:
        """Record the time of a step.

        Args:
            entries: Entries in the batch.
            threads: Threads that were used.
            seconds: The time.
        """
        key = _kind(entries)
        kind = self._kinds[key]
        kind.record(max(1, entries), threads, seconds, self._clock())
        if kind.is_new:
            others = sorted((abs(other - key), other) for other in self._kinds if other != key)
            kind.expect(self._kinds[others[0][1]].times if others else {})
        self._last = kind.threads

    def stats(self) -> dict[str, int | str]:
        """Return the numbers in use and why, for `Backend.stats`."""
        return {
            'threads': self.decoding,
            'threads_prefill': self.prefilling,
            'threads_reason': self.reason,
        }

    @property
    def reason(self) -> str:
        """Why these numbers are used: what was measured for the smallest steps."""
        times = self._smallest.times if self._kinds else {}
        if len(times) < 2:
            return 'as many as there were idle cores, until others are measured'
        figures = ', '.join(f'{threads}: {1000 * seconds:.3g} ms' for threads, seconds in times.items())
        return f'the fastest that was measured ({figures})'

    @property
    def decoding(self) -> int:
        """The best number of threads for the smallest steps."""
        return self._smallest.threads if self._kinds else self._last

    @property
    def prefilling(self) -> int:
        """The best number of threads for the largest steps."""
        return self._kinds[max(list(self._kinds))].threads if self._kinds else self._last

    @property
    def _smallest(self) -> _Kind:
        return self._kinds[min(list(self._kinds))]  # the engine's thread may add one meanwhile


def fixed_threads(threads: int, reason: str) -> dict[str, int | str]:
    """Return what `ThreadChooser.stats` does for a number that does not change."""
    return {'threads': threads, 'threads_prefill': threads, 'threads_reason': reason}


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
