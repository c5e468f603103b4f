"""Runs a robot's turns one after another on its own thread, and keeps the history.

A thread that has died or is stuck is replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ros2_nanochat.errors import BackendError, MissingDependency, one_line
from ros2_nanochat.robot.answering import Answering, Memory
from ros2_nanochat.robot.recovery import Faults, Guard, SavedState
from ros2_nanochat.robot.schedule import Schedule
from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.robot.worker import Worker
from ros2_nanochat.states import FinishReason


class Runner:
    """Runs the turns of one robot.

    Args:
        name: Name of the thread.
        title: Name of the robot, for messages.
        schedule: What runs and waits.
        memory: The conversation.
        answering: Answers a turn.
        output: Returns the robot's current `Output`.
        store: A `ConversationStore` or None.
        log: Has `info`, `warning` and `error`.

    Attributes:
        memory: The conversation; a new object after the thread was replaced.
        last: The turn that ended last.
        record: The most tokens per second of any turn so far.
    """

    def __init__(
        self,
        name: str,
        title: str,
        schedule: Schedule,
        memory: Memory,
        answering: Answering,
        output: Callable,
        store=None,
        log=None,
    ):
        self.memory = memory
        self.faults = Faults()
        self.last: Turn | None = None
        self.record = 0.0
        self._name, self._title, self._log = name, title, log
        self._schedule, self._answering, self._output = schedule, answering, output
        self._guard = Guard(self.faults, log, title)
        self.saved = SavedState(store, self._guard, answering.saved) if store is not None else None
        self._before: list = []  # the messages without the turn that runs
        self._worker = self._new_worker()
        self._worker.start()

    def _new_worker(self) -> Worker:
        return Worker(self._name, self._work, lambda error: self._guard.failed('the robot', error))

    # --- from outside ---

    def supervise(self) -> None:
        """Replace the thread if it has died or is stuck. Its turn ends with an error.

        Raises:
            RuntimeError: The system has no thread left. Calling this again tries again.
        """
        trouble = self._worker.trouble
        if self._schedule.closed or not trouble or not self.faults.may_restart():
            return
        turn = self._schedule.replace(self._worker)
        try:
            self.memory = self.memory.copy(None if turn is None else self._before)
            if turn is not None:
                self._abandon(turn, trouble)
        finally:
            self._worker = self._new_worker()
            self.faults.restart(trouble, self._worker.start)
        self._log.error(f'{self._title}{trouble}; it was restarted')

    def _abandon(self, turn: Turn, trouble: str) -> None:
        """End the turn of a thread that was replaced."""
        turn.stop(FinishReason.CANCELLED)
        if turn.claim():
            turn.finish_reason, turn.error = FinishReason.ERROR, f'internal error: {trouble}'
            self._schedule.put_first(lambda: self.announce(turn, self._worker))
        turn.ended.set()  # now, because announcing it may be what is stuck

    def announce(self, turn: Turn, worker: Worker | None = None) -> None:
        """Tell the robot's output that a turn has ended.

        Args:
            turn: The turn.
            worker: The robot's thread, None if called on another thread.
        """
        if turn.error:
            self._log.warning(f'{self._title}{turn.finish_reason}: {turn.error}')
        turn.let_go()
        try:
            self.emit(worker, 'ended', turn)
        finally:
            turn.ended.set()

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the thread to end."""
        self._worker.join(timeout)

    # --- the robot's thread ---

    def _work(self, worker: Worker) -> bool:
        """Do the next job or turn. Return False when there will be no more."""
        unsaved = self.saved if self.saved is not None and self.saved.failure else None
        work = self._schedule.next(worker, unsaved.retry_seconds if unsaved else None)
        memory = self.memory
        if isinstance(work, Turn):
            self._before = list(memory.history.messages)
            self._run_turn(work, memory, worker)
        elif work is not None:
            self._guard.do_job(*work)
        elif self._schedule.closed:
            return False
        elif unsaved:
            with memory.lock:
                unsaved.save(memory, worker)
        return True

    def _run_turn(self, turn: Turn, memory: Memory, worker: Worker) -> None:
        try:
            self._answer(turn, memory, worker)
        except Exception as error:  # a bug of ours; the robot continues
            with memory.lock:
                memory.history.messages = list(self._before)
            turn.finish_reason, turn.error = FinishReason.ERROR, f'internal error: {one_line(repr(error))}'
            turn.stop(FinishReason.CANCELLED)
        worker.check()
        self._before = list(memory.history.messages)  # the turn stays from here on, even if it gets stuck
        if turn.claim():
            if self.saved is not None and not FinishReason(turn.finish_reason).failed:
                with memory.lock:
                    self.saved.save(memory, worker, turn)
            self.last = turn
            if turn.usage.new_tokens >= 16:
                self.record = max(self.record, turn.tokens_per_second)
            self.announce(turn, worker)
            self.faults.went_well()
        idle = self._schedule.finished(worker)
        if turn.usage.new_tokens and idle and self.saved is not None:
            # Only if this turn computed something: else the KV belongs to earlier turns, which a reset may
            # have forgotten. Nobody waits for it.
            self.saved.save_kv(memory, worker)

    def _answer(self, turn: Turn, memory: Memory, worker: Worker) -> None:
        turn.queue_time = time.monotonic() - turn.arrived
        self.emit(worker, 'started', turn)
        turn.begun = True
        try:
            stream = self._answering.begin(turn, memory, worker)
        except (ValueError, OSError, BackendError, MissingDependency) as error:
            with memory.lock:
                memory.history.messages = list(self._before)
            turn.finish_reason, turn.error = FinishReason.ERROR, str(error)
            return
        if stream is not None:
            turn.attach(stream)
            self._answering.stream(turn, stream, worker)
        with memory.lock:
            worker.check()
            if stream is None or (not stream.tokens and turn.finish_reason != FinishReason.STOP):
                memory.history.messages = list(self._before)  # no answer: as if it had not been asked
            else:
                self._answering.keep(stream, memory.history)

    def checkpoint(self, memory: Memory, worker: Worker, whole: bool) -> None:
        """Write down what has happened of the running turn, so that a crash cannot undo it.

        Args:
            memory: The conversation.
            worker: The robot's thread.
            whole: The conversation can go on from here: it stays even if the turn fails.
        """
        with memory.lock:
            worker.check()
            if whole:
                self._before = list(memory.history.messages)
            if self.saved is not None:
                self.saved.save(memory, worker)

    def emit(self, worker: Worker | None, name: str, *arguments) -> None:
        """Call a method of the robot's output. Its exceptions do not propagate.

        Args:
            worker: The robot's thread, None if called on another thread.
            name: Name of the method.
            *arguments: Its arguments.
        """
        self._guard.publish(worker, getattr(self._output(), name), *arguments)
