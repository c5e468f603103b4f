"""Which frame a question gets, and over which topic, by the `Camera` itself over real DDS."""

import time

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from ros2_nanochat.robot.frames import CameraFrames
from ros2_nanochat.robot.options import RobotOptions
from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.ros.camera import Camera

BEST_EFFORT = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
QUIET = Parameter('start_type_description_service', value=False)


@pytest.fixture
def world():
    """A node for the camera's user, made with parameters and remappings, and another that publishes."""
    made = []

    class World:
        def __init__(self):
            self.context = rclpy.Context()  # a participant of its own: one cannot have a topic of two types
            rclpy.init(context=self.context)
            self.sender = rclpy.create_node('sender', context=self.context, parameter_overrides=[QUIET])
            made.extend([self.sender.destroy_node, self.context.try_shutdown])

        def camera(self, *, remap=(), transport='auto', wanted=True, **parameters):
            overrides = [Parameter(name, value=value) for name, value in parameters.items()]
            arguments = [part for rule in remap for part in ('-r', rule)]
            self.node = rclpy.create_node(
                'user',
                parameter_overrides=[QUIET, *overrides],
                cli_args=['--ros-args', *arguments] if arguments else None,
            )
            executor = SingleThreadedExecutor()  # for /clock alone
            executor.add_node(self.node)
            self.spin = lambda: executor.spin_once(0.0)
            camera = Camera(self.node, '~/', wanted, transport)
            made.insert(0, lambda: (camera.close(), self.node.destroy_node(), executor.shutdown()))
            return camera

        def publisher(self, topic, kind=Image, qos=BEST_EFFORT, matched=True):
            publisher = self.sender.create_publisher(kind, topic, qos)
            if matched:
                self.until(publisher.get_subscription_count)
            return publisher

        def until(self, condition, timeout=10.0):
            end = time.monotonic() + timeout
            while not condition():
                assert time.monotonic() < end
                for camera in self.following:
                    camera.follow(camera._wanted, camera._transport)
                self.spin()
                time.sleep(0.01)

        following = ()

        def open(self):
            """The topics that the camera's node subscribes to."""
            return {
                name
                for name, kinds in self.node.get_subscriber_names_and_types_by_node('user', '/')
                if kinds[0].startswith('sensor_msgs/')
            }

    world = World()
    yield world
    for close in made:
        close()


def frame(name='', stamp=None, kind=Image):
    message = (
        Image(height=2, width=2, encoding='rgb8', step=6, data=[0] * 12)
        if kind is Image
        else CompressedImage(format='jpeg', data=[1])
    )
    message.header.frame_id = name
    message.header.stamp = stamp_of(time.time() if stamp is None else stamp)
    return message


def stamp_of(seconds):
    return Time(sec=int(seconds), nanosec=round(seconds % 1 * 1e9) % 10**9)


def show(world, camera, publisher, *messages):
    """Publish these until the last one is the camera's newest picture, which has to stay; return it. (A
    publisher may find its match before the subscription does, and what it sends then is lost.)
    """

    def there():
        picture = camera.newest()
        return picture is not None and picture.frame_id == messages[-1].header.frame_id

    def comes():
        for message in messages:
            publisher.publish(message)
        time.sleep(0.05)
        return there()

    world.until(comes)
    time.sleep(0.1)
    assert there()
    return camera.newest()


class Opened:
    """A picture as a model would open it."""

    def __init__(self, pixels):
        self.pixels, self.opened_digest = pixels, bytes(pixels)

    def __array__(self, *_, **__):
        return self.pixels


def ask(camera, **options):
    """What a question would be told: the pictures, the note, and how long that took."""
    turn, began = Turn('what is it?', RobotOptions(**options)), time.monotonic()
    pictures = CameraFrames(camera).pictures(turn, [], None, Opened)
    return pictures, turn.note, time.monotonic() - began


@pytest.mark.parametrize('depth, reliability', [(1, 'best_effort'), (10, 'best_effort'), (40, 'reliable')])
def test_the_queue_is_drained_at_any_depth(world, depth, reliability):
    prefix = 'qos_overrides./user/image.subscription.'
    camera = world.camera(**{prefix + 'depth': depth, prefix + 'reliability': reliability})
    qos = QoSProfile(depth=100, reliability=ReliabilityPolicy[reliability.upper()])
    publisher = world.publisher('/user/image', qos=qos)
    for last in (30, 60):
        show(world, camera, publisher, *(frame(str(n)) for n in range(last)))


