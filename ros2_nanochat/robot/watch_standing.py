"""The progress of one standing question: when it is due, which frames it is asked about, what it answered.

Written by the robot's watching thread; `change` and `pause` may come from others. Knows no model and no
camera.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ros2_nanochat.engine.usage import Usage
from ros2_nanochat.robot.observations import Observation
from ros2_nanochat.robot.watch import Watch, WatchSource, WatchState
from ros2_nanochat.robot.watch_asking import Answer
from ros2_nanochat.robot.watch_frames import View, Window

_SOONEST, _LATEST = 0.05, 0.25  # seconds until a camera without a new frame is looked at again
_AHEAD = 0.1  # seconds, the shortest limit on waiting for a frame
# If the next frame is predicted within this time (seconds), wait for it: one look per frame down to 7 Hz.
_TRUSTED = 0.15
_MARGIN, _LATE = 0.005, 0.5  # seconds after that, and the share of its delay after which to look again
_AFTER_FAILURE = 1.0  # seconds
_RECENT = 30  # observations that the figures are about
_ANSWERED = ('text', 'value', 'number', 'probability', 'valid', 'usage')


class Standing:
    """A standing question and its progress.

    Args:
        watch: The question.
        source: Where it comes from.
        goal: Anything the caller wants to find again.

    Attributes:
        ended: Whether it has ended.
        paused: Whether it is paused.
        due: When to look at the cameras next, in `time.monotonic()`.
        waits_since: When it first wanted the answer that it still waits for, likewise; infinity if none.
        shown: The frames that it is to be asked about.
        last: The last observation.
        note: Why it waits, or what is wrong with its last answer.
    """

    def __init__(self, watch: Watch, source: WatchSource, goal: Any = None):
        self.source, self.goal = source, goal
        self.ended = self.paused = False
        self.note = ''
        self.waits_since = math.inf
        self.last: Observation | None = None
        self._considered: tuple[int, ...] = ()  # numbers of the frames that were last asked about or compared
        self._index = 0
        self._sequences: dict[str, int] = {}  # the publishers' numbers of the frames before, 0 if unknown
        self._recent: deque[Observation] = deque(maxlen=_RECENT)
        self._times: deque[float] = deque(maxlen=_RECENT)
        self.watch = watch
        self._started = self.due = self._next_question = time.monotonic()
        self._ask_anew()

    # --- callers ---

    def change(self, watch: Watch) -> None:
        """Ask something else from now on. What was seen before no longer counts, unless the question and its
        pictures stay the same.
        """
        before, self.watch = self.watch, watch
        self.due = self._next_question = time.monotonic()
        if watch.timeout != before.timeout:
            self._started = time.monotonic()
        if watch.asks_as(before):
            if (watch.until, watch.until_count) != (before.until, before.until_count):
                self._met = 0
                self._considered = ()  # what the newest frame shows may end it
        else:
            self._ask_anew()

    def _ask_anew(self) -> None:
        watch = self.watch
        self._waiting = False
        self._met = 0
        self._windows = {name: Window(watch.frames, watch.spacing) for name in watch.cameras}
        self._considered = ()
        self._reference: tuple[View, ...] = ()  # the frames of the last answer
        self.shown: tuple[View, ...] = ()
        self.last = None

    def pause(self, paused: bool) -> None:
        """Pause, or resume."""
        self.paused, self.shown, self.due = paused, (), time.monotonic()
        self.waits_since = math.inf

    @property
    def waits(self) -> bool:
        """Whether it waits for an answer of the model."""
        return self.waits_since < math.inf and not self.paused

    @property
    def until_time(self) -> float:
        """When it ends because its time is up."""
        return self._started + self.watch.timeout if self.watch.timeout else math.inf

    @property
    def next_event(self) -> float:
        """When something is to be done."""
        return min(math.inf if self.paused else self.due, self.until_time)

    @property
    def state(self) -> WatchState:
        """Its state."""
        if self.paused:
            return WatchState.PAUSED
        return WatchState.WAITING if self._waiting else WatchState.WATCHING

    # --- the watching thread: frames ---

    def wait(self, reason: str) -> None:
        """There is no frame that can be used."""
        self._waiting, self.note, self.waits_since = True, reason, math.inf
        self.due = time.monotonic() + _LATEST

    def take(self, views: Sequence[View]) -> bool:
        """Take the newest frame of each camera. Return whether to answer the question now."""
        now = time.monotonic()
        for view in views:
            self._windows[view.camera].add(view)
        missing = max(window.missing for window in self._windows.values())
        self._waiting = missing > 0
        self.note = f'{missing} more frames are needed' if missing else ''
        sampled = now + self.watch.spacing / 2 if self.watch.frames > 1 else math.inf
        self.shown = tuple(view for window in self._windows.values() for view in window.views)
        if missing or now < self._next_question:
            self.waits_since = math.inf
            self.due = min(sampled, max(self._next_question, now + _SOONEST))
            return False
        if tuple(view.picture.number for view in self.shown) == self._considered:
            self.waits_since = math.inf
            self.due = min(sampled, self._next_frame(now))
            return False
        return True

    def _next_frame(self, now: float) -> float:
        """Return when to look for a frame that has not come yet: when its camera is likely to send it, and
        then after pauses that grow with its delay.
        """
        delay = now - self._expected
        if delay < 0:
            return self._likely(now)
        return now + min(max(2 * _MARGIN, _LATE * delay), self._longest)

    def _likely(self, now: float) -> float:
        """Return when the next frame is predicted, or a bounded wait if it is predicted later than that."""
        longest = self._longest
        return self._expected if self._expected - now <= max(_TRUSTED, longest) else now + longest

    @property
    def _expected(self) -> float:
        """When one of the cameras is likely to have sent its next frame."""
        newest = (views[-1] for views in (window.views for window in self._windows.values()) if views)
        return min((view.followed for view in newest), default=0.0) + _MARGIN

    @property
    def _longest(self) -> float:
        """The longest wait for a frame."""
        retry = 0.25 / self.watch.max_rate if self.watch.max_rate else 0.0
        return min(max(retry, _AHEAD), _LATEST)

    def sees_the_same(self) -> bool:
        """Whether the frames show what those of the last answer showed."""
        before, now = self._reference, self._core()
        return (
            self.last is not None
            and len(before) == len(now)
            and all(view.shows_what(earlier) for view, earlier in zip(now, before))
        )

    def _core(self) -> tuple[View, ...]:
        """The frames without those that only stay because their KV is known."""
        count = self.watch.frames
        return tuple(view for window in self._windows.values() for view in window.views[-count:])

    def wants_answer(self) -> None:
        """Take note that the model is to be asked. Its turn comes by the time that it has waited since."""
        self.waits_since = min(self.waits_since, time.monotonic())

    def postpone(self, seconds: float) -> None:
        """Look again after some seconds: the question was not asked."""
        self.due = time.monotonic() + seconds

    # --- the watching thread: answers ---

    def answered(self, answer: Answer | None, encode_time: float, seconds: float) -> Observation | None:
        """Take note of an answer, None for the one before, which is still right.

        Returns None if the question was changed or paused just now.

        Args:
            answer: The answer.
            encode_time: Seconds spent on encoding the frames.
            seconds: Seconds since the frames were taken over.
        """
        shown = self.shown
        if not shown or (answer is None and self.last is None):
            return None
        newest = max(shown, key=lambda view: view.picture.stamp)
        before, watch = self.last, self.watch
        values: dict[str, Any] = {'usage': Usage()}
        changed = False
        if answer is not None:
            changed = before is None or (before.text, before.value) != (answer.text, answer.value)
            values = {field: getattr(answer, field) for field in _ANSWERED}
            self._reference = self._core()
        observation = replace(
            before or Observation(watch, 0, 0, '', ''),
            watch=watch,
            index=self._index,
            stamp=newest.picture.stamp,
            frame_id=newest.picture.frame_id,
            changed=changed,
            unchanged=answer is None,
            in_a_row=before.in_a_row + 1 if before is not None and not changed else 1,
            age=newest.age,
            skipped_frames=self._skipped(),
            encode_time=encode_time,
            answer_time=seconds,
            **values,
        )
        met = observation.valid and watch.ends_with(observation.value, observation.text, observation.number)
        self._met = self._met + 1 if met else 0
        self.last, self.note = observation, ''
        self._index += 1
        self._recent.append(observation)
        self._times.append(time.monotonic())
        self._considered = tuple(view.picture.number for view in self.shown)
        self._schedule(0.0)
        return observation

    def fail(self, error: str) -> bool:
        """Take note that there is no answer. Return whether the reason is new."""
        new, self.note = self.note != error, error
        self._considered = tuple(view.picture.number for view in self.shown)
        self._schedule(_AFTER_FAILURE)
        return new

    def is_reached(self) -> bool:
        """Whether the answer that ends it has come often enough."""
        return self._met >= self.watch.until_count

    def _schedule(self, least: float) -> None:
        """Set when the next question is due: one interval after this one. None is made up for."""
        now, self.waits_since = time.monotonic(), math.inf
        interval = max(least, 1 / self.watch.max_rate if self.watch.max_rate else 0.0)
        self._next_question = max(self._next_question + interval, now + least)
        if self._next_question < now:
            self._next_question = now
        sampled = now + self.watch.spacing / 2 if self.watch.frames > 1 else math.inf
        self.due = min(max(self._next_question, self._likely(now)), sampled)

    def _skipped(self) -> int:
        """How many frames the cameras have sent since the last observation that were never looked at."""
        skipped = 0
        newest = {view.camera: view.picture.sequence for view in self.shown}
        for camera, sequence in newest.items():
            before = self._sequences.get(camera, 0)
            if 0 < before < sequence:  # a camera that was started anew counts from 1
                skipped += sequence - before - 1
        self._sequences = newest
        return skipped

    # --- figures ---

    def figures(self) -> dict[str, str]:
        """Return its figures for the diagnostics: those of the last observations."""
        recent, times = list(self._recent), list(self._times)
        if not recent or not times:
            return {}
        span = time.monotonic() - times[0]
        asked = [each for each in recent if not each.unchanged]
        skipped = sum(each.skipped_frames for each in recent)
        figures = {
            'rate': f'{len(recent) / span:.2f} Hz' if span > 0 else '',
            'age': f'{recent[-1].age:.3g} s',
            'skipped_frames': f'{100 * skipped / (skipped + len(recent)):.0f} %',
            'unchanged_frames': f'{100 * (1 - len(asked) / len(recent)):.0f} %',
        }
        if asked:
            cost = sum(each.encode_time + each.usage.model_time for each in asked) / len(asked)
            figures['cost'] = f'{cost:.3g} s'
            usage = asked[-1].usage
            reused = 'unknown' if usage.reused_tokens is None else usage.reused_tokens
            figures['reused_tokens'] = f'{reused} of {usage.prompt_tokens}'
        return figures
