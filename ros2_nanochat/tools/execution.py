"""Runs the calls of one turn, one at a time, on the turn's thread. Other threads may cancel them."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterator

from ros2_nanochat.errors import one_line
from ros2_nanochat.states import FinishReason
from ros2_nanochat.tools.call import CallState, ToolCall
from ros2_nanochat.tools.reading_ahead import Ahead
from ros2_nanochat.tools.runner import RunningCall, ToolRunner

_WHY = {
    FinishReason.INTERRUPTED: 'the user spoke again',
    FinishReason.DEADLINE: 'the time for the answer was up',
}


class Execution:
    """Runs the calls of one turn.

    Args:
        runner: Executes the calls.
        ahead: What the model reads while a call runs.
        due: `time.monotonic()` at which the running call is cancelled.
        cancel_seconds: How long a cancelled call may take to end; then it counts as `unknown`.

    Attributes:
        calls: The calls so far, as they ended; the last one may still run.
        stopped: Why the turn ends; None while it goes on.
    """

    def __init__(self, runner: ToolRunner, ahead: Ahead, due: float, cancel_seconds: float):
        self.calls: list[ToolCall] = []
        self.stopped: FinishReason | None = None
        self._runner, self._ahead, self._due = runner, ahead, due
        self._cancel_seconds = cancel_seconds
        self._lock = threading.RLock()
        self._running: RunningCall | None = None
        self._changes: queue.SimpleQueue[ToolCall | None] = queue.SimpleQueue()

    def stop(self, reason: FinishReason) -> None:
        """Cancel the running call; further ones do not begin. The first reason counts. Any thread."""
        with self._lock:
            if self.stopped is None:
                self.stopped = reason
            running = self._running
        if running is not None:
            running.cancel(self._why())
        self._changes.put(None)

    def _why(self) -> str:
        assert self.stopped is not None
        return _WHY.get(self.stopped, 'it was cancelled')

    def run(self, call: ToolCall) -> Iterator[ToolCall]:
        """Run one call to its end; yield it each time that it has changed. It is then the last of `calls`."""
        self.calls.append(call)
        if self.stopped is not None:
            self.calls[-1] = call.moved(CallState.CANCELLED, f'not called: {self._why()}')
            yield self.calls[-1]
            return
        self._begin(call)
        patience = math.inf
        while not self.calls[-1].ended:
            if self.stopped is not None:
                patience = min(patience, time.monotonic() + self._cancel_seconds)
            elif time.monotonic() >= self._due:
                self.stop(FinishReason.DEADLINE)
                continue
            due = math.inf if self.stopped else min(self._due, self._ahead.due)
            changed = self._next_change(min(patience, due))
            if changed is not None:
                self.calls[-1] = changed
                yield changed
            elif time.monotonic() >= patience:
                self._lose()
                yield self.calls[-1]
            elif self.stopped is None:
                self._ahead.look()
        self._ahead.end()
        with self._lock:
            self._running = None

    def _begin(self, call: ToolCall) -> None:
        changes: queue.SimpleQueue[ToolCall | None] = queue.SimpleQueue()
        self._changes = changes  # late news of an earlier call is lost
        try:
            running = self._runner.start(call, changes.put)
        except Exception as problem:  # of a runner: the turn goes on
            changes.put(call.moved(CallState.FAILED, f'error: {one_line(problem)}'))
            return
        with self._lock:
            self._running = running
            stopped = self.stopped is not None
        self._ahead.begin()
        if stopped:
            running.cancel(self._why())

    def _next_change(self, until: float) -> ToolCall | None:
        seconds = None if until == math.inf else max(0.0, until - time.monotonic())
        try:
            return self._changes.get(timeout=seconds)
        except queue.Empty:
            return None

    def _lose(self) -> None:
        text = f'unknown: it was cancelled and did not end within {self._cancel_seconds:g} s'
        self.calls[-1] = self.calls[-1].moved(CallState.UNKNOWN, text)

    def finish_quietly(self, call: ToolCall) -> None:
        """End a call without telling anyone: nobody iterates any more, and the turn was stopped."""
        self._ahead.end()
        if not self.calls or self.calls[-1].id != call.id:
            self.calls.append(call.moved(CallState.CANCELLED, f'not called: {self._why()}'))
            return
        running = self._running
        ended = running.wait(self._cancel_seconds) if running is not None else None
        if ended is not None:
            self.calls[-1] = ended
        elif not self.calls[-1].ended:
            self._lose()
