"""The loop of a turn with tools: a reply, its calls, their answers, the next reply.

Knows neither ROS nor how calls are executed; a `ToolRunner` does that. The history changes only here, in the
thread that iterates the events, and each event tells what the history already holds.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.engine.stream import StreamingResponse
from ros2_nanochat.engine.usage import Usage
from ros2_nanochat.errors import one_line
from ros2_nanochat.states import FinishReason
from ros2_nanochat.tools.call import CallState, ToolCall
from ros2_nanochat.tools.events import Answered, CallChanged, Called, Ended, Event, Paused, TextPiece
from ros2_nanochat.tools.runner import RunningCall, ToolRunner

Respond = Callable[[str], StreamingResponse]

CANCEL_SECONDS = 5.0
"""How long the loop waits for a cancelled call to end before it counts as `unknown`."""

_WHY = {
    FinishReason.INTERRUPTED: 'the user spoke again',
    FinishReason.DEADLINE: 'the time for the answer was up',
}


class ToolLoop:
    """Answers one turn. Iterate `events()` once; `stop()` may be called from any thread.

    The history must end with the question. When the events have ended, it holds the replies, their calls and
    one answer for each call, also if the turn was stopped: nothing is left open.

    - A reply with calls is followed by their answers and another reply. Calls run one after the other, in the
      order in which the model wrote them.
    - After `max_tool_rounds` replies with calls, the next reply is made without (`tool_choice` is `none`), so
      the turn always ends with text.
    - `tool_choice` applies to the first reply: `auto`; `required` (at least one call); `none`; or the name of
      a tool, which is then called. Later replies are `auto`.
    - `stop()` ends the reply at what was delivered, cancels the call that runs, and waits for it at most
      `cancel_seconds`. Calls that have not begun are answered as cancelled. There is no further reply.
    - A reply that was cut in the middle of a call is kept up to the call; the call is not executed.

    Args:
        history: The conversation, with its `tools`.
        runner: Executes the calls.
        respond: Makes the prompt and starts the next reply: `respond(tool_choice)`. `replying` makes one; a
            robot passes its own, which may raise only for the first reply.
        tool_choice: See above.
        max_tool_rounds: Replies with calls in one turn, 1 or more.
        lock: Held while the history changes.
        due: `time.monotonic()` at which running calls are cancelled and the turn ends with `deadline`.
        cancel_seconds: How long a cancelled call may take to end; then it counts as `unknown`.
    """

    def __init__(
        self,
        history: ChatHistory,
        runner: ToolRunner,
        respond: Respond,
        *,
        tool_choice: str = 'auto',
        max_tool_rounds: int = 4,
        lock: AbstractContextManager | None = None,
        due: float = math.inf,
        cancel_seconds: float = CANCEL_SECONDS,
    ):
        if not isinstance(max_tool_rounds, int) or max_tool_rounds < 1:
            raise ValueError(f'max_tool_rounds={max_tool_rounds!r} is not valid: a whole number of 1 or more')
        self._history = history
        self._runner = runner
        self._respond = respond
        self._tool_choice = tool_choice
        self._max_rounds = max_tool_rounds
        self._lock = contextlib.nullcontext() if lock is None else lock
        self._due = due
        self._cancel_seconds = cancel_seconds
        self._guard = threading.RLock()
        self._reply: StreamingResponse | None = None
        self._running: RunningCall | None = None
        self._changes: queue.SimpleQueue[ToolCall | None] = queue.SimpleQueue()
        self.stop_reason: FinishReason | None = None
        """Why `stop` was called; None if it was not."""
        self.replies: list[StreamingResponse] = []
        """The replies so far, the running one last."""
        self.calls: list[ToolCall] = []
        """The calls so far, as they ended."""

    # --- from any thread ---

    def stop(self, reason: FinishReason | str = FinishReason.CANCELLED) -> None:
        """End the turn: the reply at what was delivered, a running call by cancelling it. The first reason
        counts. Returns at once; the events then end.

        Args:
            reason: The `finish_reason` of the turn.
        """
        with self._guard:
            if self.stop_reason is None:
                self.stop_reason = FinishReason(reason)
            reply, running = self._reply, self._running
        if reply is not None:
            reply.stop(self.stop_reason)
        if running is not None:
            running.cancel(self._why())
        self._changes.put(None)

    def _why(self) -> str:
        assert self.stop_reason is not None
        return _WHY.get(self.stop_reason, 'it was stopped')

    # --- the thread of the turn ---

    def start(self) -> ToolLoop:
        """Start the first reply. `events` does this if you do not.

        Raises:
            ValueError: The question cannot be answered, for example because it is too long.
        """
        if not self.replies:
            self._next_reply(self._tool_choice)
        return self

    def _next_reply(self, tool_choice: str) -> StreamingResponse:
        reply = self._respond(tool_choice)
        self.replies.append(reply)
        with self._guard:
            self._reply = reply
            if self.stop_reason is not None:
                reply.stop(self.stop_reason)
        return reply

    def events(self, pause: float | None = None) -> Iterator[Event]:
        """Run the turn.

        If you end the iteration early, the turn is stopped as by `stop()`.

        Args:
            pause: Yield `Paused` each time that a reply gives no text for this many seconds.

        Raises:
            ValueError: As `start`. Later errors are in `Ended.error`.
        """
        self.start()
        open_calls: list[ToolCall] = []
        error = ''
        try:
            for number in itertools.count():
                reply = self.replies[-1]
                yield from self._text(reply, number, pause)
                open_calls = self._keep(reply)
                if not open_calls:
                    break
                for call in open_calls:
                    yield Called(call, number)
                while open_calls:
                    yield from self._execute(open_calls[0])
                    yield Answered(self._answer(open_calls.pop(0)))
                if self.stop_reason is not None:
                    break
                try:
                    self._next_reply('none' if number + 1 >= self._max_rounds else 'auto')
                except Exception as problem:  # the calls have happened: the turn says so
                    error = one_line(problem)
                    break
        finally:
            if self._reply is not None and not self._reply.eos:  # the iteration was ended early
                self.stop()
                self._keep(self._reply)
            while open_calls:
                self.stop()
                self._finish_quietly(open_calls[0])
                self._answer(open_calls.pop(0))
        yield self._ended(error)

    def _text(self, reply: StreamingResponse, number: int, pause: float | None) -> Iterator[Event]:
        for delta in reply.deltas() if pause is None else reply.deltas_and_pauses(pause):
            if delta is None:
                yield Paused()
            elif not delta.call:
                yield TextPiece(delta, number)

    def _keep(self, reply: StreamingResponse) -> list[ToolCall]:
        """Add a reply that has ended to the history; return its calls."""
        with self._guard:
            self._reply = None
        if reply.finish_reason is None or not (reply.tokens or reply.finish_reason is FinishReason.STOP):
            return []  # nothing was delivered: as if the model had not been asked
        with self._lock:
            message = self._history.append('bot', reply)
        return [ToolCall(call.id, call.name, call.arguments) for call in message.calls]

    def _execute(self, call: ToolCall) -> Iterator[CallChanged]:
        """Run one call to its end. Leaves the ended call as the last of `calls`."""
        self.calls.append(call)
        if self.stop_reason is not None:
            self.calls[-1] = call.moved(CallState.CANCELLED, f'cancelled before it began: {self._why()}')
            yield CallChanged(self.calls[-1])
            return
        self._begin(call)
        patience = math.inf
        while not self.calls[-1].ended:
            if self.stop_reason is not None:
                patience = min(patience, time.monotonic() + self._cancel_seconds)
            elif time.monotonic() >= self._due:
                self.stop(FinishReason.DEADLINE)
                continue
            changed = self._next_change(min(patience, math.inf if self.stop_reason else self._due))
            if changed is not None:
                self.calls[-1] = changed
                yield CallChanged(changed)
            elif time.monotonic() >= patience:
                self._lose(call)
                yield CallChanged(self.calls[-1])
        with self._guard:
            self._running = None

    def _begin(self, call: ToolCall) -> None:
        changes: queue.SimpleQueue[ToolCall | None] = (
            queue.SimpleQueue()
        )  # late news of an earlier call is lost
        self._changes = changes
        try:
            running = self._runner.start(call, changes.put)
        except Exception as problem:  # of a runner: the turn goes on
            changes.put(call.moved(CallState.FAILED, f'error: {one_line(problem)}'))
            return
        with self._guard:
            self._running = running
            stopped = self.stop_reason is not None
        if stopped:
            running.cancel(self._why())

    def _next_change(self, until: float) -> ToolCall | None:
        try:
            return self._changes.get(
                timeout=None if until == math.inf else max(0.0, until - time.monotonic())
            )
        except queue.Empty:
            return None

    def _lose(self, call: ToolCall) -> None:
        text = f'unknown: it was cancelled and did not end within {self._cancel_seconds:g} s'
        self.calls[-1] = self.calls[-1].moved(CallState.UNKNOWN, text)

    def _finish_quietly(self, call: ToolCall) -> None:
        """End a call without telling anyone: nobody iterates any more."""
        if self.calls and self.calls[-1].id == call.id:
            running = self._running
            ended = running.wait(self._cancel_seconds) if running is not None else None
            if ended is not None:
                self.calls[-1] = ended
            elif not self.calls[-1].ended:
                self._lose(call)
            return
        self.calls.append(call.moved(CallState.CANCELLED, f'cancelled before it began: {self._why()}'))

    def _answer(self, call: ToolCall) -> ToolCall:
        """Add the answer of the call that ended last to the history."""
        ended = self.calls[-1]
        with self._lock:
            self._history.append_answer(call.id, call.name, ended.result)
        return ended

    def _ended(self, error: str) -> Ended:
        replies = self.replies
        last = replies[-1]
        reason = last.finish_reason
        if error:
            reason = FinishReason.ERROR
        elif self.stop_reason is not None and (last.calls or not FinishReason(reason or '').complete):
            reason = self.stop_reason
        rounds = tuple(reply.usage for reply in replies)
        return Ended(
            FinishReason(reason),
            '\n\n'.join(reply.text.strip() for reply in replies if reply.text.strip())
            if len(replies) > 1
            else last.text,
            '\n\n'.join(reply.reasoning.strip() for reply in replies if reply.reasoning.strip()),
            tuple(self.calls),
            replace(rounds[0], new_tokens=sum(usage.new_tokens for usage in rounds)) if rounds else Usage(),
            rounds,
            error or last.error or '',
        )
