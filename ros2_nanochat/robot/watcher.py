"""The standing questions of one robot: which there are, and the thread that asks them.

watch_look.py does what is due. There is never more than one look under way, so nothing queues up: if the
model is slow, or its share is used up, the rate falls.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from ros2_nanochat.config import RobotOptions
from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.frames import NewestFrame
from ros2_nanochat.robot.observations import Observation, Observations
from ros2_nanochat.robot.recovery import Faults
from ros2_nanochat.robot.watch import Watch, WatchEnd, WatchSource
from ros2_nanochat.robot.watch_asking import Asking
from ros2_nanochat.robot.watch_budget import WatchBudget
from ros2_nanochat.robot.watch_look import Look
from ros2_nanochat.robot.watch_standing import Standing
from ros2_nanochat.robot.worker import Worker

_log = logging.getLogger(__name__)
MAX_WATCHES = 64
"""Standing questions of one robot."""

_CLOSING = 2.0  # seconds


class WatchOutput(Protocol):
    """Receives what the standing questions of a robot see. Called on the robot's watching thread, and `ended`
    and `changed` also on the caller's. Exceptions are logged.
    """

    def observed(self, standing: Standing, observation: Observation) -> None: ...
    def ended(self, standing: Standing, reason: WatchEnd, error: str) -> None: ...
    def changed(self) -> None: ...


class Watcher:
    """The standing questions of one robot. Its methods can be called from any thread and do not wait.

    Args:
        name: The robot's name, for messages and the name of its thread.
        model: A `NanoLLM`.
        options: Returns the robot's current options.
        cameras: Returns the frames of a camera by name, None if there is no such camera.
        output: Receives the observations.
        budget: The share of the model's time; all robots of a model have one.
        busy: Whether a person's question is being answered by the model.
        log: Has `info`, `warning` and `error`.
        chat_template: See `ChatTemplate`.

    Attributes:
        observations: What was seen.
        faults: Why the thread was replaced.
    """

    def __init__(
        self,
        name: str,
        model,
        options: Callable[[], RobotOptions],
        cameras: Callable[[str], NewestFrame | None],
        output: WatchOutput,
        budget: WatchBudget,
        busy: Callable[[], bool] = lambda: False,
        log=_log,
        chat_template: str | None = None,
    ):
        self.name = name
        self.observations = Observations()
        self.faults = Faults()
        self._title = f'{name}: ' if name else ''
        self._model, self._output, self._busy, self._log = model, output, busy, log
        self._look = Look(Asking(model, chat_template), options, cameras, budget, self._interrupted, self)
        self._standing: dict[str, Standing] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._worker: Worker | None = None

    # --- callers, any thread ---

    def add(self, watch: Watch, source: WatchSource, goal: Any = None) -> Standing:
        """Add a standing question.

        Args:
            watch: The question.
            source: Where it comes from.
            goal: Anything the caller wants to find again in the output's calls.

        Raises:
            ValueError: The model has no vision, there is one of this name, or there are too many.
            RuntimeError: The system has no thread left.
        """
        if not self._model.has_vision:
            raise ValueError(
                f'{self._model.info.name} has no vision: it cannot watch. Load a model that sees, or set the'
                ' parameter `vision`'
            )
        with self._changed:
            if self._closed:
                raise ValueError('the node is being deactivated: ask again when it is active')
            if watch.name in self._standing:
                raise ValueError(f'there is a standing question {watch.name!r} already: take another name')
            if len(self._standing) >= MAX_WATCHES:
                raise ValueError(f'there are {MAX_WATCHES} standing questions already: remove one')
            if self._worker is None:
                self._start()
            standing = self._standing[watch.name] = Standing(watch, source, goal)
            self._changed.notify_all()
        self._tell('changed')
        return standing

    def change(self, name: str, change: Callable[[Watch], Watch]) -> None:
        """Change a standing question. What it has seen so far counts no longer, unless the question and its
        pictures stay the same. Its limit of time begins anew only if it is changed.

        Args:
            name: Which one.
            change: Returns the new question for the current one; the name must stay.

        Raises:
            ValueError: There is none of this name, or `change` refuses.
        """
        with self._changed:
            standing = self._one(name)
            standing.change(change(standing.watch))
            self._changed.notify_all()
        self._tell('changed')

    def pause(self, name: str, paused: bool) -> None:
        """Pause a standing question, or resume it.

        Raises:
            ValueError: There is none of this name.
        """
        with self._changed:
            self._one(name).pause(paused)
            self._changed.notify_all()
        self._tell('changed')

    def remove(self, name: str) -> None:
        """Remove a standing question.

        Raises:
            ValueError: There is none of this name.
        """
        with self._changed:
            standing = self._one(name)
        self.end(standing, WatchEnd.REMOVED)

    def end(self, standing: Standing, reason: WatchEnd, error: str = '') -> bool:
        """End a standing question. Return False if it has ended already."""
        with self._changed:
            if self._standing.get(standing.watch.name) is not standing:
                return False
            del self._standing[standing.watch.name]
            self._changed.notify_all()
        standing.ended = True
        if error:
            self._log.warning(f'{self._title}standing question {standing.watch.name!r}: {error}')
        self._tell('ended', standing, reason, error)
        self._tell('changed')
        return True

    def supervise(self) -> None:
        """Replace the thread if it has died. Call this regularly.

        Raises:
            RuntimeError: The system has no thread left. Calling this again tries again.
        """
        with self._changed:
            trouble = self._worker.trouble if self._worker is not None else ''
            if self._closed or not trouble or not self.faults.may_restart():
                return
            self.faults.restart(trouble, self._start)
        self._log.error(f'{self._title}standing questions: {trouble}; it was restarted')

    def _start(self) -> None:
        worker = Worker(f'watch-{self.name or "chat"}', self._work, self._failed)
        worker.start()
        self._worker = worker  # only now: while there is none that started, the next call tries again

    def _one(self, name: str) -> Standing:
        if name not in self._standing:
            there = ', '.join(self._standing) or 'none'
            raise ValueError(f'there is no standing question {name[:200]!r}; there are: {there}')
        return self._standing[name]

    @property
    def standing(self) -> list[Standing]:
        """The standing questions that there are, in the order in which they were added."""
        with self._changed:
            return list(self._standing.values())

    def close(self) -> None:
        """End all standing questions and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for standing in self.standing:
            self.end(standing, WatchEnd.CANCELLED)
        if self._worker is not None:
            self._worker.join(_CLOSING)
        self._look.forgo()

    # --- the thread ---

    def _tell(self, name: str, *arguments) -> None:
        try:
            getattr(self._output, name)(*arguments)
        except Exception as error:  # a listener must not end the watching
            self._log.warning(f'{self._title}standing questions: {one_line(error)}')

    def _failed(self, error: BaseException) -> None:
        self._look.forgo()
        self._log.error(f'{self._title}standing questions: internal error: {one_line(repr(error))}')

    def observed(self, standing: Standing, observation: Observation) -> None:
        """Take note of an observation, and tell about it. For `Look`."""
        self.observations.add(observation)
        if observation.changed or not standing.watch.only_changes:
            self._tell('observed', standing, observation)
        if standing.is_reached():
            self.end(standing, WatchEnd.UNTIL)

    def failed(self, standing: Standing, error: str) -> None:
        """Log why a question has no answer. For `Look`."""
        self._log.warning(f'{self._title}standing question {standing.watch.name!r}: {error}')

    def changed(self) -> None:
        """Tell that the state of a question has changed. For `Look`."""
        self._tell('changed')

    def _interrupted(self) -> bool:
        """Whether a look must end. `Look` asks this again and again: an answer may take longer than the limit
        of time of a question.
        """
        self._end_overdue()
        return self._closed or self._busy()

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for each in self.standing:
            if each.until_time <= now:
                self.end(each, WatchEnd.TIMEOUT)

    def _work(self, worker: Worker) -> bool:
        """Wait for the next look, and do it. Return False when there will be no more."""
        with self._changed:
            now = time.monotonic()
            next_due = min((each.next_event for each in self._standing.values()), default=math.inf)
            if not self._closed and next_due > now:
                # All may be paused, without a limit of time: a thread cannot wait for infinity.
                self._changed.wait(None if math.isinf(next_due) else next_due - now)
            if self._closed:
                return False
        self._end_overdue()
        now = time.monotonic()
        due = [each for each in self.standing if each.due <= now and not each.paused]
        if due:
            self._look.at(due)
            self.faults.went_well()
        if not any(each.waits for each in self.standing):
            self._look.forgo()  # what waited was paused, has ended, or has no frame: others go on
        return True
