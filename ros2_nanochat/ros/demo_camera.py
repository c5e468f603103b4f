"""A demo camera: publishes drawn pictures of one object on `nanochat/image`, and prints what they show.

Parameters: rate (Hz), hold (seconds that each picture is shown), width, height (pixels), seed (-1: a
different one each time).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from ros2_nanochat.ros.program import init, run_ros_program
from ros2_nanochat.vision.shapes import random_picture


class DemoCamera(Node):
    """Publishes one picture after another, as `rgb8`.

    Raises:
        ValueError: A parameter is out of range.
    """

    def __init__(self):
        super().__init__('demo_camera')
        rate = self.declare_parameter('rate', 10.0).value
        self._hold = max(1, round(rate * self.declare_parameter('hold', 15.0).value))
        self._size = self.declare_parameter('width', 320).value, self.declare_parameter('height', 240).value
        seed = self.declare_parameter('seed', -1).value
        if rate <= 0 or min(self._size) < 1:
            raise ValueError(
                f'rate={rate}, width={self._size[0]}, height={self._size[1]}: each has to be over 0'
            )
        self._rng = np.random.default_rng(None if seed < 0 else seed)
        self._shown = 0
        self._message = Image()
        self._publisher = self.create_publisher(
            Image, 'nanochat/image', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        )
        self.create_timer(1 / rate, self._publish)

    def _publish(self):
        if self._shown % self._hold == 0:
            self._next()
        self._shown += 1
        self._message.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(self._message)

    def _next(self):
        picture, scene = random_picture(self._rng, *self._size)
        width, height = picture.size
        self._message = Image(
            height=height, width=width, encoding='rgb8', step=3 * width, data=picture.tobytes()
        )
        self._message.header.frame_id = 'demo_camera'
        print(f'[camera] {scene}', flush=True)


def main(args=None) -> int:
    """Run the camera until a signal. Return the exit code."""
    arguments = sys.argv if args is None else ['demo_camera', *args]
    return run_ros_program('demo_camera', arguments, lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    init(arguments)
    node = DemoCamera()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    sys.exit(main())
