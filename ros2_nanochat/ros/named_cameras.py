"""The cameras of one robot by name: those of the parameter `cameras`, and `image` for the topic of that
name.
"""

from __future__ import annotations

import threading
from collections.abc import Collection

from ros2_nanochat.config import RobotOptions
from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.watch import IMAGE
from ros2_nanochat.ros.camera import Camera


class NamedCameras:
    """Opens the cameras that are used. Can be used from any thread.

    Args:
        node: The node.
        robot: Name of the robot.
        image: The camera `image`.
    """

    def __init__(self, node, robot: str, image: Camera):
        self._node, self._robot, self._image = node, robot, image
        self._topics: dict[str, str] = {}
        self._cameras: dict[str, Camera] = {}
        self._transport = 'auto'
        self._closed = False
        self._lock = threading.RLock()

    def get(self, name: str) -> Camera | None:
        """Return a camera by name, None if the robot has none of that name."""
        if name == IMAGE:
            return self._image
        with self._lock:
            if name not in self._cameras and name in self._topics and not self._closed:
                self._cameras[name] = Camera(self._node, self._topics[name], False, self._transport)
            return self._cameras.get(name)

    def follow(self, options: RobotOptions, used: Collection[str]) -> None:
        """Update the cameras. Call this regularly.

        Args:
            options: The robot's options.
            used: Names of the cameras whose frames are needed again and again.
        """
        with self._lock:
            self._transport = options.image_transport
            topics = options.camera_topics(self._robot)
            for name in [name for name in self._cameras if self._topics.get(name) != topics.get(name)]:
                self._cameras.pop(name).close()
            self._topics = topics
            for name, camera in self._cameras.items():
                try:
                    camera.follow(name in used, self._transport)
                except Exception as error:
                    self._node.get_logger().warning(f'camera {name}: {one_line(error)}')

    def close(self) -> None:
        """Close all cameras but `image`."""
        with self._lock:
            self._closed = True
            for camera in self._cameras.values():
                camera.close()
            self._cameras.clear()
