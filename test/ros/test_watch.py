"""Standing questions over DDS: a camera's topic, the node, and what it says of the frames."""

import importlib.util
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import rclpy
from action_msgs.msg import GoalStatus
from conftest import NodeProcess, meet
from diagnostic_msgs.msg import DiagnosticArray
from nanochat.action import Watch
from nanochat.msg import Observation, Watches
from nanochat.msg import Watch as WatchMessage
from nanochat.srv import GetHistory, SetWatch
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from unique_identifier_msgs.msg import UUID

sys.path.append(str(Path(__file__).parents[1]))
from watch_scenes import seen
from watch_story import add_all, tell

# Found, not imported: that takes each worker seconds, whatever it runs.
if not (importlib.util.find_spec('torch') and importlib.util.find_spec('transformers')):
    pytest.skip('needs the runtimes of vision models', allow_module_level=True)

from ros2_nanochat.robot.camera_formats import stamp_of
from ros2_nanochat.ros.action_ends import CLIENT_BYTES
from ros2_nanochat.ros.client import ChatClient
from ros2_nanochat.ros.spinning import spin
from ros2_nanochat.ros.watches_file import read_watches
from ros2_nanochat.vision.shapes import Scene, draw

BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
KEPT = QoSProfile(depth=50, durability=DurabilityPolicy.TRANSIENT_LOCAL)
COLOR = 'What color is the object?'
COLORS = ' | '.join(f'The object is {color}.' for color in ('red', 'green', 'blue', 'yellow'))
WHERE = 'Where is the object?'
SIDES = 'The object is on the left. | The object is on the right.'  # as the tiny eyes answer
PLACES = {'left': (0.25, 0.5), 'right': (0.75, 0.5)}


def said(label):
    """What the tiny eyes say of a colour or a side."""
    return f'The object is on the {label}.' if label in PLACES else f'The object is {label}.'


def drawn(color, place='left', width=320, height=240, noise=0.0, rng=None):
    """A scene that the tiny eyes know, [h, w, 3] uint8."""
    scene = Scene(color, 'square', place, 0.35, *PLACES[place])
    pixels = np.asarray(draw(scene, width, height)).astype(np.float32)
    if noise:
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * noise
    return pixels.clip(0, 255).astype(np.uint8)