@pytest.mark.parametrize(
    'stamps',
    [(0.0, None), (3600.0, None), (None, -1.0, None), (None, None, None), (None, 0.0)],
    ids=['zero', 'ahead', 'behind', 'in order', 'none at last'],
)
def test_what_was_received_last_is_the_newest_whatever_its_stamp(world, stamps):
    camera = world.camera()
    publisher = world.publisher('/user/image')
    for n, offset in enumerate(stamps):
        stamp = 0.0 if offset == 0.0 else time.time() + (offset or 0.0)
        picture = show(world, camera, publisher, frame(str(n), stamp))
        assert picture.age < 2.0 + max(0.0, -(offset or 0.0))
        assert bool(picture.doubt) == (offset == 0.0 or (offset or 0.0) > 1.0)
        assert abs(picture.stamp / 1e9 - time.time()) < 3700


def test_in_a_simulation_that_begins_again_the_frames_before_it_are_gone(world):
    camera = world.camera(use_sim_time=True)
    clock = world.sender.create_publisher(Clock, '/clock', 10)
    publisher = world.publisher('/user/image')

    def set_clock(seconds):
        def is_set():
            clock.publish(Clock(clock=stamp_of(seconds)))
            return abs(world.node.get_clock().now().nanoseconds / 1e9 - seconds) < 1e-6

        world.until(is_set)

    assert 'use_sim_time' in show(world, camera, publisher, frame('without a clock', 5.0)).doubt
    set_clock(300.0)
    assert not show(world, camera, publisher, frame('300', 300.0)).doubt
    set_clock(1.0)
    assert camera.newest() is None
    assert not show(world, camera, publisher, frame('1', 1.0)).doubt
    publisher.publish(frame('300', 300.0))  # was taken, and waits in the transport while time jumps
    time.sleep(0.3)
    set_clock(0.2)
    assert camera.newest() is None
    publisher.publish(frame('forward', 1000.0))  # overtakes the clock
    time.sleep(0.3)
    set_clock(1000.0)
    picture = camera.newest()
    assert picture.frame_id == 'forward' and not picture.doubt and picture.age < 5.0
    assert 'use_sim_time' in show(world, camera, publisher, frame('of the wall')).doubt


def test_the_frames_of_a_publisher_that_has_gone_are_gone(world):
    camera = world.camera()
    first = world.publisher('/user/image')
    show(world, camera, first, frame('first'))
    world.sender.destroy_publisher(first)
    world.until(lambda: not ask(camera)[0])
    second = world.publisher('/user/image')
    world.until(lambda: camera.present)
    world.until(lambda: camera.newest() is None)
    assert not ask(camera)[0]
    show(world, camera, second, frame('second'))
    second.publish(frame('never taken'))
    time.sleep(0.3)
    third = world.publisher('/user/image', matched=False)
    world.until(lambda: third.get_subscription_count())
    world.sender.destroy_publisher(second)
    world.until(lambda: camera.newest() is None)
    show(world, camera, third, frame('third'))


def test_nothing_is_open_that_is_not_wanted_but_a_question_may_open_it(world):
    camera = world.camera(wanted=False)
    publisher = world.publisher('/user/image', matched=False)
    world.following = [camera]
    world.until(lambda: camera.present)
    assert world.open() == set()
    assert camera.newest() is None and camera.expecting
    world.until(publisher.get_subscription_count)
    show(world, camera, publisher, frame('asked for'))
    camera.follow(True, 'auto')
    assert world.open() == {'/user/image'}
    camera._needed -= 100.0
    camera.follow(False, 'auto')
    world.until(lambda: world.open() == set())
    assert not publisher.get_subscription_count()


def test_one_transport_is_open_at_a_time_and_auto_follows_what_is_published(world):
    camera = world.camera()
    world.following = [camera]
    assert world.open() == {'/user/image'}
    compressed = world.publisher('/user/image/compressed', CompressedImage)
    assert world.open() == {'/user/image/compressed'}
    show(world, camera, compressed, frame('compressed', kind=CompressedImage))
    world.sender.destroy_publisher(compressed)
    raw = world.publisher('/user/image')
    assert world.open() == {'/user/image'} and camera.newest() is None
    show(world, camera, raw, frame('raw'))
    for transport in ('compressed', 'raw', 'auto'):
        camera.follow(True, transport)
        world.following = ()
        assert world.open() == {'/user/image/compressed' if transport == 'compressed' else '/user/image'}


def test_auto_tries_the_other_topic_if_the_one_brings_no_frames(world):
    """A driver that announces both and sends on one of them."""
    camera = world.camera()
    world.publisher('/user/image')
    compressed = world.publisher('/user/image/compressed', CompressedImage, matched=False)

    def comes():
        if compressed.get_subscription_count():
            compressed.publish(frame('compressed', kind=CompressedImage))
        picture = camera.newest()
        return picture is not None and picture.frame_id == 'compressed'

    world.until(comes)
    assert len(world.open()) == 1


