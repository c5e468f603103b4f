"""Chooses the number of threads of a step by measuring the steps themselves.

On an idle machine a model is fastest on all cores. Next to other programs every thread waits for the one that
was interrupted, and fewer threads are faster, often many times. So the numbers are compared while the model
runs: the fastest is used, and its neighbors are measured again now and then, at a cost of at most 2 %, and
when other programs leave more cores idle.

Knows numbers and times; nothing of any runtime.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ros2_nanochat.backends.step_speeds import StepSpeeds

_REST = 0.02  # seconds without a step that count as a rest
_WARM = 0.1  # seconds after it: until then, Linux may keep two threads on one core
_IDLE_PERIOD = 1.0  # seconds between two questions about idle cores
_SINGLE = 8  # up to this many entries, each number is its own kind of step


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
        self._kinds: dict[int, StepSpeeds] = {}
        self._last = most
        self._began, self._ended = -math.inf, 0.0  # of the current run: steps without a rest between them
        self._warm = -math.inf  # when its steps are as fast as they can be

    def choose(self, entries: int) -> int:
        """Return the number of threads for a step of `entries` entries."""
        key, now = _kind(entries), self._clock()
        if not self._kinds:
            self._num_idle = self._ask(now)
            self._last = max((n for n in self._candidates if n <= self._num_idle), default=1)
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = StepSpeeds(self._candidates, self._last)
        elif not kind.uses_all and now - self._asked >= _IDLE_PERIOD:
            self._look_at_idle(now)
        if now - self._ended > _REST:
            self._warm = now + min(_WARM, (self._ended - self._began) / 2)
            self._began = now
        return kind.choose(max(1, entries), now, self._began, now < self._warm)

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
        self._ended = self._clock()
        kind.record(max(1, entries), threads, seconds, self._ended)
        if kind.num_recorded == 1:
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
    def _smallest(self) -> StepSpeeds:
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
