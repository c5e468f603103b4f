"""What standing questions saw, kept within bounds, and as text that a conversation can read."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ros2_nanochat.engine.usage import Usage
from ros2_nanochat.errors import shorten
from ros2_nanochat.robot.watch import Watch

KEPT = 1000
"""Changes that are kept of one robot."""

_SHOWN = 100
_CLOCK_OF_DAY = 10**9  # seconds: a smaller stamp is of a simulation, which has no time of day


@dataclass(frozen=True)
class Observation:
    """One answer to a standing question; see nanochat/msg/Observation.

    Attributes:
        watch: The standing question.
        stamp: When the frame was taken, in nanoseconds.
        frame_id: The coordinate frame of its camera.
        value: The answer as JSON gives it; None if it is not valid.
        usage: The tokens and times of the answer.
    """

    watch: Watch
    index: int
    stamp: int
    frame_id: str
    text: str
    value: Any = None
    number: float = math.nan
    probability: float = 0.0
    valid: bool = False
    changed: bool = False
    unchanged: bool = False
    in_a_row: int = 1
    age: float = 0.0
    skipped_frames: int = 0
    usage: Usage = Usage()
    encode_time: float = 0.0
    answer_time: float = 0.0


class Observations:
    """The changes that one robot has seen, and the last answer to each question. Thread-safe.

    Args:
        kept: How many changes are kept.
    """

    def __init__(self, kept: int = KEPT):
        self._changes: deque[Observation] = deque(maxlen=kept)
        self._last: dict[str, Observation] = {}
        self._lock = threading.Lock()

    def add(self, observation: Observation) -> None:
        """Take note of an observation."""
        with self._lock:
            if observation.changed:
                self._changes.append(observation)
            self._last[observation.watch.name] = observation
            while len(self._last) > KEPT:  # names of questions that ended long ago
                self._last.pop(next(iter(self._last)))

    def text(
        self, since: float | None = None, names: Collection[str] = (), until: float | None = None
    ) -> str:
        """Return what was seen, a line for each change, for a conversation to read.

        Args:
            since: Seconds since the epoch (of the frames' stamps); None for all that is kept. A time
                of day has no effect on stamps of a simulation.
            names: The standing questions to tell about; all if empty.
            until: The end of the span; None for now. The last answers are told if they are not later.
        """
        with self._lock:
            changes, last = list(self._changes), list(self._last.values())
        first, end = (
            (-math.inf if since is None else since * 1e9),
            (math.inf if until is None else until * 1e9),
        )
        seen = [
            each
            for each in changes
            if (first <= each.stamp or each.stamp < _CLOCK_OF_DAY * 1e9 <= first)
            and each.stamp <= end
            and (not names or each.watch.name in names)
        ]
        lines = [f'{clock(each.stamp)} {each.watch.name}: {shorten(each.text)}' for each in seen[-_SHOWN:]]
        if len(seen) > _SHOWN:
            lines.insert(0, f'({len(seen) - _SHOWN} earlier changes are left out)')
        for each in last:
            if each.stamp <= end and (not names or each.watch.name in names):
                lines.append(
                    f'{each.watch.name} ({shorten(each.watch.question)}): last answer at {clock(each.stamp)}:'
                    f' {shorten(each.text)}'
                )
        return '\n'.join(lines) or 'nothing was observed'


def observations_text(
    observations: Observations,
    since: float | None = None,
    names: Collection[str] = (),
    until: float | None = None,
) -> str:
    """Return what a robot's standing questions saw; see `Observations.text`."""
    return observations.text(since, names, until)


def clock(stamp: int) -> str:
    """Return a time in nanoseconds as the time of day; as seconds if it is of a simulation."""
    seconds = stamp / 1e9
    if seconds < _CLOCK_OF_DAY:
        return f'{seconds:.1f} s'
    return time.strftime('%H:%M:%S', time.localtime(seconds))
