"""A node that sees, and cameras whose clocks and topics are not as one would have them, over DDS."""

import io
import time

import numpy as np
import PIL.Image
import pytest
import rclpy
from builtin_interfaces.msg import Time
from conftest import Ears, NodeProcess
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from ros2_nanochat.ros.client import ChatClient

BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class Scene:
    """The node and what it hears: publishers of a node of ours."""

    def __init__(self, chat):
        self.ears = Ears()
        self.node, self.chat = self.ears.node, chat
        self.cameras = []
        self.clock = self.node.create_publisher(Clock, '/clock', 10)
        self.setter = self.node.create_client(SetParameters, '/nanochat/set_parameters')

    def camera(self, kind=Image, topic='/nanochat/image'):
        publisher, end = self.node.create_publisher(kind, topic, BEST_EFFORT), time.monotonic() + 20.0
        self.cameras.append(publisher)
        while not publisher.get_subscription_count():
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.3)
        return publisher

    def set(self, **parameters):
        values = [Parameter(name, value=value).to_parameter_msg() for name, value in parameters.items()]
        assert isinstance(values[0].value, ParameterValue)
        assert self.setter.wait_for_service(20.0)
        future, end = self.setter.call_async(SetParameters.Request(parameters=values)), time.monotonic() + 20
        while not future.done():
            assert time.monotonic() < end
            time.sleep(0.01)
        assert all(result.successful for result in future.result().results), future.result()

    def subscribed(self):
        names = ('/nanochat/image', '/nanochat/image/compressed')
        return {name for name in names if self.node.count_subscribers(name)}

    def wait_until_subscribed(self, *names):
        end = time.monotonic() + 20.0
        while self.subscribed() != set(names):
            assert time.monotonic() < end, self.subscribed()
            time.sleep(0.02)

    def ask(self):
        turn = self.chat.ask('What color is the object?', max_new_tokens=4).result(60.0)
        assert turn.finish_reason in ('stop', 'length'), turn
        return turn


def frame(name, seconds, value=0):
    pixels = np.full((64, 64, 3), value, np.uint8)
    message = Image(height=64, width=64, encoding='rgb8', step=192)
    message.data.frombytes(pixels.tobytes())
    message.header.frame_id = name
    message.header.stamp = Time(sec=int(seconds), nanosec=round(seconds % 1 * 1e9) % 10**9)
    return message


@pytest.fixture(scope='module')
def shared_scene():
    node = NodeProcess(model='', vision='tiny', max_context_len=1024)
    chat = made = None
    try:
        node.wait_for_line(': active', 120.0)
        chat = ChatClient()
        assert chat.wait_until_ready(30.0)
        made = Scene(chat)
        yield made
    finally:
        if made is not None:
            made.ears.close()
        if chat is not None:
            chat.close()
        node.stop()
    assert 'Traceback' not in node.output, node.output


@pytest.fixture
def scene(shared_scene):
    """Also after a test that failed, the next one finds no camera and the options as they were."""
    yield shared_scene
    while shared_scene.cameras:
        shared_scene.node.destroy_publisher(shared_scene.cameras.pop())
    shared_scene.set(use_sim_time=False, image_mode='latest', image_transport='auto')


def test_a_turn_uses_the_frame_that_came_last_and_notes_a_stamp_that_cannot_be_believed(scene):
    camera, now = scene.camera(), time.time
    for name, seconds, told in (
        ('zero', lambda: 0.0, 'no stamp'),
        ('ahead', lambda: now() + 3600.0, 's ahead'),
        ('fresh', now, ''),
        ('of a simulation', lambda: 17.0, 'use_sim_time'),
        ('a second back', lambda: now() - 1.0, ''),
    ):
        camera.publish(frame(name, seconds()))
        time.sleep(0.3)
        turn = scene.ask()
        assert turn.image_used and turn.image.frame_id == name, turn
        assert told in turn.note and bool(told) == bool(turn.note), turn
    camera.publish(frame('old', now() - 30.0))
    time.sleep(0.3)
    turn = scene.ask()
    assert not turn.image_used and 'it is 30' in turn.note and 'max_image_age' in turn.note
    scene.node.destroy_publisher(camera)


def jpeg(quality=90):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((64, 64, 3), 200, np.uint8)).save(buffer, 'JPEG', quality=quality)
    return buffer.getvalue()