@pytest.mark.parametrize(
    'remap',
    ['~/image:=/cam/image_raw/compressed', '/user/image:=/cam/compressed', '~/image:=/compressed'],
)
def test_an_image_topic_that_is_compressed_is_taken_for_what_it_is(world, remap):
    topic = remap.partition(':=')[2]
    camera = world.camera(remap=[remap])
    world.publisher(topic.removesuffix('/compressed') or '/other', matched=False)
    publisher = world.publisher(topic, CompressedImage)
    show(world, camera, publisher, frame('compressed', kind=CompressedImage))
    assert world.open() == {topic}


LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


@pytest.mark.parametrize(
    'kind, qos, parameters, told',
    [
        (
            CompressedImage,
            BEST_EFFORT,
            {},
            ('sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/Image', 'remap ~/image/compressed to it'),
        ),
        (String, BEST_EFFORT, {}, ('std_msgs/msg/String', 'sensor_msgs/msg/Image')),
        (Image, BEST_EFFORT, {'reliability': 'reliable'}, ('best effort publisher', 'reliable subscription')),
        (Image, LATCHED, {}, ('transient_local', 'volatile')),
        (Image, BEST_EFFORT, {'durability': 'transient_local'}, ('volatile publisher', 'transient local')),
    ],
    ids=['compressed', 'another type', 'reliability', 'sent before', 'durability'],
)
def test_a_publisher_that_cannot_match_is_named_without_a_wait_for_each_question(
    world, kind, qos, parameters, told
):
    publisher = world.publisher('/user/image', kind, qos, matched=False)
    if kind is Image:
        publisher.publish(frame('lost'))
    camera = world.camera(
        **{f'qos_overrides./user/image.subscription.{name}': value for name, value in parameters.items()}
    )
    world.until(lambda: '/sender' in camera.trouble())
    if qos is LATCHED:
        ask(camera)  # it does match, so a first frame is awaited once
    pictures, note, seconds = ask(camera)
    assert not pictures and seconds < 0.5
    assert '/sender' in note and '/user/image' in note and all(part in note for part in told), note


def test_a_latched_image_is_received_with_the_overrides_that_the_note_names(world):
    publisher = world.publisher('/user/image', qos=LATCHED, matched=False)
    publisher.publish(frame('latched'))
    prefix = 'qos_overrides./user/image.subscription.'
    camera = world.camera(**{prefix + 'durability': 'transient_local', prefix + 'reliability': 'reliable'})
    world.until(lambda: camera.newest() is not None)
    assert camera.newest().frame_id == 'latched'


def test_a_publisher_on_the_transport_that_is_not_chosen_is_named(world):
    camera = world.camera(transport='raw')
    world.publisher('/user/image/compressed', CompressedImage, matched=False)
    world.until(lambda: camera.present)
    pictures, note, seconds = ask(camera)
    assert not pictures and seconds < 0.5
    assert 'image_transport' in note and '/user/image/compressed' in note


def test_a_transport_that_is_no_longer_chosen_leaves_no_frame(world):
    camera = world.camera(transport='auto')
    publisher = world.publisher('/user/image/compressed', CompressedImage, matched=False)
    show(world, camera, publisher, frame('before', kind=CompressedImage))
    camera.follow(True, 'raw')
    pictures, note, _ = ask(camera, max_image_age=None)
    assert not pictures and 'image_transport is raw, and only /user/image/compressed' in note, note


def test_a_transport_that_is_no_longer_chosen_brings_no_late_frame(world):
    camera, topic = world.camera(transport='auto'), '/user/image/compressed'
    publisher = world.publisher(topic, CompressedImage, matched=False)
    show(world, camera, publisher, frame('before', kind=CompressedImage))
    publisher.publish(frame('late', kind=CompressedImage))  # waits in the transport
    time.sleep(0.3)
    world.publisher(topic, CompressedImage, matched=False)  # what waits is taken when the publishers change
    world.until(lambda: world.node.count_publishers(topic) == 2)
    camera.follow(True, 'raw')
    assert camera.newest() is None


def test_only_raw_frames_for_a_compressed_topic_are_named(world):
    camera = world.camera(remap=['~/image:=/cam/compressed'])
    world.publisher('/cam', matched=False)
    world.until(lambda: camera.present)
    pictures, note, seconds = ask(camera)
    assert not pictures and seconds < 0.5
    assert 'nobody publishes /cam/compressed' in note and 'but /cam: use that' in note, note


@pytest.mark.parametrize('offered', [ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT])
def test_what_can_match_does(world, offered):
    camera = world.camera()
    publisher = world.publisher('/user/image', qos=QoSProfile(depth=5, reliability=offered))
    show(world, camera, publisher, frame('there'))
    pictures, note, _ = ask(camera)
    assert len(pictures) == 1 and not note
    assert pictures[0][1].pixels.shape == (2, 2, 3) and pictures[0][1].pixels.dtype == np.uint8