class Camera:
    """Publishes what it was last given, ten times a second, each time with fresh noise and a stamp of the
    moment. `None` publishes nothing.

    Attributes:
        sent: The stamps of all frames.
        since: The stamp of the first frame of each scene, in nanoseconds, by its number.
    """

    def __init__(self, node, topic, rate=10.0):
        self._node, self._rate = node, rate
        self._publisher = node.create_publisher(Image, topic, BEST_EFFORT)
        self._frame_id, self._rng = topic.strip('/').replace('/', '_'), np.random.default_rng(0)
        self._shown = 0, None, 'rgb8', {}  # at once: a frame must not mix two scenes
        self.sent, self.since = [], {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def show(self, pixels, encoding='rgb8', **flaws):
        """Show a scene, and return its number. `flaws` are those of `watch_scenes.seen`."""
        number = self._shown[0] + 1
        self._shown = number, pixels, encoding, {'noise': 2.0, **flaws}
        return number

    def _run(self):
        while not self._ended.wait(1 / self._rate):
            number, pixels, encoding, flaws = self._shown
            if pixels is None:
                continue
            pixels = seen(pixels, self._rng, **flaws)
            pixels = pixels[..., ::-1] if encoding == 'bgr8' else pixels
            message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
            message.step = 3 * message.width
            message.data.frombytes(np.ascontiguousarray(pixels).tobytes())
            message.header.frame_id = self._frame_id
            message.header.stamp = self._node.get_clock().now().to_msg()
            self.sent.append((message.header.stamp.sec, message.header.stamp.nanosec))
            self.since.setdefault(number, stamp_of(message))
            self._publisher.publish(message)

    def close(self):
        self._ended.set()
        self._thread.join(2.0)
        self._node.destroy_publisher(self._publisher)


class Watcher:
    """A client of our own: what it hears of the standing questions under a prefix."""

    def __init__(self, prefix='/nanochat'):
        self.prefix = prefix
        self.node = rclpy.create_node(
            f'watcher_{time.monotonic_ns()}',
            parameter_overrides=[Parameter('start_type_description_service', value=False)],
        )
        self.observations, self.watches, self.health = [], [], {}
        self.node.create_subscription(Observation, f'{prefix}/observations', self.observations.append, KEPT)
        self.node.create_subscription(Watches, f'{prefix}/watches', self.watches.append, KEPT)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._health, 10)
        self.action = ActionClient(self.node, Watch, f'{prefix}/watch')
        self._set = self.node.create_client(SetWatch, f'{prefix}/set_watch')
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self._thread = threading.Thread(target=spin, args=(self.executor,), daemon=True)
        self._thread.start()
        self.cameras = []

    def _health(self, array):
        for status in array.status:
            self.health[status.name.partition(': ')[2]] = (
                status.message,
                {pair.key: pair.value for pair in status.values},
            )

    def connect(self):
        meet(self.node, GetHistory, f'{self.prefix}/history', GetHistory.Request())
        assert self.action.wait_for_server(30.0)
        return self

    def camera(self, topic='/nanochat/image', **options):
        self.cameras.append(Camera(self.node, topic, **options))
        return self.cameras[-1]

    def wait(self, condition, timeout=60.0):
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, (self.observations[-2:], self.watches[-1:])
            time.sleep(0.02)

    def set(self, command, fields=(), **watch):
        assert self._set.wait_for_service(30.0)
        request = SetWatch.Request(command=command, watch=WatchMessage(**watch), fields=list(fields))
        future = self._set.call_async(request)
        self.wait(future.done)
        return future.result()

    def goal(self, **fields):
        feedback = []
        sending = self.action.send_goal_async(
            Watch.Goal(**fields),
            feedback_callback=lambda message: feedback.append(message.feedback.observation),
            goal_uuid=self._goal_id(),
        )
        self.wait(sending.done)
        goal = sending.result()
        return goal, feedback, goal.get_result_async()

    def _goal_id(self):
        """An id that begins like our feedback subscription's, so that the goal ends with us."""
        topic, name = f'{self.prefix}/watch/_action/feedback', self.node.get_name()

        def own():
            ends = self.node.get_subscriptions_info_by_topic(topic)
            return [bytes(end.endpoint_gid[:CLIENT_BYTES]) for end in ends if end.node_name == name]

        self.wait(own)
        return UUID(uuid=np.frombuffer(own()[0] + uuid4().bytes[: 16 - CLIENT_BYTES], np.uint8))

    def of(self, name):
        return [each for each in self.observations if each.name == name]

    @property
    def names(self):
        return [watch.name for watch in self.watches[-1].watches] if self.watches else None

    @property
    def states(self):
        return [watch.state for watch in self.watches[-1].watches] if self.watches else None

    def close(self):
        for camera in self.cameras:
            camera.close()
        self.executor.shutdown(timeout_sec=2.0)
        self._thread.join(2.0)
        self.node.destroy_node()


@pytest.fixture(scope='module')
def node():
    node = NodeProcess(model='', vision='tiny', max_context_len=1024, explain_format=False)
    try:
        node.wait_for_line(': active', 120.0)
        yield node
    finally:
        node.stop()
    assert 'Traceback' not in node.output, node.output


@pytest.fixture
def watcher(node):
    watcher = Watcher().connect()
    yield watcher
    for name in watcher.names or ():
        watcher.set('remove', name=name)
    watcher.close()


