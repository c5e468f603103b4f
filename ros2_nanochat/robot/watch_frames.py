"""The frames that standing questions are asked about: the newest of each camera, decoded once for all of
them, and the last few at a distance of seconds.

Belongs to one robot's thread. Knows no model.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.frames import NewestFrame
from ros2_nanochat.robot.freshness import is_too_old
from ros2_nanochat.robot.turn import Picture
from ros2_nanochat.robot.watch_scene import Scene

_EARLY = 0.1  # share of the spacing by which a frame may be early: cameras have rates of their own
_GAPS = 5  # between frames, whose median is the period of a camera
_UNKNOWN_PERIOD = 0.05  # seconds, before there are two frames
_ALIVE = 0.25  # seconds after a frame in which the graph is not asked whether its publisher is still there


@dataclass(eq=False)
class View:
    """One frame, decoded.

    Attributes:
        camera: Name of its camera.
        picture: The frame as it came, without its bytes.
        taken: When it was taken, in `time.monotonic()`, as far as its age is known.
        followed: When the next frame of the camera is likely to arrive, likewise.
        scene: What it shows, to compare with other frames.
        pixels: [h, w, 3] uint8; None once a question has been asked about it.
        message: The frame as part of a prompt, once a question has been asked about it.
    """

    camera: str
    picture: Picture
    taken: float
    scene: Scene
    pixels: np.ndarray | None
    message: ChatMessage | None = None
    followed: float = 0.0
    _compared: tuple[Callable[[], View | None], bool] | None = field(default=None, repr=False)

    @property
    def age(self) -> float:
        """Seconds since the frame was taken."""
        return max(0.0, time.monotonic() - self.taken)

    def shows_what(self, earlier: View) -> bool:
        """Whether it shows what an earlier frame showed. Several questions compare the same two frames."""
        if self._compared is None or self._compared[0]() is not earlier:
            # Weakly, else each frame would keep all frames before it.
            self._compared = weakref.ref(earlier), self.scene.same_as(earlier.scene)
        return self._compared[1]


class Unusable(ValueError):
    """There is no frame that can be used. The message says why, in one line."""


class CameraView:
    """The newest frame of one camera.

    Args:
        name: Name of the camera.
        camera: Returns the source of its frames, None if there is no such camera any more.
    """

    def __init__(self, name: str, camera: Callable[[], NewestFrame | None]):
        self._name, self._camera = name, camera
        self._last: View | None = None
        self._broken = (0, '')
        self._gaps: deque[float] = deque(maxlen=_GAPS)  # seconds between frames
        self._before: Picture | None = None

    def newest(self, max_age: float | None) -> View:
        """Return the newest frame. The same frame is decoded once.

        Args:
            max_age: Seconds; an older frame is not used. None takes any.

        Raises:
            Unusable: There is none, or it is too old or broken.
        """
        camera = self._camera()
        if camera is None:
            raise Unusable(f'there is no camera {self._name!r}')
        # First, as `newest` looks at the graph more closely, and may open a subscription.
        there = self._is_alive(self._before) or camera.present
        picture = camera.newest() if there else None
        if picture is None:
            if not there or not camera.present:  # its publisher may have gone just now
                raise Unusable(f'nobody publishes images of the camera {self._name!r}')
            trouble = camera.trouble()
            raise Unusable(
                f'no image of the camera {self._name!r} has come' + (f': {trouble}' if trouble else '')
            )
        if is_too_old(picture.age, max_age):
            raise Unusable(
                f'the newest image of the camera {self._name!r} is older than {max_age:g} s (max_image_age)'
            )
        if self._last is not None and self._last.picture.number == picture.number:
            return self._last
        if self._broken[0] == picture.number:
            raise Unusable(self._broken[1])
        freed = picture.freed()
        followed = self._follow(freed)
        try:
            pixels = picture.decode()
            taken, scene = time.monotonic() - (picture.age or 0.0), Scene.of(pixels)
            self._last = View(self._name, freed, taken, scene, pixels, followed=followed)
        except Exception as error:  # of any decoder: the next frame may be whole
            text = f'the image of the camera {self._name!r} cannot be used: {one_line(error)}'
            self._broken = (picture.number, text)
            raise Unusable(text) from error
        return self._last

    def _is_alive(self, picture: Picture | None) -> bool:
        """Whether a frame came so recently that its publisher need not be looked for."""
        return picture is not None and time.monotonic() - picture.arrived < _ALIVE

    def _follow(self, picture: Picture) -> float:
        """Take note of when a frame came. Return when the next one is likely to arrive."""
        before, self._before = self._before, picture
        arrived = picture.arrived or time.monotonic()
        if before is not None and before.arrived and arrived > before.arrived:
            frames = picture.sequence - before.sequence if 0 < before.sequence < picture.sequence else 1
            self._gaps.append((arrived - before.arrived) / frames)
        return arrived + (statistics.median(self._gaps) if self._gaps else _UNKNOWN_PERIOD)


class Window:
    """The last frames of one camera, at a distance of seconds.

    A question is asked about all of them. Frames stay a while longer than they must, and are then dropped
    together: while only new ones are added at the end, the KV of those before is reused.

    Args:
        frames: How many frames a question needs.
        spacing: Seconds between them.
    """

    def __init__(self, frames: int, spacing: float):
        self._frames, self._spacing = frames, spacing
        self._views: list[View] = []

    def add(self, view: View) -> None:
        """Add a frame, unless the last one is nearer than the spacing. One frame is always the newest."""
        if self._frames == 1:
            self._views = [view]
            return
        if self._views and view.taken - self._views[-1].taken < (1 - _EARLY) * self._spacing:
            return
        if self._views and view.taken - self._views[-1].taken > 2 * self._frames * self._spacing:
            self._views.clear()  # the camera was away: what it showed before is another story
        self._views.append(view)
        if len(self._views) > self._frames + self._frames // 2:
            del self._views[: -self._frames]

    @property
    def views(self) -> tuple[View, ...]:
        """The frames, oldest first; none before there are enough."""
        return tuple(self._views) if len(self._views) >= self._frames else ()

    @property
    def missing(self) -> int:
        """How many frames are missing."""
        return max(0, self._frames - len(self._views))
