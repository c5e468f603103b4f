"""A demo camera: publishes drawn pictures of one object on `nanochat/image`, and prints what they show.

Parameters: rate (Hz), hold (seconds that each picture is shown), width, height (pixels), seed (-1: a
different one each time), moving (the object moves from place to place, and is at times replaced by another).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from ros2_nanochat.ros.program import init, refuse_words, run_ros_program
from ros2_nanochat.vision.shapes import COLORS, SHAPES, Scene, draw, random_picture


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
        moving = self.declare_parameter('moving', False).value
        seed = self.declare_parameter('seed', -1).value
        if rate <= 0 or min(self._size) < 1:
            raise ValueError(
                f'rate={rate}, width={self._size[0]}, height={self._size[1]}: each has to be over 0'
            )
        self._rng = np.random.default_rng(None if seed < 0 else seed)
        self._shown = 0
        self._walk = Walk(self._rng, self._hold) if moving else None
        self._message = Image()
        self._publisher = self.create_publisher(
            Image, 'nanochat/image', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        )
        self.create_timer(1 / rate, self._publish)

    def _publish(self):
        if self._walk is not None:
            scene, news = self._walk.at(self._shown)
            self._show(draw(scene, *self._size), str(scene) if news else '')
        elif self._shown % self._hold == 0:
            picture, scene = random_picture(self._rng, *self._size)
            self._show(picture, str(scene))
        self._shown += 1
        self._message.header.stamp = self.get_clock().now().to_msg()
        self._publisher.publish(self._message)

    def _show(self, picture, told: str):
        width, height = picture.size
        self._message = Image(
            height=height, width=width, encoding='rgb8', step=3 * width, data=picture.tobytes()
        )
        self._message.header.frame_id = 'demo_camera'
        if told:
            print(f'[camera] {told}', flush=True)


class Walk:
    """An object that stays at a place for a while, moves on to the next, and is replaced by another at times.

    Args:
        rng: The random generator.
        hold: Frames that it stays at a place.
    """

    _MOVE = 0.25  # share of that time in which it moves
    _PLACES = {'left': (0.22, 0.5), 'right': (0.78, 0.5), 'top': (0.5, 0.24), 'bottom': (0.5, 0.76)}

    def __init__(self, rng: np.random.Generator, hold: int):
        self._rng, self._hold = rng, max(2, hold)
        self._scene = self._before = self._another('left')

    def _another(self, place: str) -> Scene:
        colors = [color for color in COLORS if color not in ('white', 'black')]
        color, shape = colors[self._rng.integers(len(colors))], SHAPES[self._rng.integers(len(SHAPES))]
        return Scene(color, shape, place, 0.36, *self._PLACES[place])

    def at(self, count: int) -> tuple[Scene, bool]:
        """Return what to show in a frame, and whether the object has just arrived somewhere new."""
        phase, into = divmod(count, self._hold)
        if into == 0 and count:
            self._before = self._scene
            places = [place for place in self._PLACES if place != self._scene.place]
            place = places[self._rng.integers(len(places))]
            if phase % 2:
                self._scene = replace(
                    self._scene, place=place, x=self._PLACES[place][0], y=self._PLACES[place][1]
                )
            else:
                self._scene = self._before = self._another(self._scene.place)
        share = min(1.0, into / (self._MOVE * self._hold))
        x = self._before.x + share * (self._scene.x - self._before.x)
        y = self._before.y + share * (self._scene.y - self._before.y)
        return replace(self._scene, x=x, y=y), into == 0


def main(args=None) -> int:
    """Run the camera until a signal. Return the exit code."""
    arguments = sys.argv if args is None else ['demo_camera', *args]
    return run_ros_program('demo_camera', arguments, lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    refuse_words(init(arguments))
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