def test_a_goal_tells_each_answer_and_ends_with_the_one_that_it_waits_for(watcher):
    camera = watcher.camera()
    camera.show(drawn('red'))
    goal, feedback, result = watcher.goal(
        question=COLOR, response_format=COLORS, max_rate=10.0, until=said('blue'), until_count=2
    )
    assert goal.accepted
    watcher.wait(lambda: len(feedback) >= 3)
    first = feedback[0]
    assert (
        first.text == said('red') and first.value == '"The object is red."' and first.valid and first.changed
    )
    assert first.probability > 0.5 and math.isnan(first.number) and first.question == COLOR
    assert first.header.frame_id == 'nanochat_image' and 0 < first.age < 10
    assert first.image_tokens == 16 and first.model_time > 0 and first.encode_time > 0
    assert all(each.unchanged and each.prompt_tokens == 0 for each in feedback[1:])
    assert watcher.names == ['what_color_is_the_object']
    camera.show(drawn('blue'))
    watcher.wait(result.done)
    end = result.result()
    assert end.status == GoalStatus.STATUS_SUCCEEDED and end.result.reason == 'until'
    last = end.result.observation
    assert last.text == said('blue') and last.in_a_row == 2
    changed = next(each for each in feedback if each.text == said('blue'))
    assert changed.changed and changed.reused_tokens > 0  # of the system prompt
    assert (changed.header.stamp.sec, changed.header.stamp.nanosec) in camera.sent
    watcher.wait(lambda: watcher.names == [])
    late = Watcher()  # hears what was before
    try:
        late.wait(
            lambda: [each.text for each in late.observations][-1:] == [said('blue')] and late.names == []
        )
    finally:
        late.close()


def test_the_service_adds_changes_pauses_and_removes_and_refuses_in_one_line(watcher):
    camera = watcher.camera()
    camera.show(drawn('green', 'right'))
    added = watcher.set('add', question=COLOR, response_format=COLORS, max_rate=10.0, only_changes=True)
    assert added.success and added.name == 'what_color_is_the_object', added
    assert watcher.set('add', question=COLOR).name == 'what_color_is_the_object_2'
    assert watcher.set('remove', name='what_color_is_the_object_2').success
    watcher.wait(lambda: watcher.of(added.name))
    changed = watcher.set('change', name=added.name, question=WHERE, response_format=SIDES)
    assert changed.success, changed
    watcher.wait(lambda: watcher.observations[-1].text == said('right'))
    assert watcher.set('change', ['only_changes'], name=added.name).success
    watcher.wait(lambda: watcher.watches[-1].watches[0].only_changes is False)
    shown = watcher.watches[-1].watches[0]
    assert shown.question == WHERE and shown.max_rate == 10.0 and shown.source == 'service'
    assert watcher.set('pause', name=added.name).success
    watcher.wait(lambda: watcher.watches[-1].watches[0].state == 'paused')
    camera.show(None)
    assert watcher.set('resume', name=added.name).success
    watcher.wait(lambda: watcher.watches[-1].watches[0].state == 'waiting')
    assert 'older than' in watcher.watches[-1].watches[0].note
    watcher.wait(lambda: 'older than' in watcher.health.get(f'watch {added.name}', ('',))[0])
    camera.show(drawn('green', 'left'))
    watcher.wait(lambda: watcher.observations[-1].text == said('left'))
    watcher.wait(lambda: 'rate' in watcher.health[f'watch {added.name}'][1])
    for command, fields, told in (
        ('add', {'name': added.name, 'question': 'x'}, 'already'),
        ('add', {'name': 'y', 'question': 'x', 'cameras': ['arm']}, "no camera 'arm'"),
        ('add', {'name': 'y', 'question': 'x', 'response_format': 'no such form'}, 'response_format'),
        ('change', {'name': added.name}, 'nothing is to be changed'),
        ('change', {'name': 'z', 'question': 'x'}, "no standing question 'z'"),
        ('dance', {}, 'add, change, pause, resume, remove'),
    ):
        refused = watcher.set(command, **fields)
        assert not refused.success and told in refused.message and '\n' not in refused.message, refused
    assert watcher.set('remove', name=added.name).success
    watcher.wait(lambda: watcher.names == [])


