"""What runs and what waits for one robot: which turn is next, which ones a new turn displaces, which are
refused.

Shared by the robot's thread and its callers; the lock is held only briefly.
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
"""A function that the robot's thread calls between two turns, and the future for its result."""


class Schedule:
    """The turns of one robot. Can be used from any thread."""

    def __init__(self):
        self._waiting = Waiting()
        self._current: Turn | None = None
        self._jobs: list[Job] = []
        self._closed = False
        self._changed = threading.Condition()  # reentrant

    # --- callers ---

    def admit(self, turn: Turn) -> tuple[str, list[Turn]]:
        """Add a turn.

        Returns:
            Why the turn is refused, '' if it is not; and the waiting turns that it displaced.
        """
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
        """Remove and return the waiting turns that meet a condition."""
        with self._changed:
            return self._waiting.remove(condition)

    def stop_current(self, reason: FinishReason) -> bool:
        """Stop the running turn. Return whether there was one."""
        with self._changed:
            if self._current is not None:
                self._current.stop(reason)
            return self._current is not None

    def clear(self, job: Callable[[], object] | None) -> tuple[bool, list[Turn], Future]:
        """Stop the running turn, remove the waiting ones, and run a job before the next turn.

        Returns:
            Whether a turn was running, the turns that were waiting, and the future for the job's result.
        """
        done: Future = Future()
        with self._changed:
            dropped = self._waiting.remove(lambda turn: True)
            ran = self.stop_current(FinishReason.CANCELLED)
            self._jobs.append((job, done))
            self._changed.notify_all()
        return ran, dropped, done

    def close(self) -> bool:
        """Refuse all further turns. Return False if it was closed already."""
        with self._changed:
            was, self._closed = self._closed, True
            self._changed.notify_all()
        return not was

    @property
    def closed(self) -> bool:
        """Whether further turns are refused."""
        return self._closed

    @property
    def current(self) -> Turn | None:
        """The running turn."""
        return self._current

    @property
    def uninterrupted(self) -> str:
        """Id of the running turn if nothing has stopped it, else ''."""
        current = self._current
        return current.id if current is not None and not current.stop_reason else ''

    @property
    def num_waiting(self) -> int:
        """How many turns wait."""
        return len(self._waiting)

    # --- the robot's thread ---

    def next(self, worker: Worker, timeout: float | None) -> Job | Turn | None:
        """Wait for the next job or turn. A turn becomes the current one.

        Args:
            worker: The robot's thread.
            timeout: Seconds to wait; None waits indefinitely.

        Returns:
            The job or turn; None after the timeout, or if the schedule is closed and nothing is left.
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
        """Record that no turn runs. Return whether none waits either."""
        with self._changed:
            worker.check()
            self._current = None
            self._changed.notify_all()
            return not len(self._waiting)

    def replace(self, worker: Worker) -> Turn | None:
        """Retire the thread and return the turn that it was running."""
        with self._changed:
            worker.retire()
            turn, self._current = self._current, None
            self._changed.notify_all()
            return turn

    def put_first(self, job: Callable[[], object]) -> None:
        """Run a job before everything else."""
        with self._changed:
            self._jobs.insert(0, (job, Future()))
            self._changed.notify_all()
