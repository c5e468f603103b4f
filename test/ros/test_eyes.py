"""What the tiny eyes tell of pictures that come over a camera's topics, in the encodings that cameras send,
and what a turn says they cost.
"""

import io
import threading
import time

import numpy as np
import pytest
import rclpy
from conftest import NodeProcess
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image

PIL = pytest.importorskip('PIL.Image')

from ros2_nanochat.ros.client import ChatClient  # noqa: E402
from ros2_nanochat.vision.shapes import LABELS, draw, random_picture, random_scene  # noqa: E402

FACTS = ('color', 'shape', 'place')
QUESTIONS = ('What color is the object?', 'What shape is the object?', 'Where is the object?')
FRESH = 20_000_000  # seeds from here on were not used in training


def yuyv(pixels):
    """[h, 2 w] uint8: brightness of each pixel, colours of each pair of pixels, as ITU-R BT.601 has them with
    16 to 235.
    """
    r, g, b = (pixels[..., i].astype(np.float32) for i in range(3))
    y = 16 + 0.257 * r + 0.504 * g + 0.098 * b
    u = 128 - 0.148 * r - 0.291 * g + 0.439 * b
    v = 128 + 0.439 * r - 0.368 * g - 0.071 * b
    out = np.empty((*y.shape, 2), np.float32)
    out[..., 0] = y
    out[:, 0::2, 1] = (u[:, 0::2] + u[:, 1::2]) / 2
    out[:, 1::2, 1] = (v[:, 0::2] + v[:, 1::2]) / 2
    return np.rint(out).clip(0, 255).astype(np.uint8).reshape(len(pixels), -1)


def message(picture, encoding):
    """A camera's message of a picture, made without the code that reads it."""
    pixels = np.asarray(picture)
    if encoding == 'jpeg':
        file = io.BytesIO()
        picture.save(file, 'JPEG', quality=85)
        return CompressedImage(format='rgb8; jpeg compressed bgr8', data=file.getvalue())
    rows = {'rgb8': lambda: pixels, 'bgr8': lambda: pixels[..., ::-1], 'yuv422_yuy2': lambda: yuyv(pixels)}[
        encoding
    ]()
    frame = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=rows[0].nbytes)
    frame.data.frombytes(np.ascontiguousarray(rows).tobytes())
    return frame


class TestCamera:
    """Publishes what it was last given, again and again, each time with the stamp of the moment: a frame may
    get lost, and one whose stamp stays grows old.
    """

    __test__ = False

    def __init__(self):
        self.node = rclpy.create_node(
            'eyes_camera', parameter_overrides=[Parameter('start_type_description_service', value=False)]
        )
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._publishers = {
            Image: self.node.create_publisher(Image, '/nanochat/image', qos),
            CompressedImage: self.node.create_publisher(CompressedImage, '/nanochat/image/compressed', qos),
        }
        self._frame, self._shown, self._ended = None, 0, threading.Event()
        self.started = self.node.get_clock().now()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._ended.wait(0.05):
            frame = self._frame
            if frame is not None:
                frame.header.stamp = self.node.get_clock().now().to_msg()
                self._publishers[type(frame)].publish(frame)

    def show(self, picture, encoding):
        """Show a picture from now on; returns the frame_id that it alone has."""
        frame = message(picture, encoding)
        self._shown += 1
        frame.header.frame_id = f'{encoding}_{self._shown}'
        self._frame = frame
        return frame.header.frame_id

    def close(self):
        self._ended.set()
        self._thread.join()
        self.node.destroy_node()