OTHER = """
import sys
import rclpy
from test_watch import COLOR, COLORS, Watcher
rclpy.init()
other = Watcher().connect()
other.goal(name='b', question=COLOR, response_format=COLORS)
sys.stdin.read()
other.close()
rclpy.shutdown()
"""


def test_cancel_a_time_limit_a_wrong_goal_and_a_client_that_dies(node, watcher):
    watcher.camera().show(drawn('red'))
    goal, feedback, result = watcher.goal(name='a', question=COLOR, response_format=COLORS, max_rate=5.0)
    # The first look may be at a frame of another camera that has just left.
    watcher.wait(lambda: feedback and feedback[-1].text == said('red'))
    goal.cancel_goal_async()
    watcher.wait(result.done)
    assert result.result().status == GoalStatus.STATUS_CANCELED
    assert result.result().result.reason == 'cancelled'
    assert result.result().result.observation.text == said('red')
    goal, feedback, result = watcher.goal(name='a', question=COLOR, response_format=COLORS, timeout=0.5)
    watcher.wait(result.done)
    assert result.result().status == GoalStatus.STATUS_SUCCEEDED
    assert result.result().result.reason == 'timeout'
    goal, feedback, result = watcher.goal(name='a', question=COLOR, response_format=COLORS, until='pink')
    watcher.wait(result.done)
    assert result.result().status == GoalStatus.STATUS_ABORTED
    assert result.result().result.reason == 'error' and 'pink' in result.result().result.error
    other = subprocess.Popen([sys.executable, '-c', OTHER], cwd=Path(__file__).parent, stdin=subprocess.PIPE)
    watcher.wait(lambda: watcher.names == ['b'])
    other.communicate(timeout=30.0)  # it ends without cancelling its goal
    watcher.wait(lambda: watcher.names == [])


def test_a_person_is_answered_in_between_and_the_watch_goes_on(node, watcher):
    camera = watcher.camera(rate=20.0)
    camera.show(drawn('red'))
    watcher.set('add', name='a', question=COLOR, response_format=COLORS)
    watcher.set('change', ['max_rate'], name='a', max_rate=0.0)
    watcher.wait(lambda: watcher.of('a'))
    with ChatClient() as chat:
        assert chat.wait_until_ready(30.0)
        turn = chat.ask('What is the capital of Japan?', image_mode='off', max_new_tokens=8).result(60.0)
    assert 'Tokyo' in turn.reply, turn
    camera.show(drawn('yellow'))
    watcher.wait(lambda: watcher.observations[-1].text == said('yellow'))
    watcher.set('remove', name='a')


def test_two_cameras_by_name_of_a_file_and_a_restart(tmp_path):
    file = tmp_path / 'watches.yaml'
    file.write_text(
        'watches:\n'
        f'  front: {{question: {COLOR!r}, response_format: {COLORS!r}, cameras: [front], max_rate: 10}}\n'
        f'  arm: {{question: {COLOR!r}, response_format: {COLORS!r}, cameras: [arm], max_rate: 10,'
        ' only_changes: true}\n'
    )
    setup = dict(
        model='',
        vision='tiny',
        max_context_len=1024,
        explain_format=False,
        robots=['r1'],
        watches_file=str(file),
        cameras=['front:=/front/image_raw', 'arm:=/{robot}/arm'],
    )
    watcher = Watcher('/r1/nanochat')
    front, arm = watcher.camera('/front/image_raw'), watcher.camera('/r1/arm')
    try:
        for start in range(2):
            watcher.observations.clear()
            front.show(drawn('red'))
            arm.show(drawn('blue', 'right'))
            node = NodeProcess(**setup)
            try:
                node.wait_for_line(': active', 120.0)
                watcher.connect()
                watcher.wait(lambda: watcher.of('front') and watcher.of('arm'))
                assert watcher.of('front')[-1].text == said('red') and watcher.of('arm')[-1].text == said(
                    'blue'
                )
                assert watcher.of('arm')[-1].robot == 'r1' and watcher.of('arm')[-1].cameras == ['arm']
                watcher.wait(
                    lambda: [watch.source for watch in watcher.watches[-1].watches] == ['file', 'file']
                )
                if start:
                    continue
                arm.show(None)
                watcher.wait(
                    lambda: [watch.state for watch in watcher.watches[-1].watches] == ['watching', 'waiting']
                )
                front.show(drawn('yellow', width=200, height=200), 'bgr8')
                watcher.wait(lambda: watcher.of('front')[-1].text == said('yellow'))
                arm.show(drawn('green', width=160, height=120))
                watcher.wait(lambda: watcher.of('arm')[-1].text == said('green'))
                with ChatClient(robot='r1') as chat:
                    assert chat.wait_until_ready(30.0)
                    turn = chat.ask(COLOR, cameras=['arm'], max_new_tokens=8).result(60.0)
                    assert turn.image.frame_id == 'r1_arm' and 'green' in turn.reply.lower(), turn
                    turn = chat.ask(COLOR, cameras=['leg'], max_new_tokens=8).result(60.0)
                    assert turn.finish_reason == 'error' and "no camera 'leg'" in turn.error
            finally:
                node.stop()
                assert 'Traceback' not in node.output, node.output
    finally:
        watcher.close()


