"""The speed of steps of one size with each number of threads, and which number the next step should have.

Knows numbers and times; nothing of any runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_SHARE = 0.02  # of the time, for measuring other counts
_MOST_SAVED = 0.5  # seconds of that share that may be saved up; then one measurement may cost more
_FIRST_LOOKS = 2  # measurements of a count before it may be preferred
_CLEARLY = 1.2  # times the best time: a count that is this slow is not measured a second time at once
_UNKNOWN = 3.0  # times the best time: how slow more threads are thought to be before they are measured
_WAKING = 1.3, 0.05  # times the best time, seconds more: a first step with more threads may only seem slow
_SERIES = 4  # fast measurements in a row that replace what was known of a count
_SERIES_LASTS = 0.06  # minimum seconds of them all: a busy core may be free for some milliseconds
_PAUSE = 0.5  # seconds between two measurements of another count, unless one surprised
_LONG_PAUSE = 2.0  # the same for a smaller count that can only be the best after a change that is noticed
_LONGEST_PAUSE = 32.0  # `_LONG_PAUSE` doubles up to this with each measurement that is far slower
_WEIGHT = 0.3  # of the newest measurement
_USUAL = 0.5  # seconds over which the usual speed is the mean, for steps of 5 to 25 ms
_USUAL_WEIGHTS = 0.01, 0.05  # of the newest measurement in that mean, at least and at most
_CALLED = 3.0  # times the best time: the debt up to which a count is measured if other programs have ended
_HICCUP = 4.0  # times as long as usual: another program delayed the step
_RESTED = 0.1  # seconds by which a rest slows down a step at most
_BETTER = 0.97  # of the current best time, to prefer another count
_CHANGED = 0.25  # change of speed that means that the load has changed
_SUSTAINED = 2  # steps with that speed, one after the other
_LASTING = 0.1  # minimum seconds of them all: an interruption touches several short steps
_SETTLED = 0.25  # minimum seconds between two such changes


@dataclass(slots=True)
class _Count:
    """One number of threads.

    Attributes:
        threads: The number.
        seconds: Per entry.
        usual: The same over a longer time.
        looks: How often it was measured.
        looked: When it was measured last.
        pause: Seconds until it is measured again if it was far slower than the best one.
    """

    threads: int
    seconds: float = 0.0
    usual: float = 0.0
    looks: int = 0
    looked: float = -math.inf
    pause: float = _LONG_PAUSE

    def record(self, seconds: float, now: float = -math.inf, lasted: float = 0.0) -> None:
        self.looked = now
        if self.looks:
            least, most = _USUAL_WEIGHTS
            weight = min(most, max(least, lasted / _USUAL))
            seconds = min(seconds, _HICCUP * self.seconds)
            self.seconds += _WEIGHT * (seconds - self.seconds)
            self.usual += weight * (seconds - self.usual)
        else:
            self.seconds = self.usual = seconds
        self.looks += 1

    @property
    def sustained(self) -> float:
        """Seconds per entry; a single slow step does not count."""
        return min(self.seconds, self.usual)


class StepSpeeds:
    """Steps of about the same size, and their speed with each number of threads.

    Args:
        candidates: Numbers of threads, in ascending order.
        first: The one that is best until others are measured.
    """

    def __init__(self, candidates: list[int], first: int):
        self._counts = [_Count(threads) for threads in candidates]
        self.best = candidates.index(first)
        self.num_recorded = 0
        """Steps from which something was learned: counted, as summing up takes longer in each step."""
        self._saved = 0.0
        self._changed = self._next_look = 0.0
        self._unusual: list[float] = []  # seconds of the steps with the best number since the last usual one
        self._series: list[tuple[float, int]] | None = None  # seconds, entries of fast measurements in a row
        self._measured = self.best  # index of the count that they measure
        self._run = -math.inf  # when the current run of steps began
        self._postponed = -math.inf  # the first run without a measurement because all steps were cold
        self._side = 1  # which neighbor is next
        self._cold = False  # whether a rest may still slow down the step that was chosen
        self._called = False  # whether to measure more threads although it may cost more than was saved

    @property
    def threads(self) -> int:
        """The best number."""
        return self._counts[self.best].threads

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

    def choose(self, entries: int, now: float, run: float, cold: bool) -> int:
        """Return the number of threads for the next step.

        Args:
            entries: Entries in the batch.
            now: The time in seconds.
            run: When the first step after the last rest began.
            cold: Whether that rest may still slow down a step with another number.
        """
        best = self._counts[self.best]
        if run != self._run:
            self._run, self._series = run, None
        self._cold = self._postpones(cold)
        if self._series is not None:
            return self._counts[self._measured].threads
        if best.looks < _FIRST_LOOKS or self._cold:
            return best.threads
        self._side = -self._side
        for side in (self._side, -self._side):
            at = self.best + side
            if 0 <= at < len(self._counts) and self._wants(self._counts[at], best, entries, now):
                return self._counts[at].threads
        return best.threads

    def _postpones(self, cold: bool) -> bool:
        """Whether to measure no other count yet, since a rest has just ended."""
        if not cold:
            self._postponed = -math.inf
            return False
        if self._postponed == -math.inf:
            self._postponed = self._run
        return self._postponed == self._run  # else a kind whose steps are all cold would never be measured

    def _wants(self, other: _Count, best: _Count, entries: int, now: float) -> bool:
        """Whether to measure a neighbor in this step."""
        if not other.looks and other.threads < best.threads:
            return True  # costs little, while more threads beside a busy program can cost very much
        if 0 < other.looks < _FIRST_LOOKS and other.seconds < _CLEARLY * best.seconds:
            return True
        if (
            other.threads < best.threads
            and now - other.looked < other.pause
            and other.seconds > (1 + _CHANGED) * best.usual
        ):
            return False  # other programs would first slow down more threads, which is noticed
        seconds = other.seconds or _UNKNOWN * best.sustained
        loss = max(0.1 * best.sustained, seconds - best.sustained) * entries
        affordable = loss <= self._saved or self._saved == _MOST_SAVED
        called = (
            self._called
            and other.threads > best.threads
            and self._saved >= -_CALLED * best.sustained * entries
        )
        return now >= self._next_look and (affordable or called)

    def record(self, entries: int, threads: int, seconds: float, now: float) -> None:
        """Record the time of a step.

        Args:
            entries: Entries in the batch.
            threads: Threads that were used.
            seconds: The time that it took.
            now: The time at its end.
        """
        best, at = self._counts[self.best], self.best
        if best.threads == threads:
            slower = seconds / entries - best.usual
            is_usual = abs(slower) <= _CHANGED * best.usual
            self._saved = min(_MOST_SAVED, self._saved + _SHARE * seconds)
            self._series = None
            if self._cold and not is_usual and 0 < slower * entries < _RESTED and best.looks >= _FIRST_LOOKS:
                return  # the rest slowed it down, not the load
            self._unusual = [] if is_usual else [*self._unusual, seconds]
        else:
            at = next(i for i, count in enumerate(self._counts) if count.threads == threads)
            if best.looks and self._judge_other(at, entries, seconds, now):
                return
        self._counts[at].record(seconds / entries, now, seconds)
        self.num_recorded += 1
        if self._series and len(self._series) >= _SERIES:
            total, num_entries = map(sum, zip(*self._series, strict=True))
            if total >= _SERIES_LASTS:
                self._counts[at].seconds = total / num_entries
                self._series = None
        self._prefer_fastest()
        if len(self._unusual) >= _SUSTAINED and sum(self._unusual) >= _LASTING:
            self._notice_change(now)

    def _judge_other(self, at: int, entries: int, seconds: float, now: float) -> bool:
        """Pay for a measurement of another number than the best one; decide whether to go on measuring it.

        Returns:
            Whether this one is not to be used, because some of the threads may have slept when it began.
        """
        best, other = self._counts[self.best].sustained * entries, self._counts[at]
        is_far = seconds > (1 + _CHANGED) * best
        other.pause = min(_LONGEST_PAUSE, 2 * other.pause) if is_far else _LONG_PAUSE
        # It costs its extra time, and at least a little, so that measuring has an end.
        debt = max(_MOST_SAVED, 2 * _CALLED * best if self._called else 0.0)
        self._saved = max(-debt, self._saved - max(seconds - best, 0.1 * best))
        self._next_look = now
        slowly = min(_WAKING[0] * best, best + _WAKING[1])
        if self._series is None and at > self.best and best <= seconds < slowly:
            self._series, self._measured = [], at
            return True
        if seconds < best:
            self._series, self._measured = [*(self._series or []), (seconds, entries)], at
        else:
            self._series, self._called, self._next_look = None, False, now + _PAUSE
        return False

    def _prefer_fastest(self) -> None:
        best = self._counts[self.best]
        fastest, least = self.best, math.inf
        for i, count in enumerate(self._counts):  # a loop, since the model waits in each step
            if count.looks >= _FIRST_LOOKS and count.seconds < least:
                fastest, least = i, count.seconds
        if fastest != self.best and (
            best.looks < _FIRST_LOOKS or self._counts[fastest].seconds < _BETTER * best.sustained
        ):
            self.best, self._unusual, self._series = fastest, [], None
            self._counts[fastest].usual = self._counts[fastest].seconds  # the old one may be of another load

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
        self._changed, self._next_look, self._unusual = now, now, []
        best.usual = best.seconds
        for other in self._counts:
            other.looked, other.pause = -math.inf, _LONG_PAUSE
            other.seconds = min(other.seconds, 2 * best.seconds) if other is not best else other.seconds