def test_a_frame_that_cannot_be_used_costs_a_note_and_one_that_is_only_cut_off_shows(scene):
    """One camera whose frames are bad in every way, then a compressed one."""
    raw = (
        ('empty', {'height': 0, 'width': 0, 'step': 0, 'data': b''}, '0'),
        ('step', {'step': 0}, 'step'),
        ('short', {'data': bytes(100)}, '100'),
        ('encoding', {'encoding': 'plaid'}, 'plaid'),
        ('nv12', {'encoding': 'nv12', 'step': 64, 'data': bytes(64 * 96)}, None),
    )
    compressed = (
        ('text', 'jpeg', b'this is no picture', ''),
        ('nothing', 'jpeg', b'', ''),
        ('depth', '16UC1; compressedDepth png', bytes(40), ''),
        ('cut', 'jpeg', jpeg()[:-2], None),
        ('whole', 'bgr8; jpeg compressed bgr8', jpeg(), None),
    )
    for kind, topic, frames in (
        (Image, '/nanochat/image', raw),
        (CompressedImage, '/nanochat/image/compressed', compressed),
    ):
        camera = scene.camera(kind, topic)
        for name, *given in frames:
            *fields, told = given
            message = frame(name, time.time()) if kind is Image else CompressedImage()
            message.header.frame_id = name
            message.header.stamp = frame(name, time.time()).header.stamp
            if kind is Image:
                for field, value in fields[0].items():
                    setattr(message, field, value)
            else:
                message.format, message.data = fields
            camera.publish(message)
            time.sleep(0.3)
            turn = scene.ask()
            assert turn.reply or turn.new_tokens, turn
            if told is None:
                assert turn.image_used and turn.image.frame_id == name and not turn.note, turn
            else:
                assert not turn.image_used and turn.note and told in turn.note, turn
                assert '\n' not in turn.note and len(turn.note) < 500
        scene.node.destroy_publisher(camera)


def test_a_simulation_that_begins_again_shows_its_own_frames(scene):
    scene.set(use_sim_time=True)
    camera = scene.camera()

    def show(seconds):
        """Time first, as a simulation has it, but the frame right behind it."""
        for _ in range(3):
            scene.clock.publish(Clock(clock=Time(sec=seconds)))
            camera.publish(frame(f'at {seconds}', seconds))
            time.sleep(0.1)
        return scene.ask()

    try:
        for seconds in (300, 1, 2, 5000, 4):
            turn = show(seconds)
            assert turn.image_used and turn.image.frame_id == f'at {seconds}', turn
            assert turn.image.stamp.sec == seconds and not turn.note, turn
        scene.clock.publish(Clock(clock=Time(sec=2000)))  # and no frame comes
        time.sleep(0.5)
        turn = scene.ask()
        assert not turn.image_used and turn.note, turn
    finally:
        scene.set(use_sim_time=False)
        scene.node.destroy_publisher(camera)


def test_only_what_can_be_used_is_subscribed_to_and_that_may_change(scene):
    scene.set(image_mode='off')
    scene.wait_until_subscribed()
    scene.set(image_mode='latest', image_transport='compressed')
    scene.wait_until_subscribed('/nanochat/image/compressed')
    scene.set(image_transport='raw')
    scene.wait_until_subscribed('/nanochat/image')
    scene.set(image_transport='auto')
    camera = scene.camera()
    camera.publish(frame('raw', time.time()))
    time.sleep(0.3)
    assert scene.ask().image.frame_id == 'raw'
    scene.node.destroy_publisher(camera)
    camera = scene.camera(CompressedImage, '/nanochat/image/compressed')
    assert scene.subscribed() == {'/nanochat/image/compressed'}
    scene.node.destroy_publisher(camera)
    turn = scene.ask()
    assert not turn.image_used and not turn.note


def test_a_publisher_of_another_type_is_named_in_the_note(scene):
    context = rclpy.Context()  # a participant of its own: one cannot have a topic of two types
    rclpy.init(context=context)
    node = rclpy.create_node('wrong_camera', context=context)
    node.create_publisher(CompressedImage, '/nanochat/image', BEST_EFFORT)
    end = time.monotonic() + 20.0
    while True:
        began, turn = time.monotonic(), scene.ask()
        if '/wrong_camera publishes sensor_msgs/msg/CompressedImage on /nanochat/image' in turn.note:
            break
        assert time.monotonic() < end, turn
    assert not turn.image_used and turn.queue_time < 0.5 and time.monotonic() - began < 5.0
    node.destroy_node()
    context.try_shutdown()


def test_a_model_without_vision_subscribes_to_no_camera(start, listen):
    start(ros_args=['-r', '__node:=blind'])
    ears = listen('/blind')
    camera = ears.node.create_publisher(Image, '/blind/image', BEST_EFFORT)
    end = time.monotonic() + 20.0
    while 'no vision' not in ears.turn('what do you see?').note:
        assert time.monotonic() < end
    assert not camera.get_subscription_count() and not ears.node.count_subscribers('/blind/image')
    assert not ears.node.count_subscribers('/blind/image/compressed')