BOMB = 'a: &a [1, 2]\n' + ''.join(
    f'{now}: &{now} [{", ".join([f"*{before}"] * 9)}]\n' for before, now in zip('abcdefgh', 'bcdefghi')
)
INLINE_BOMB = '[&b0 [1, 2], ' + ', '.join(f'&b{n + 1} [{", ".join([f"*b{n}"] * 9)}]' for n in range(9)) + ']'
"""Aliases that stand for each other: written out, they would fill the memory."""


def test_a_file_that_is_not_valid_stops_the_start_with_one_line(tmp_path):
    file = tmp_path / 'watches.yaml'
    for text, told in (
        ('watches:\n  door: {question: "?", rate: 2}\n', "no option 'rate'"),
        ('watches:\n  door: {question: "?", cameras: [arm]}\n', "no camera 'arm'"),
        ('door: {question: "?"}\n', 'and under it a name and the fields'),
        ('watches: [', 'line 1: '),
        ('watches:\n  a: {question: x}\n  a: {question: y}\n', "line 3: 'a' stands twice"),
        ('watches: {a: {question: x, question: y}}\n', "line 1: 'question' stands twice"),
        ('watches: {1: {question: x}}\n', 'the key 1 is not text'),
        ('watches: {a: just text}\n', 'fields such as'),
        ('watches: {a: {question: [x]}}\n', 'question='),
        ('watches: {a: {max_rate: 1.0}}\n', "'a': question is missing"),
        ('a: \udcfd', 'it is not text in UTF-8: byte 0xfd at position 3'),
        ('watches: {a: {question: x, name: b}}\n', 'the name stands before'),
        ('watches: {"a b": {question: x}}\n', 'name='),
        ('watches: {a: {question: "  "}}\n', 'question='),
        ('watches: {a: {question: x, max_rate: -1}}\n', 'max_rate=-1'),
        ('watches: {a: {question: x, max_rate: .nan}}\n', 'max_rate=nan'),
        ('watches: {a: {question: x, max_rate: 1e9}}\n', 'max_rate='),
        ('watches: {a: {question: x, until_count: 0}}\n', 'until_count=0'),
        ('watches: {a: {question: x, only_changes: maybe}}\n', "only_changes='maybe'"),
        ('watches: {a: {question: x, response_format: "a | b", until: c}}\n', "until='c'"),
        ('watches: {a: {question: x, response_format: "/(/"}}\n', 'response_format'),
        ('watches: {a: {question: x, response_format: {type: nothing}}}\n', 'response_format'),
        ('watches: {a: {question: x, frames: 9, cameras: [image, image]}}\n', 'named twice'),
        ('watches: {a: {question: x, frames: 17}}\n', 'frames=17'),
        ('watches: !!python/object/apply:os.system [ls]\n', 'could not determine a constructor'),
        ('watches: {a: &a [*a]}\n', 'recursive'),
        ('[' * 5000, 'nested too deeply'),
        (BOMB + 'watches: *i\n', 'its aliases multiply'),
        ('watches: {a: ' + INLINE_BOMB + '}\n', 'its aliases multiply'),
        ('watches: {a: {question: x, until: ' + INLINE_BOMB + '}}\n', 'its aliases multiply'),
        ('watches: {a: {question: x, response_format: {enum: ' + INLINE_BOMB + '}}}\n', 'multiply'),
        ('\x00', 'unacceptable character'),
    ):
        file.write_bytes(text.encode(errors='surrogateescape'))
        with pytest.raises(ValueError, match='watches_file=') as caught:
            read_watches(str(file), [])
        assert told in str(caught.value) and '\n' not in str(caught.value)
    node = NodeProcess(api='fake', max_context_len=4096, watches_file=str(file))
    assert node.process.wait(60.0) == 1
    node.stop()
    assert 'cannot be used: unacceptable' in node.output and 'Traceback' not in node.output, node.output


