"""A robot's camera for all pages that show it: one subscription, a bounded rate, small JPEGs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ros2_nanochat.errors import one_line
from ros2_nanochat.ros.camera import Camera
from ros2_nanochat.web.pictures import small_jpeg

SIDE = 640
"""Longer side of the pictures in pixels."""
_WHILE_STREAMING = 0.5  # seconds between two pictures at least while a reply needs the processor
_KEPT = 16  # pictures of the last seconds, to show which one went with a question
_NEAR = 2.0  # seconds that such a picture may be away from the one that the node used


@dataclass(frozen=True)
class Source:
    """A camera of a robot.

    Attributes:
        robot: Prefix of the robot's topics.
        name: Its name.
        topic: Its topic.
    """

    robot: str
    name: str
    topic: str


class CameraFeed:
    """Takes the camera's newest frame at a bounded rate, on a thread of its own.

    Args:
        node: The node.
        source: The camera.
        rate: Frames per second at most.
        put: Called with ('camera', prefix, (name, JPEG)), and with ('no camera', prefix, (name, reason)) if a
            frame cannot be shown.
        is_streaming: Returns whether a reply streams.
    """

    def __init__(
        self,
        node,
        source: Source,
        rate: float,
        put: Callable[[tuple[str, str, Any]], None],
        is_streaming: Callable[[], bool],
    ):
        self._source, self._every, self._put, self._is_streaming = source, 1 / rate, put, is_streaming
        self._camera = Camera(node, source.topic)
        self._lock = threading.Lock()
        self._recent: deque[tuple[int, str, bytes]] = deque(maxlen=_KEPT)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f'camera {source.topic}', daemon=True)
        self._thread.start()

    def nearest(self, stamp: float, frame_id: str) -> tuple[bytes, float] | None:
        """Return the picture that was taken nearest to a time, and how many seconds away; None without one.

        Args:
            stamp: Time of the camera's clock in seconds.
            frame_id: The frame_id that it has.
        """
        with self._lock:
            recent = [(at * 1e-9 - stamp, jpeg) for at, frame, jpeg in self._recent if frame == frame_id]
        away, jpeg = min(recent, key=lambda each: abs(each[0]), default=(_NEAR, b''))
        return (jpeg, away) if abs(away) < _NEAR else None

    @property
    def pause(self) -> float:
        """Seconds until the next picture: a reply that streams leaves fewer of them."""
        return max(self._every, _WHILE_STREAMING) if self._is_streaming() else self._every

    def close(self) -> None:
        """End the subscription."""
        self._end.set()
        self._thread.join(2.0)
        self._camera.close()

    def _run(self) -> None:
        shown, trouble = 0, ''
        while not self._end.wait(self.pause):
            try:
                picture = self._camera.newest()
                if picture is None or picture.number == shown:
                    continue
                shown = picture.number
                jpeg = small_jpeg(picture.decode(), SIDE)
            except Exception as error:  # a broken frame; the next one may be whole
                if one_line(error) != trouble:
                    trouble = one_line(error)
                    self._put(('no camera', self._source.robot, (self._source.name, trouble)))
                continue
            trouble = ''
            with self._lock:
                self._recent.append((picture.stamp, picture.frame_id, jpeg))
            self._put(('camera', self._source.robot, (self._source.name, jpeg)))
