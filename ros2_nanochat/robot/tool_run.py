"""The life of one call of a tool: approval, rate, start, feedback, answer, time-out, stop.

Each call has a short-lived thread of its own, so that a tool that hangs holds up neither a callback nor
another robot. Whoever performs the call (a ROS client, an MCP server) reports from any thread.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from ros2_nanochat.errors import one_line
from ros2_nanochat.files import valid_text
from ros2_nanochat.robot.tool_policy import ToolLimits, ToolPolicy
from ros2_nanochat.robot.tool_record import CallRecord, Performer
from ros2_nanochat.robot.tool_signals import CallSignals
from ros2_nanochat.tools import CallHandle, CallState, ToolCall

_log = logging.getLogger(__name__)
_LOOK = 0.1  # seconds between two looks at whether the other side is still there
_FEEDBACK = 0.1  # seconds between two announcements of feedback
LONGEST_DELAY = 2.0  # seconds that a call is held back to keep its rate


class CallRun(CallSignals):
    """One call: what its turn waits for (a `RunningCall`), and what is published about it.

    Both differ for a call in the background: the turn is told that it has started, and the call goes on. A
    call whose effect goes on (`performer.acts_on`) stays open after its end, until it is undone.

    Args:
        call: The call.
        record: The same call, as it is published.
        performer: Performs it.
        policy: How the tool may be used.
        limits: The limits of all tools.
        announce: Called with the run when its record has changed, on the call's thread.
        on_change: Called with what the turn is told; see `ToolRunner.start`.
        delay: Returns the seconds to hold it back, to keep the tool's rate: `delay(True)` also reserves the
            moment.
        keeps: Whether the call goes on when its turn cancels it: the turn is interrupted, and the file says
            `keep`.

    Attributes:
        policy: How the tool may be used.
        timeout: Seconds that it may take.
        performer: Performs it.
        record: The call as it stands.
        closed: Set when nothing of it goes on.
    """

    def __init__(
        self,
        call: ToolCall,
        record: CallRecord,
        performer: Performer,
        policy: ToolPolicy,
        limits: ToolLimits,
        announce: Callable[[CallRun], None],
        on_change: Callable[[ToolCall], None],
        delay: Callable[[bool], float] = lambda reserve: 0.0,
        keeps: Callable[[], bool] = lambda: False,
    ):
        super().__init__()
        self.policy, self.performer, self.timeout = policy, performer, policy.timeout
        self.closed = threading.Event()
        self._limits, self._announce, self._delay, self._keeps = limits, announce, delay, keeps
        dry = policy.dry_run or limits.dry_run
        self.record = replace(record, background=policy.background and not dry, dry_run=dry)
        self._for_turn = CallHandle(call, on_change, self._cancelled_by_turn)
        self._began: float | None = None
        self._thread = threading.Thread(target=self._live, name=f'tool-{call.name}', daemon=True)

    def begin(self) -> CallRun:
        """Start the call's thread."""
        self._thread.start()
        return self

    # --- the turn: a `RunningCall` ---

    @property
    def call(self) -> ToolCall:
        """The call as its turn was told."""
        return self._for_turn.call

    def wait(self, timeout: float | None = None) -> ToolCall | None:
        """Wait until the turn was told how the call ended; see `RunningCall`."""
        return self._for_turn.wait(timeout)

    def cancel(self, reason: str = '') -> None:
        """Ask the call to end, because its turn does; see `RunningCall`."""
        self._for_turn.cancel(reason)

    def _cancelled_by_turn(self, reason: str) -> None:
        if self._keeps():
            self.leave()
        else:
            self.stop(reason)

    # --- the call's thread ---

    def _live(self) -> None:
        try:
            if self._may_begin():
                self._run()
                if self.performer.acts_on and self.record.call.state is CallState.DONE:
                    self._act_on()
        except BaseException as error:  # nothing may leave the call open
            if not self.record.call.ended:
                self._end(CallState.FAILED, f'not called: {one_line(error)}')
            else:
                _log.error('%s failed: %s', self.record.call.name, one_line(error))
        finally:
            self.closed.set()

    def _may_begin(self) -> bool:
        """Wait until the call may begin, or end it."""
        if self.record.dry_run:
            self._end(CallState.DONE, f'dry run: {self.performer.preview(self.record.call.arguments)}')
            return False
        if self.policy.confirm and not (self._keeps_rate(self._delay(False)) and self._is_approved()):
            return False
        delay = self._delay(True)  # an approval may have taken long
        if not self._keeps_rate(delay):
            return False
        with self._changed:
            self._changed.wait_for(lambda: self._stop_reason or self._left, delay)
        if self._stop_reason or self._left:
            self._end(CallState.CANCELLED, f'not called: {self._stop_reason or "the turn ended"}')
            return False
        return True

    def _keeps_rate(self, delay: float) -> bool:
        """Whether a call may be held back for so long; else it has ended."""
        if delay > LONGEST_DELAY:
            self._end(
                CallState.FAILED,
                f'not called: it is called too often, wait {math.ceil(delay)} s before the next call',
            )
        return delay <= LONGEST_DELAY

    def _is_approved(self) -> bool:
        self._asking = True
        self._move(CallState.WAITING)
        limit = self._limits.approval_timeout
        with self._changed:
            self._changed.wait_for(lambda: self._approval or self._stop_reason or self._left, limit)
            approval, stopped = self._approval, self._stop_reason or ('the turn ended' if self._left else '')
            if approval is None:
                self._approval = False, 'too late'
        if stopped:
            self._end(CallState.CANCELLED, f'not called: {stopped}')
        elif approval is None:
            self._end(CallState.FAILED, f'not called: nobody approved it within {limit:g} s')
        elif not approval[0]:
            reason = f': {one_line(approval[1])}' if approval[1].strip() else ''
            self._end(CallState.FAILED, f'not called: it was refused{reason}')
        else:
            return True
        return False

    def _run(self) -> None:
        """Call the tool, and wait until it answers, is stopped, or its time is up."""
        self._began = time.monotonic()
        self._move(CallState.RUNNING)  # before the call: if it cannot be written down, nothing is called
        try:
            self.performer.start(self.record.call.arguments, self)
        except BaseException as error:
            self.fail(one_line(error))
        until, told, shown = self._began + self.timeout, '', 0.0
        while True:
            with self._changed:
                news = time.monotonic() - shown >= _FEEDBACK
                self._changed.wait_for(
                    functools.partial(self._due, told if news else None),
                    min(_LOOK, max(0.0, until - time.monotonic())),
                )
                answer, stopped, feedback = self._answer, self._stop_reason, self._feedback
            self._tell_turn()
            now = time.monotonic()
            if answer is not None:
                return self._end(*answer)
            if stopped:
                return self._stop(stopped)
            if reason := self.performer.lost(self):  # says more than that the time is up
                return self._end(CallState.FAILED, one_line(reason))
            if now >= until and self._answer is None:
                return self._stop('', f'no answer within {self.timeout:g} s')
            if feedback != told and now - shown >= _FEEDBACK:
                told, shown = feedback, now
                self._move(CallState.RUNNING)

    def _due(self, told: str | None) -> bool:
        """Whether the call's thread has something to do. `told`: the feedback that was announced."""
        return bool(
            self._answer is not None
            or self._stop_reason
            or (self._left and not self._for_turn.call.ended)
            or (self._taken and self.record.background and not self._for_turn.call.ended)
            or (told is not None and self._feedback != told)
        )

    def _tell_turn(self) -> None:
        """Tell the turn of a call that goes on without it."""
        if self._answer is not None or self._stop_reason:
            return
        if self._left and not self._for_turn.call.ended:
            self._for_turn.change(CallState.DONE, 'it goes on; its result comes later')
            self.record = replace(self.record, background=True)
            self._move(CallState.RUNNING)
        elif self._taken and self.record.background:
            self._for_turn.change(CallState.DONE, 'started; its result comes later')

    def _stop(self, reason: str, timeout: str = '') -> None:
        """Stop what runs, undo it, and wait a bounded time for its end."""
        for act in (lambda: self.performer.stop(self), self.performer.undo):
            self._attempt(act)
        with self._changed:
            self._changed.wait_for(lambda: self._answer, self._limits.stop_timeout)
            answer = self._answer
        self._attempt(lambda: self.performer.undo(again=True))
        why = timeout or reason
        if answer is None:
            self._end(
                CallState.UNKNOWN, f'{why}; whether it has stopped is unknown: it has not confirmed that'
            )
        elif answer[0] is CallState.DONE and not timeout:
            self._end(*answer)
        elif timeout:
            self._end(CallState.FAILED, f'{timeout}; it was stopped')
        else:
            self._end(CallState.CANCELLED, f'it was stopped: {why}')

    def _act_on(self) -> None:
        """Wait until what the call did is undone, or another call replaces it."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop_reason or self._superseded)
            reason = '' if self._superseded else self._stop_reason
        if reason:
            self._attempt(self.performer.undo)
            self._move(CallState.CANCELLED, f'it was undone: {reason}')

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            _log.error('stopping %s failed: %s', self.record.call.name, one_line(error))

    def _end(self, state: CallState, text: str) -> None:
        """End the call: publish it, then let its turn go on."""
        limit, text = self._limits.max_result, valid_text(text)
        text = text if len(text) <= limit else f'{text[:limit]}... ({len(text) - limit} more characters)'
        try:
            self._move(state, text)
        finally:
            self._for_turn.change(state, text)

    def _move(self, state: CallState, result: str = '') -> None:
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        call = replace(self.record.call.moved(state, result, seconds), feedback=self._feedback)
        self.record = replace(self.record, call=call)
        self._announce(self)
        if not state.ended:
            self._for_turn.change(state, feedback=self._feedback)
