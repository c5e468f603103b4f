"""A robot's camera for all pages that show it: one subscription, a bounded rate, small JPEGs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ros2_nanochat.errors import one_line
from ros2_nanochat.ros.camera import Camera
from ros2_nanochat.web.pictures import small_jpeg

SIDE = 640
"""Longer side of the pictures in pixels."""
_KEPT = 16  # pictures of the last seconds, to show which one went with a question
_NEAR = 2.0  # seconds that such a picture may be away from the one that the node used


class CameraFeed:
    """Takes the camera's newest frame at a bounded rate, on a thread of its own.

    Args:
        node: The node.
        prefix: Prefix of the robot's topics.
        rate: Frames per second at most.
        put: Called with ('camera', prefix, JPEG), and with ('no camera', prefix, reason) if a frame cannot be
            shown.
    """

    def __init__(self, node, prefix: str, rate: float, put: Callable[[tuple[str, str, Any]], None]):
        self._prefix, self._every, self._put = prefix, 1 / rate, put
        self._camera = Camera(node, f'{prefix}/')
        self._lock = threading.Lock()
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_KEPT)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f'camera {prefix}', daemon=True)
        self._thread.start()

    def nearest(self, stamp: float) -> tuple[bytes, float] | None:
        """Return the picture that was taken nearest to a time, and how many seconds away; None without one.

        Args:
            stamp: Time of the camera's clock in seconds.
        """
        with self._lock:
            recent = list(self._recent)
        near = min(recent, key=lambda each: abs(each[0] * 1e-9 - stamp), default=None)
        if near is None or abs(near[0] * 1e-9 - stamp) > _NEAR:
            return None
        return near[1], near[0] * 1e-9 - stamp

    def close(self) -> None:
        """End the subscription."""
        self._end.set()
        self._thread.join(2.0)
        self._camera.close()

    def _run(self) -> None:
        shown, trouble = 0, ''
        while not self._end.wait(self._every):
            try:
                picture = self._camera.newest()
                if picture is None or picture.number == shown:
                    continue
                shown = picture.number
                jpeg = small_jpeg(picture.decode(), SIDE)
            except Exception as error:  # a broken frame; the next one may be whole
                if one_line(error) != trouble:
                    trouble = one_line(error)
                    self._put(('no camera', self._prefix, trouble))
                continue
            trouble = ''
            with self._lock:
                self._recent.append((picture.stamp, jpeg))
            self._put(('camera', self._prefix, jpeg))
