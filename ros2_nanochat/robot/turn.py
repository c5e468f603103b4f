"""One turn on its way: what was asked, what came of it. And the order in which turns wait for a robot. Knows
nothing of models or ROS.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ros2_nanochat.config import OnNewQuery, RobotOptions

_arrivals = itertools.count()


@dataclass(frozen=True)
class Picture:
    """An image that is not decoded yet. decode: gives [h, w, 3] uint8 RGB, or raises ValueError. age: seconds
    when it was taken, None if that is not known. stamp: nanoseconds. doubt: why the age is not that of the
    stamp, '' if it is. number: of a camera's frame, in the order in which frames came; 0 for another image.
    num_bytes: that it has as it came.
    """

    decode: Callable[[], np.ndarray]
    stamp: int = 0
    frame_id: str = ''
    age: float | None = None
    doubt: str = ''
    number: int = 0
    num_bytes: int = 0

    def freed(self) -> Picture:
        """What is known of it, without the image itself."""
        return replace(self, decode=_gone)


def _gone() -> np.ndarray:
    raise ValueError('the image was let go')


@dataclass(eq=False)
class Turn:
    """A question and, once `ended` is set, its answer. options: of this turn. goal: whatever the caller wants
    to find again in the output's calls. own_form: the turn has a form of its own, not the robot's. parsed:
    the answer as a value if it is valid.

    Times are of `time.monotonic()`, durations seconds. The rest is as in nanochat/msg/Turn.
    """

    query: str
    options: RobotOptions
    pictures: Sequence[Picture] = ()
    goal: Any = None

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    arrival: int = field(default_factory=lambda: next(_arrivals))
    arrived: float = field(default_factory=time.monotonic)
    ended: threading.Event = field(default_factory=threading.Event)

    reply: str = ''
    reasoning: str = ''
    finish_reason: str = ''
    error: str = ''
    note: str = ''
    picture: Picture | None = None
    own_form: bool = False
    valid: bool = False
    parsed: Any = None
    choice: str = ''
    probability: float = 0.0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    image_tokens: int = 0
    reused_image_tokens: int = 0
    encode_time: float = 0.0
    new_tokens: int = 0
    dropped_turns: int = 0
    queue_time: float = 0.0
    time_to_first_token: float = 0.0
    tokens_per_second: float = 0.0
    num_pieces: int = 0
    begun: bool = False

    def __post_init__(self):
        self._lock = threading.Lock()
        self._stream = None
        self._claimed = False
        self.stop_reason: str | None = None

    @property
    def due(self) -> float:
        """When its deadline passes; infinity where there is none."""
        return math.inf if self.options.deadline is None else self.arrived + self.options.deadline

    @property
    def order(self) -> tuple:
        """Sorts those that wait: by priority, deadline, and arrival; one that interrupts goes before those
        that wait in line.
        """
        return (
            -self.options.priority,
            self.due,
            self.options.on_new_query is not OnNewQuery.INTERRUPT,
            self.arrival,
        )

    def stop(self, reason: str) -> None:
        """End it at what was delivered, whether it has begun or not. The first reason holds."""
        with self._lock:
            self.stop_reason = self.stop_reason or reason
            if self._stream is not None:
                self._stream.stop(self.stop_reason)

    def attach(self, stream) -> None:
        """Note the stream that a stop has to reach; one that came before ends it now."""
        with self._lock:
            self._stream = stream
            if self.stop_reason:
                stream.stop(self.stop_reason)

    def claim(self, unless_streaming: bool = False) -> bool:
        """Whether the caller is the one that ends this turn and announces it; only the first caller is.
        unless_streaming: leave a turn that has a reply to the thread that hands it out.
        """
        with self._lock:
            if self._claimed or (unless_streaming and self._stream is not None):
                return False
            self._claimed = True
            return True

    @property
    def claimed(self) -> bool:
        """Whether somebody has ended this turn."""
        return self._claimed

    def let_go(self) -> None:
        """Free the images, which nobody needs any more."""
        self.pictures = ()
        if self.picture is not None:
            self.picture = self.picture.freed()

    def remark(self, note: str) -> None:
        """Add to `note`."""
        self.note = f'{self.note}; {note}' if self.note else note


class Waiting:
    """Turns that wait for one robot. Not thread-safe: its owner holds a lock."""

    def __init__(self):
        self._turns: list[Turn] = []

    def __len__(self) -> int:
        return len(self._turns)

    def add(self, turn: Turn) -> None:
        self._turns.append(turn)
        self._turns.sort(key=lambda turn: turn.order)

    def take(self) -> Turn | None:
        """The one whose turn it is, or None."""
        return self._turns.pop(0) if self._turns else None

    def remove(self, condition: Callable[[Turn], bool]) -> list[Turn]:
        """Take out those that meet a condition."""
        out = [turn for turn in self._turns if condition(turn)]
        self._turns = [turn for turn in self._turns if not condition(turn)]
        return out