@pytest.mark.long
def test_a_still_noisy_scene_has_no_events_and_changes_are_told_within_two_frames(watcher):
    camera = watcher.camera(rate=10.0)
    camera.show(drawn('red'), noise=5.0)
    watcher.set('add', name='color', question=COLOR, response_format=COLORS, max_rate=10.0)
    watcher.set('add', name='place', question=WHERE, response_format=SIDES, max_rate=10.0)
    watcher.wait(lambda: watcher.of('color') and watcher.of('place'))
    time.sleep(60.0)
    assert len([each for each in watcher.observations if each.changed]) == 2
    assert len(watcher.of('color')) > 200
    assert np.mean([each.unchanged for each in watcher.observations]) > 0.95
    for name in ('color', 'place'):
        watcher.set('remove', name=name)
    add_all(watcher, max_rate=10.0)
    rng, changes = np.random.default_rng(0), []
    for flaws in (dict(noise=5.0), dict(noise=4.0, flicker=0.06, shake=2)):
        changes += tell(watcher, camera, 15, rng, **flaws)
    missed = [str(each) for each in changes if not each.told]
    assert len(changes) >= 30 and len(missed) <= 0.05 * len(changes), missed


@pytest.mark.long
def test_eight_robots_with_two_standing_questions_each(tmp_path):
    file = tmp_path / 'watches.yaml'
    file.write_text(
        'watches:\n'
        f'  color: {{question: {COLOR!r}, response_format: {COLORS!r}, max_rate: 2}}\n'
        f'  place: {{question: {WHERE!r}, response_format: {SIDES!r}, max_rate: 2}}\n'
    )
    names = [f'r{n}' for n in range(8)]
    node = NodeProcess(
        model='',
        vision='tiny',
        max_context_len=512,
        robots=names,
        watches_file=str(file),
        watch_share=0.8,
        explain_format=False,
    )
    watchers = [Watcher(f'/{name}/nanochat') for name in names]
    try:
        node.wait_for_line(': active', 180.0)
        colors = ['red', 'green', 'blue', 'yellow']
        cameras = [watcher.camera(f'{watcher.prefix}/image', rate=3.0) for watcher in watchers]
        for turn in range(2):
            for n, camera in enumerate(cameras):
                camera.show(drawn(colors[(n + turn) % 4], ('left', 'right')[(n + turn) % 2]))
            for n, watcher in enumerate(watchers):
                watcher.wait(
                    lambda n=n, watcher=watcher, turn=turn: (
                        watcher.of('color')
                        and watcher.of('place')
                        and watcher.of('color')[-1].text == said(colors[(n + turn) % 4])
                        and watcher.of('place')[-1].text == said(('left', 'right')[(n + turn) % 2])
                    ),
                    timeout=120.0,
                )
    finally:
        for watcher in watchers:
            watcher.close()
        node.stop()
    assert 'Traceback' not in node.output, node.output
