"""Keeps the standing questions of all robots within their share of the model's time.

Each look pays for what it took, and the next one may begin when that fits the share. The robots that wait are
served in the order in which they came. Thread-safe; knows no model.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

_AT_ONCE = 4  # robots whose looks may run together, so that one long answer does not hold up the others
_SOON, _LATER = 0.005, 0.03  # minimum and maximum seconds before asking again
_TURN = 0.25  # share of a usual look after which to ask again
_WEIGHT = 0.2  # weight of the newest look in the moving average
_SAVED = 0.5  # seconds of unused time that may be made up for
_LONGEST_PAUSE = 30.0  # seconds: one look that took minutes must not silence all for hours


class WatchBudget:
    """The time that standing questions may take of one model.

    Args:
        share: The share of its time, over 0 and up to 1. You may replace it at any time.
        clock: Returns seconds.
    """

    def __init__(self, share: float = 1.0, clock: Callable[[], float] = time.monotonic):
        self.share = share
        self.spent = 0.0
        """Seconds of the model's time that all looks took."""
        self._clock = clock
        self._free_at = clock()  # when what was spent fits the share
        self._usual = 0.0  # seconds of one look
        self._looking: set[object] = set()
        self._queue: dict[object, int] = {}
        self._tickets = itertools.count()
        self._lock = threading.Lock()

    def take(self, who: object) -> float:
        """Ask to begin a look. Whoever gets it must call `spend`, and whoever no longer wants it `forgo`.

        Args:
            who: Identifies the robot.

        Returns:
            0.0 if the look may begin, else the seconds after which to ask again.
        """
        with self._lock:
            self._queue.setdefault(who, next(self._tickets))
            wait = self._free_at - self._clock()
            if wait > 0:
                return wait
            first = min(self._queue, key=self._queue.__getitem__)
            if len(self._looking) >= _AT_ONCE or first != who:
                return self._soon if self._looking else _SOON
            self._looking.add(who)
            del self._queue[who]
            return 0.0

    @property
    def _soon(self) -> float:
        """When to ask again while others look: the model is busy, and asking often would slow it down."""
        return min(max(_SOON, _TURN * self._usual), _LATER)

    def spend(self, who: object, seconds: float) -> None:
        """End a look that took some of the model's time."""
        with self._lock:
            self._looking.discard(who)
            self.spent += seconds
            self._usual += _WEIGHT * (seconds - self._usual)
            now = self._clock()
            self._free_at = max(self._free_at, now - seconds - _SAVED) + seconds / self.share
            self._free_at = min(self._free_at, now + _LONGEST_PAUSE)

    def forgo(self, who: object) -> None:
        """Leave the queue."""
        with self._lock:
            self._queue.pop(who, None)
            self._looking.discard(who)
