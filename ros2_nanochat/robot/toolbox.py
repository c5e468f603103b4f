"""The tools of one robot: what its model may use, which calls are open, and the limits on them.

Only what the tools file lists can be called: nothing that the model reads or writes changes that. Knows
neither ROS nor the model.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from ros2_nanochat.errors import one_line, shorten
from ros2_nanochat.robot.audit import AuditFile
from ros2_nanochat.robot.tool_entries import Example
from ros2_nanochat.robot.tool_journal import ToolJournal
from ros2_nanochat.robot.tool_policy import OnInterrupt, ToolLimits
from ros2_nanochat.robot.tool_record import CallRecord, RobotTool
from ros2_nanochat.robot.tool_run import LONGEST_DELAY, CallRun
from ros2_nanochat.states import FinishReason
from ros2_nanochat.tools import CallHandle, CallState, Tool, ToolCall, failed

_log = logging.getLogger(__name__)
_MOST_OPEN = 32  # calls that go on at once, each with a thread
_REASONS = {
    FinishReason.INTERRUPTED: 'the user spoke again',
    FinishReason.DEADLINE: 'the time for the answer was up',
}


class Toolbox:
    """The tools of one robot. Can be used from any thread.

    Args:
        robot: The robot's name, for the audit file.
        limits: The limits that the tools share.
        log: Has `info`, `warning` and `error`.
        journal: Where running calls are written down, or None.
        examples: Commands and calls that the model is shown.

    Attributes:
        limits: The limits that the tools share.
        log: Has `info`, `warning` and `error`.
        examples: Commands and calls that the model is shown.
    """

    def __init__(
        self,
        robot: str = '',
        limits: ToolLimits = ToolLimits(),
        log=_log,
        journal: ToolJournal | None = None,
        examples: Sequence[Example] = (),
    ):
        self.limits, self.log, self.examples = limits, log, examples
        self._robot, self._journal = robot, journal
        self._listener: Callable[[CallRecord], None] | None = None
        self._unheard: list[CallRecord] = []
        self._audit = AuditFile(limits.audit) if limits.audit else None
        self._tools: dict[str, RobotTool] = {}
        self._lock = threading.Lock()
        self._open: dict[str, CallRun] = {}
        self._last: dict[str, float] = {}  # when each tool was, or will be, called last
        self._news: list[ToolCall] = []

    # --- what may be called ---

    @property
    def tools(self) -> list[Tool]:
        """The tools that the model may use now."""
        return [each.tool for each in list(self._tools.values())]

    def set_tools(self, tools: Sequence[RobotTool]) -> None:
        """Replace the tools. Calls that are open go on."""
        self._tools = {each.tool.name: each for each in tools}

    def is_stop_word(self, text: str) -> bool:
        """Whether a question is one of the words that stop everything, and nothing else."""
        return bool(self._tools) and self.limits.stops(text)

    # --- calls ---

    def start(self, call: ToolCall, turn: TurnTools, on_change: Callable[[ToolCall], None]):
        """Start a call and return at once; see `ToolRunner.start`."""
        named = replace(call, id=turn.record_id(call.id))
        allowed = self._tools.get(call.name)
        refusal = self._refusal(call, allowed, turn)
        if allowed is None or refusal:
            handle = failed(call, on_change, f'not called: {refusal}')
            record = CallRecord(replace(handle.call, id=named.id), turn.id)
            self._tell(record)
            return _Refused(handle, record)
        run = CallRun(
            call,
            CallRecord(named, turn.id),
            allowed.performer,
            allowed.policy,
            self.limits,
            self._changed,
            on_change,
            functools.partial(self._delay, allowed),
            lambda: allowed.policy.on_interrupt is OnInterrupt.KEEP and turn.interrupted,
        )
        with self._lock:
            for other in self._open.values():
                if other.record.call.name == call.name and other.record.call.ended:
                    other.supersede()
            self._open = {key: each for key, each in self._open.items() if not each.closed.is_set()}
            self._open[named.id] = run
        return run.begin()

    def _refusal(self, call: ToolCall, allowed: RobotTool | None, turn: TurnTools) -> str:
        """Why a call is not even tried, '' if it is."""
        if allowed is None:
            names = ', '.join(self._tools) or 'none'
            return f'there is no tool {shorten(call.name)}; there is: {names}'
        turn.counts[call.name] += 1
        try:
            allowed.tool.check(call.arguments)
        except ValueError as error:
            return one_line(error)
        most = self.limits.calls_per_turn
        if turn.counts.total() > most:
            return f'at most {most} calls in one turn (limits.calls_per_turn)'
        most = allowed.policy.calls_per_turn or most
        if turn.counts[call.name] > most:
            return f'at most {most} calls of {call.name} in one turn'
        if sum(not run.closed.is_set() for run in list(self._open.values())) >= _MOST_OPEN:
            return f'{_MOST_OPEN} calls go on already'
        return ''

    def _delay(self, allowed: RobotTool, reserve: bool) -> float:
        """How long a call is held back, to keep the rate of its tool. `reserve`: keep that moment for it."""
        pause = 1.0 / (allowed.policy.rate or self.limits.rate)
        now = time.monotonic()
        with self._lock:
            due = max(now, self._last.get(allowed.tool.name, -pause) + pause)
            if reserve and due - now <= LONGEST_DELAY:
                self._last[allowed.tool.name] = due
        return due - now

    def _changed(self, run: CallRun) -> None:
        """Write down and publish how a call stands. Called on its thread.

        Raises:
            OSError: A call that is about to run cannot be written to the audit file.
        """
        record = run.record
        if record.background and record.call.ended and run.call.ended and run.call != record.call:
            with self._lock:  # first, or `saved` could drop the call before it is in the news
                self._news.append(record.call)
        self._tell(record)

    def _tell(self, record: CallRecord) -> None:
        begins = record.call.state is CallState.RUNNING and not record.call.feedback
        try:
            if self._audit is not None and (begins or record.call.state is not CallState.RUNNING):
                self._audit.add(self._robot, record)
            if self._journal is not None:
                self._journal.note(record)
        except OSError as error:
            if begins:
                raise
            self.log.error(f'a tool call cannot be written down: {one_line(error)}')
        try:
            if self._listener is not None:
                self._listener(record)
        except Exception as error:
            self.log.error(f'publishing a tool call failed: {one_line(error)}')

    def listen(self, listener: Callable[[CallRecord], None] | None) -> None:
        """Set who is told of each change of a call, on the call's thread; None for nobody."""
        self._listener = listener
        unheard, self._unheard = (self._unheard, []) if listener is not None else ([], self._unheard)
        for record in unheard:
            self._tell(record)

    @property
    def left(self) -> tuple[list[CallRecord], list[CallRecord]]:
        """Calls left over from the previous run: those that were running, and those that had ended."""
        return ([], []) if self._journal is None else (self._journal.lost, self._journal.ended)

    def saved(self, open_calls: Collection[str], untold: Sequence[ToolCall] = ()) -> None:
        """Called when the conversation was saved, without answers to `open_calls` (ids) and this news."""
        if self._journal is not None:
            news = {call.id for call in [*untold, *self._news]}
            self._journal.settle(lambda key: key in news or key.partition('.')[2] in open_calls)

    def recovered(self, records: list[CallRecord], news: list[ToolCall]) -> None:
        """Take over calls from before a crash. `records`: for the listener; `news`: for the model."""
        self._unheard, self._news = list(records), list(news)

    def take_news(self) -> list[ToolCall]:
        """Return the calls in the background that have ended since this was called last."""
        with self._lock:
            news, self._news = self._news, []
        return news

    def put_back(self, news: list[ToolCall]) -> None:
        """Undo `take_news`: the model was not told."""
        self._news = [*news, *self._news]

    def approve(self, call_id: str, approved: bool, reason: str = '') -> bool:
        """Answer for a call that waits for approval. Return whether one with this id did."""
        run = self._open.get(call_id)
        return run is not None and run.approve(approved, reason)

    # --- stopping: only `wait` waits ---

    def open_runs(self) -> list[CallRun]:
        """The calls that go on, and those whose effect does."""
        return [run for run in list(self._open.values()) if not run.closed.is_set()]

    def stop(self, reason: str = 'it was cancelled', turn_id: str | None = None) -> bool:
        """Stop all calls and undo what goes on acting. Return whether there was anything.

        Args:
            reason: Why, for the model.
            turn_id: Only those of this turn.
        """
        runs = [run for run in self.open_runs() if turn_id in (None, run.record.turn_id)]
        for run in runs:
            run.stop(reason)
        return bool(runs)

    def interrupt(self, runs: Sequence[CallRun], but: str = '') -> None:
        """Stop what a new question stops: all but the calls that the file marks `keep`.

        Args:
            runs: The calls that went on when the question came.
            but: Id of a turn that the question does not interrupt.
        """
        for run in runs:
            if run.policy.on_interrupt is OnInterrupt.CANCEL and run.record.turn_id != but:
                run.stop(_REASONS[FinishReason.INTERRUPTED])

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing goes on. Return whether that is so.

        Args:
            timeout: Seconds to wait; None: as long as stopping may take.
        """
        until = time.monotonic() + (self.limits.stop_timeout + 1.0 if timeout is None else timeout)
        return all(run.closed.wait(max(0.0, until - time.monotonic())) for run in self.open_runs())


class TurnTools:
    """The tools as one turn uses them: the `ToolRunner` of its loop.

    Args:
        box: The robot's tools.
        turn: The turn.
    """

    def __init__(self, box: Toolbox, turn):
        self.id: str = turn.id
        self.counts: Counter[str] = Counter()
        self._box, self._turn = box, turn
        self._runs: list = []

    @property
    def interrupted(self) -> bool:
        """Whether a new question has ended the turn."""
        return self._turn.stop_reason == FinishReason.INTERRUPTED

    def record_id(self, call_id: str) -> str:
        """Return the id with which a call is published: no other call has it, also after a reset."""
        return f'{self.id[:8]}.{call_id}'

    @property
    def records(self) -> list[CallRecord]:
        """The calls of the turn, in order, as they stand."""
        return [run.record for run in self._runs]

    def start(self, call: ToolCall, on_change: Callable[[ToolCall], None]):
        """Start a call and return at once; see `ToolRunner.start`."""
        self._runs.append(self._box.start(call, self, on_change))
        return self._runs[-1]

    def finish(self) -> None:
        """Stop what the turn has begun, if the turn was stopped."""
        reason = self._turn.stop_reason or self._turn.finish_reason
        if reason == FinishReason.INTERRUPTED:
            self._box.interrupt(self._box.open_runs())
        elif reason in (FinishReason.CANCELLED, FinishReason.DEADLINE):
            self._box.stop(_REASONS.get(reason, 'it was cancelled'), self.id)


class _Refused:
    """A call that was not tried, as a `RunningCall`."""

    def __init__(self, handle: CallHandle, record: CallRecord):
        self.record = record
        self.call, self.wait, self.cancel = handle.call, handle.wait, handle.cancel
