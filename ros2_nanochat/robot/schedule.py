"""What runs and what waits for one robot: which turn is next, which ones a new one displaces, which are
refused.

What the robot's thread and its callers share; its lock is held for moments only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from ros2_nanochat.config import OnNewQuery
from ros2_nanochat.robot.turn import Turn, Waiting
from ros2_nanochat.robot.worker import Worker
from ros2_nanochat.states import FinishReason

Job = tuple[Callable[[], object] | None, Future]
"""What the robot's thread is to do between two turns, and where its result goes."""


class Schedule:
    """One robot's. Any thread."""

    def __init__(self):
        self._waiting = Waiting()
        self._current: Turn | None = None
        self._jobs: list[Job] = []
        self._closed = False
        self._changed = threading.Condition()  # reentrant

    # --- callers ---

    def admit(self, turn: Turn) -> tuple[str, list[Turn]]:
        """Take a turn in; returns why it is refused, '' if it is not, and those that waited and make way."""
        policy, priority = turn.options.on_new_query, turn.options.priority
        gone: list[Turn] = []
        with self._changed:
            current = self._current
            if self._closed:
                return 'the node is being deactivated: ask again when it is active', gone
            if policy is OnNewQuery.REJECT and (current is not None or len(self._waiting)):
                return 'another reply streams (on_new_query: reject): ask again when it has ended', gone
            if policy is OnNewQuery.INTERRUPT:
                gone = self._waiting.remove(
                    lambda other: (
                        other.options.on_new_query is OnNewQuery.INTERRUPT
                        and other.options.priority <= priority
                    )
                )
            if len(self._waiting) >= max(turn.options.max_queue, policy is OnNewQuery.INTERRUPT):
                return f'{len(self._waiting)} turns wait already (max_queue): ask again later', gone
            if (
                policy is OnNewQuery.INTERRUPT
                and current is not None
                and current.options.priority <= priority
            ):
                current.stop(FinishReason.INTERRUPTED)
            self._waiting.add(turn)
            self._changed.notify_all()
        return '', gone

    def remove(self, condition: Callable[[Turn], bool]) -> list[Turn]:
        """Take out those that wait and meet a condition."""
        with self._changed:
            return self._waiting.remove(condition)

    def stop_current(self, reason: FinishReason) -> bool:
        """Stop the turn that runs; whether there was one."""
        with self._changed:
            if self._current is not None:
                self._current.stop(reason)
            return self._current is not None

    def clear(self, job: Callable[[], object] | None) -> tuple[bool, list[Turn], Future]:
        """Stop the turn that runs, take out those that wait, and have a job done before the next turn.
        Returns whether a turn ran, those that waited, and where the job's result comes.
        """
        done: Future = Future()
        with self._changed:
            dropped = self._waiting.remove(lambda turn: True)
            ran = self.stop_current(FinishReason.CANCELLED)
            self._jobs.append((job, done))
            self._changed.notify_all()
        return ran, dropped, done

    def close(self) -> bool:
        """Refuse all that comes; False if that was so already."""
        with self._changed:
            was, self._closed = self._closed, True
            self._changed.notify_all()
        return not was

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def current(self) -> Turn | None:
        """The turn that runs."""
        return self._current

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    # --- the robot's thread ---

    def next(self, worker: Worker, timeout: float | None) -> Job | Turn | None:
        """Wait for the next job or turn, which then is the current one; None after `timeout` seconds, or once
        it is closed and nothing is left.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: worker.retired or self._closed or self._jobs or len(self._waiting), timeout
            )
            worker.check()
            if self._jobs:
                return self._jobs.pop(0)
            if self._closed:
                return None
            self._current = self._waiting.take()
            return self._current

    def finished(self, worker: Worker) -> bool:
        """No turn runs any more; whether none waits either."""
        with self._changed:
            worker.check()
            self._current = None
            self._changed.notify_all()
            return not len(self._waiting)

    def replace(self, worker: Worker) -> Turn | None:
        """Take the thread's work away from it; returns the turn that it had."""
        with self._changed:
            worker.retire()
            turn, self._current = self._current, None
            self._changed.notify_all()
            return turn

    def put_first(self, job: Callable[[], object]) -> None:
        """Have a job done before all else."""
        with self._changed:
            self._jobs.insert(0, (job, Future()))
            self._changed.notify_all()
