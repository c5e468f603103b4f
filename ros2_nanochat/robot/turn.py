"""One turn: the question and its answer.

Also the order in which turns wait for a robot. Knows nothing of models or ROS.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ros2_nanochat.config import OnNewQuery, RobotOptions
from ros2_nanochat.engine.usage import Usage

_arrivals = itertools.count()
# Our own: programs may seed the shared one, and reading the system's random numbers is slow.
_ids = random.Random()
if hasattr(os, 'register_at_fork'):  # a forked process would go on with the same ids
    os.register_at_fork(after_in_child=_ids.seed)


@dataclass(frozen=True)
class Picture:
    """An image that is not decoded yet.

    Attributes:
        decode: Returns [h, w, 3] uint8 RGB, or raises ValueError.
        stamp: When it was taken, in nanoseconds.
        frame_id: The camera's coordinate frame.
        age: Seconds since it was taken, None if unknown.
        doubt: Why the stamp was not used for the age, '' if it was.
        number: Number of a camera's frame in order of arrival; 0 for other images.
        num_bytes: Bytes of the image as received.
        sequence: The publisher's own number of the frame, 0 if unknown.
        label: What the prompt says about it, '' for nothing.
        arrived: When it arrived, in `time.monotonic()`; 0 if unknown.
        count_pixels: Returns the number of pixels according to its header, without decoding it; 0 if unknown.
    """

    decode: Callable[[], np.ndarray]
    stamp: int = 0
    frame_id: str = ''
    age: float | None = None
    doubt: str = ''
    number: int = 0
    num_bytes: int = 0
    sequence: int = 0
    label: str = ''
    arrived: float = 0.0
    count_pixels: Callable[[], int] = int

    def freed(self) -> Picture:
        """Return a copy without the image itself."""
        return replace(self, decode=_gone, count_pixels=int)


def _gone() -> np.ndarray:
    raise ValueError('the image was let go')


@dataclass(eq=False)
class Turn:
    """A question and, once `ended` is set, its answer. Other fields: see nanochat/msg/Turn.

    Times are those of `time.monotonic()`, durations are seconds.

    Attributes:
        options: The options of this turn.
        pictures: The images that came with the question.
        cameras: Names of the cameras to look through if none came.
        goal: Anything the caller wants to find again in the output's calls.
        own_form: The turn has its own form, not the robot's.
        parsed: The answer as a value, if it is valid.
        without_tools: The model must not call tools in this turn.
        tool_calls: The calls of tools, each a `CallRecord`.
        usage: The tokens and times of the reply, as the engine counts them.
        queue_time: Seconds until the model began with it, since it arrived at the robot.
        time_to_first_token: Seconds until the first token was handed out, since then.
    """

    query: str
    options: RobotOptions
    pictures: Sequence[Picture] = ()
    goal: Any = None

    id: str = field(default_factory=lambda: f'{_ids.getrandbits(128):032x}')
    arrival: int = field(default_factory=lambda: next(_arrivals))
    arrived: float = field(default_factory=time.monotonic)
    ended: threading.Event = field(default_factory=threading.Event)

    reply: str = ''
    reasoning: str = ''
    finish_reason: str = ''
    error: str = ''
    note: str = ''
    picture: Picture | None = None
    cameras: Sequence[str] = ()
    own_form: bool = False
    valid: bool = False
    parsed: Any = None
    choice: str = ''
    probability: float = 0.0
    without_tools: bool = False
    tool_calls: Sequence[Any] = ()
    usage: Usage = Usage()
    encode_time: float = 0.0
    served_by: str = ''
    dropped_turns: int = 0
    queue_time: float = 0.0
    time_to_first_token: float = 0.0
    num_pieces: int = 0
    begun: bool = False

    def __post_init__(self):
        self._lock = threading.Lock()
        self._stream = None
        self._claimed = False
        self.stop_reason: str | None = None

    @property
    def due(self) -> float:
        """When its deadline passes; infinity if there is none."""
        return math.inf if self.options.deadline is None else self.arrived + self.options.deadline

    @property
    def order(self) -> tuple:
        """Sort key of waiting turns: priority, then deadline, then turns that interrupt, then arrival."""
        return (
            -self.options.priority,
            self.due,
            self.options.on_new_query is not OnNewQuery.INTERRUPT,
            self.arrival,
        )

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed; 0.0 if fewer than two tokens came."""
        return self.usage.tokens_per_second or 0.0

    def stop(self, reason: str) -> None:
        """End the turn with what was delivered so far, even if it has not begun. The first reason counts."""
        with self._lock:
            self.stop_reason = self.stop_reason or reason
            if self._stream is not None:
                self._stream.stop(self.stop_reason)

    def attach(self, stream) -> None:
        """Set the stream that `stop` ends. If the turn was stopped before, the stream ends now."""
        with self._lock:
            self._stream = stream
            if self.stop_reason:
                stream.stop(self.stop_reason)

    def claim(self, unless_streaming: bool = False) -> bool:
        """Ask for the right to end and announce this turn. Only the first caller gets it.

        Args:
            unless_streaming: Leave a turn that is streaming to the robot's thread.

        Returns:
            Whether the caller ends the turn.
        """
        with self._lock:
            if self._claimed or (unless_streaming and self._stream is not None):
                return False
            self._claimed = True
            return True

    @property
    def claimed(self) -> bool:
        """Whether someone has ended this turn."""
        return self._claimed

    def let_go(self) -> None:
        """Free the images, which are no longer needed."""
        self.pictures = ()
        if self.picture is not None:
            self.picture = self.picture.freed()

    def remark(self, note: str) -> None:
        """Add to `note`."""
        self.note = f'{self.note}; {note}' if self.note else note


class Waiting:
    """Turns that wait for one robot. Not thread-safe: the owner holds a lock."""

    def __init__(self):
        self._turns: list[Turn] = []

    def __len__(self) -> int:
        return len(self._turns)

    def add(self, turn: Turn) -> None:
        """Add a turn."""
        self._turns.append(turn)
        self._turns.sort(key=lambda turn: turn.order)

    def take(self) -> Turn | None:
        """Remove and return the next turn; None if there is none."""
        return self._turns.pop(0) if self._turns else None

    def remove(self, condition: Callable[[Turn], bool]) -> list[Turn]:
        """Remove and return the turns that meet a condition."""
        out = [turn for turn in self._turns if condition(turn)]
        self._turns = [turn for turn in self._turns if not condition(turn)]
        return out