class Robot:
    def __init__(self, node, chat, camera):
        self.node, self.chat, self.camera = node, chat, camera

    def ask(self, question, timeout=120.0):
        turn = self.chat.ask(question).result(timeout)
        assert turn.finish_reason in ('stop', 'length'), turn
        return turn

    def ask_of(self, picture, encoding, question):
        """The turn of a conversation of its own in which the question went with this very picture."""
        frame_id, until = self.camera.show(picture, encoding), time.monotonic() + 60.0
        while True:
            self.chat.reset()
            turn = self.ask(question)
            if turn.image_used and turn.image.frame_id == frame_id:
                assert (
                    not turn.note
                    and self.camera.started
                    < Time.from_msg(turn.image.stamp)
                    <= self.camera.node.get_clock().now()
                )
                return turn
            assert time.monotonic() < until, f'the picture does not arrive: {turn}'

    def count_right(self, count, seed):
        """[4] of each encoding, and what was wrong."""
        right, missed = dict.fromkeys(('rgb8', 'bgr8', 'jpeg', 'yuv422_yuy2'), 0), []
        for n in range(count):
            for k, encoding in enumerate(right):
                rng = np.random.default_rng(FRESH + 1000 * seed + 4 * n + k)
                picture, scene = random_picture(rng)
                picture = picture.crop(
                    (0, 0, picture.width - picture.width % 2, picture.height)
                )  # YUYV has pairs of pixels
                fact = (n + k) % 3
                reply = self.ask_of(picture, encoding, QUESTIONS[fact]).reply
                if {label for label in LABELS[fact] if label in reply.lower()} == {
                    getattr(scene, FACTS[fact])
                }:
                    right[encoding] += 1
                else:
                    missed.append(f'{encoding} {picture.size} {scene}: {reply!r}')
        return right, missed


@pytest.fixture(scope='module')
def robot():
    node = NodeProcess(model='', max_context_len=1024)
    camera = chat = None
    try:
        node.wait_for_line(': active', 120.0)
        assert 'vision encoder' not in node.output
        camera = TestCamera()
        node.wait_for_line('there is a camera: the vision encoder is ready', 120.0)
        chat = ChatClient()
        assert chat.wait_until_ready(30.0)
        yield Robot(node, chat, camera)
    finally:
        for thing in (chat, camera):
            if thing is not None:
                thing.close()
        node.stop()
    assert 'Traceback' not in node.output, node.output


def test_the_newest_frame_of_a_camera_is_told_right_in_each_encoding(robot):
    right, missed = robot.count_right(2, seed=1)
    assert sum(right.values()) >= 7, (right, missed)


@pytest.mark.long
def test_at_least_95_of_100_are_told_right_through_topic_node_and_dds(robot):
    right, missed = robot.count_right(25, seed=2)
    print(right, missed)
    assert sum(right.values()) >= 95, (right, missed)


def test_a_turn_tells_what_its_image_cost_and_a_follow_up_that_it_cost_nothing(robot):
    picture, _ = random_picture(np.random.default_rng(FRESH), 160, 120, color='red')
    first = robot.ask_of(picture, 'rgb8', QUESTIONS[0])
    assert 'red' in first.reply
    assert first.image_tokens == 16 and first.reused_image_tokens == 0 and 0 < first.encode_time < 10
    second = robot.ask(QUESTIONS[1])
    assert second.image_used and second.image.frame_id == first.image.frame_id
    assert second.image_tokens == second.reused_image_tokens == 16 and second.encode_time == 0
    third = robot.ask_of(
        picture, 'rgb8', QUESTIONS[0]
    )  # another conversation, the same pixels: remembered, and prefilled again at most
    assert third.image_tokens == 16 and third.encode_time == 0 and third.reply == first.reply


@pytest.mark.long
def test_the_frames_that_a_conversation_has_shown_are_not_kept(robot):
    robot.chat.reset()
    sizes = []
    for n in range(16):
        scene = random_scene(np.random.default_rng(FRESH + n), 1920, 1080)
        frame_id = robot.camera.show(draw(scene, 1920, 1080), 'rgb8')
        until = time.monotonic() + 60.0
        while robot.ask('What color is the object?').image.frame_id != frame_id:
            assert time.monotonic() < until
        sizes.append(robot.node.memory(shared=False))  # the camera's shared memory fills as well
    assert sizes[-1] < sizes[3] + 40e6, sizes  # twelve frames are 75 MB


@pytest.mark.long
def test_eyes_that_were_asked_for_are_there_before_the_node_is_active(start):
    node = start(model='', vision='tiny')
    lines = node.output.splitlines()
    assert next(i for i, line in enumerate(lines) if 'the vision encoder is ready' in line) < next(
        i for i, line in enumerate(lines) if ': active' in line
    )
