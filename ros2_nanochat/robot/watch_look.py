"""One look of a robot's standing questions at its cameras: takes the newest frames, finds out which questions
see something new, and asks those together.

While a reply to a person streams, no look begins, and one under way ends. Belongs to the robot's watching
thread; knows no threads and no ROS.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ros2_nanochat.config import RobotOptions
from ros2_nanochat.errors import EncodingStopped
from ros2_nanochat.robot.frames import NewestFrame
from ros2_nanochat.robot.observations import Observation
from ros2_nanochat.robot.watch_asking import Answer, Asking, failed
from ros2_nanochat.robot.watch_budget import WatchBudget
from ros2_nanochat.robot.watch_frames import CameraView, Unusable, View
from ros2_nanochat.robot.watch_standing import Standing

_BUSY = 0.05  # seconds until it is tried again while a reply streams
_TURN = 0.01  # seconds to wait for the answers before `interrupted` is asked again


class Listener(Protocol):
    """Receives what comes of a look."""

    def observed(self, standing: Standing, observation: Observation) -> None: ...
    def failed(self, standing: Standing, error: str) -> None: ...
    def changed(self) -> None: ...


class Look:
    """Looks for one robot.

    Args:
        asking: Asks the model.
        options: Returns the robot's current options.
        cameras: Returns the frames of a camera by name, None if there is no such camera.
        budget: The share of the model's time.
        interrupted: Whether a person's question is being answered, or the watching ends.
        listener: Receives what comes of it.
    """

    def __init__(
        self,
        asking: Asking,
        options: Callable[[], RobotOptions],
        cameras: Callable[[str], NewestFrame | None],
        budget: WatchBudget,
        interrupted: Callable[[], bool],
        listener: Listener,
    ):
        self._asking, self._options, self._cameras = asking, options, cameras
        self._budget, self._interrupted, self._listener = budget, interrupted, listener
        self._views: dict[str, CameraView] = {}

    def forgo(self) -> None:
        """Leave the queue for the model's time: no question of this robot waits."""
        self._budget.forgo(self)

    def at(self, due: Sequence[Standing]) -> None:
        """Look at the cameras for the questions that are due, and ask those that see something new."""
        if self._interrupted():
            _postpone(due, _BUSY)
            return
        due = [each for each in due if not each.ended]
        options = self._options()
        before = [(each.state, each.note) for each in due]
        asked, looked = [], _Looked(self._view, options.max_image_age)
        for each in due:
            if _sees(each, looked):
                if each.sees_the_same():
                    self._observe(each, None)
                else:
                    each.wants_answer()
                    asked.append(each)
        if [(each.state, each.note) for each in due] != before:
            self._listener.changed()
        if not asked:
            return
        wait = self._budget.take(self)
        if wait > 0:
            _postpone(asked, wait)
        else:
            spent = 0.0
            try:
                spent = self._ask(_most_urgent(asked), options)
            finally:
                self._budget.spend(self, spent)

    def _view(self, name: str) -> CameraView:
        if name not in self._views:
            self._views[name] = CameraView(name, lambda: self._cameras(name))
        return self._views[name]

    def _ask(self, group: Sequence[Standing], options: RobotOptions) -> float:
        """Ask questions about the same frames. Return the seconds of the model's time that it took."""
        views, pending, began = group[0].shown, [], time.monotonic()

        def outdated(each: Standing) -> bool:  # changed or paused meanwhile
            return each.ended or each.shown != views

        try:
            spent = encode_time = self._asking.encode(
                views, lambda: self._interrupted() or all(map(outdated, group))
            )
        except EncodingStopped:
            _postpone([each for each in group if not outdated(each)], _BUSY)
            return time.monotonic() - began
        except Exception as error:
            for each in group:
                self._observe(each, failed(error))
            return time.monotonic() - began
        for each in group:
            try:
                pending.append((each, self._asking.begin(each.watch, views, options)))
            except Exception as error:
                self._observe(each, failed(error))
        while pending:
            interrupted = self._interrupted()
            for each, question in list(pending):
                failure = None
                if interrupted or outdated(each):
                    question.stream.stop()
                else:
                    try:
                        if not question.ended(_TURN / len(pending)):
                            continue
                    except Exception as error:  # its next reply cannot begin
                        failure = failed(error)
                pending.remove((each, question))
                # A server does not tell what it took: then all the time counts.
                spent += question.usage.model_time or (time.monotonic() - began) / len(group)
                if interrupted and not outdated(each):
                    each.postpone(_BUSY)  # and then asked about what is newest
                elif not outdated(each):
                    self._observe(each, failure or question.answer(), encode_time, time.monotonic() - began)
                    encode_time = 0.0
        return spent

    def _observe(
        self, standing: Standing, answer: Answer | None, encode_time: float = 0.0, seconds: float = 0.0
    ) -> None:
        """Take note of an answer; None for the one before."""
        if answer is not None and answer.error:
            if standing.fail(answer.error):
                self._listener.failed(standing, answer.error)
                self._listener.changed()
            return
        noted = standing.note
        observation = standing.answered(answer, encode_time, seconds)
        if observation is not None:
            self._listener.observed(standing, observation)
        if noted:
            self._listener.changed()


class _Looked:
    """The frames of one look. Each camera is looked at once, so that questions share its frame.

    Args:
        view: Returns the frames of a camera by name.
        max_age: Seconds; older frames are not used. None takes any.
    """

    def __init__(self, view: Callable[[str], CameraView], max_age: float | None):
        self._view, self._max_age = view, max_age
        self._found: dict[str, View | Unusable] = {}

    def at(self, name: str) -> View:
        """Return the newest frame of a camera.

        Raises:
            Unusable: There is none.
        """
        if name not in self._found:
            try:
                self._found[name] = self._view(name).newest(self._max_age)
            except Unusable as error:
                self._found[name] = error
        found = self._found[name]
        if isinstance(found, Unusable):
            raise found
        return found


def _sees(standing: Standing, looked: _Looked) -> bool:
    """Take the newest frames for a question. Return whether it is to be answered."""
    try:
        views = [looked.at(name) for name in standing.watch.cameras]
    except Unusable as error:
        standing.wait(str(error))
        return False
    return standing.take(views)


def _postpone(standing: Sequence[Standing], seconds: float) -> None:
    for each in standing:
        each.postpone(seconds)


def _most_urgent(asked: Sequence[Standing]) -> list[Standing]:
    """Return the questions of the next batch: the most urgent one, then the one that waited longest, and all
    others about the same frames.
    """
    first = min(asked, key=lambda each: (-each.watch.priority, each.waits_since))
    return [each for each in asked if each.shown == first.shown]
