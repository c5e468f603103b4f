"""A reply to a `ChatClient`: pieces as they stream, and the turn at the end."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

from nanochat.msg import Turn

from ros2_nanochat.answer.response_format import ResponseFormat

_SILENCE = 1.0  # seconds without a token before the node is checked


class NodeGone(RuntimeError):
    """The chat node does not answer."""


class FormedTurn(Turn):
    """A turn whose answer has a requested form.

    Attributes:
        parsed: The answer as a value: text, parsed JSON, or an instance of the requested class; None if the
            turn is not `valid`.
    """

    __slots__ = ('parsed',)

    def __init__(self, turn: Turn, form: ResponseFormat):
        super().__init__()
        for name in turn.get_fields_and_field_types():
            setattr(self, name, getattr(turn, name))
        self.parsed = form.parse(turn.reply) if turn.valid else None


class Reply:
    """A reply that streams. Iterate over it to get pieces of text.

    A turn that failed raises no exception: see `turn.finish_reason` and `turn.error`.

    Attributes:
        future: A `concurrent.futures.Future` of the nanochat/msg/Turn. Raises `NodeGone` if the node left.
        turn_id: Id of the turn in the robot's topics. It is that of the goal, so it is known at once.
    """

    def __init__(
        self,
        look_after: Callable[[Reply], None],
        cancel: Callable,
        form: ResponseFormat | None = None,
        turn_id: str = '',
    ):
        self._form, self.turn_id = form, turn_id
        self.future: Future[Turn] = Future()
        self._look_after, self._cancel_goal = look_after, cancel
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._length = 0
        self._goal: Any = None
        self._looked = time.monotonic()  # when it was sent, or its result last asked for
        self._cancelled = False
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                piece = self._pieces.get(timeout=_SILENCE)
            except queue.Empty:
                self._look_after(self)
                continue
            if piece is None:
                break
            yield piece
        self._pieces.put(None)  # whoever iterates again finds the end

    @property
    def turn(self) -> Turn:
        """The whole turn; waits for its end."""
        return self.result()

    def result(self, timeout: float | None = None) -> Turn:
        """Wait for the whole turn and return it.

        Raises:
            TimeoutError: It has not ended after `timeout` seconds.
            NodeGone: The node left.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            left = max(0.0, until - time.monotonic())
            try:
                return self.future.result(min(left, _SILENCE))
            except FutureTimeout:
                if left <= _SILENCE:
                    raise TimeoutError(f'no end of the reply within {timeout} s') from None
                self._look_after(self)

    def cancel(self) -> None:
        """Ask the node to stop the reply; the text so far is kept. Returns at once."""
        with self._lock:
            self._cancelled = True
            if self._goal is not None:
                self._cancel_goal(self._goal)

    def _accepted(self, goal) -> None:
        with self._lock:
            self._goal = goal
            if self._cancelled:
                self._cancel_goal(goal)

    def _feedback(self, message) -> None:
        token = message.feedback.token
        if token.text and not token.reasoning and not self.future.done():
            self._length += len(token.text)
            self._pieces.put(token.text)

    def _finished(self, turn: Turn) -> None:
        if self.future.done():
            return
        if len(turn.reply) > self._length:
            self._pieces.put(turn.reply[self._length :])  # feedback that came late or was lost
        self.future.set_result(turn if self._form is None else FormedTurn(turn, self._form))
        self._pieces.put(None)

    def _failed(self, reason: str) -> None:
        if not self.future.done():
            self.future.set_exception(NodeGone(reason))
            self._pieces.put(None)
