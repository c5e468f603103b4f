"""The page's server with a graph on which other programs do as they like."""

from __future__ import annotations

import math
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip('aiohttp', reason='the page needs aiohttp')

from nanochat.msg import Token, Turn
from rclpy.node import Node
from rclpy.parameter import Parameter

from ros2_nanochat.web import robot_link, turn_log
from ros2_nanochat.web.as_json import to_value
from ros2_nanochat.web.camera_feed import CameraFeed, Source
from ros2_nanochat.web.pages import Pages
from ros2_nanochat.web.pictures import Album
from ros2_nanochat.web.ros_thread import RosThread, Wanted

pytestmark = pytest.mark.ros
TURN = 'nanochat/msg/Turn'


class ForeignNames(Node):
    """A node on whose graph a program that is not of ROS has named topics as it likes."""

    def get_topic_names_and_types(self, *arguments):
        foreign = [('/<b>x</b>/turn', [TURN]), ('/a b/nanochat/turn', [TURN]), (f'/{"x" * 300}/turn', [TURN])]
        return foreign + super().get_topic_names_and_types(*arguments)


def test_a_name_that_ros_does_not_know_hides_no_robot():
    node = ForeignNames(
        'foreign_names', parameter_overrides=[Parameter('start_type_description_service', value=False)]
    )
    for topic in ('/turn', '/here/nanochat/turn'):
        node.create_publisher(Turn, topic, 1)
    heard = []
    ros = RosThread(node, heard.extend, 5.0)
    ros.want(
        Wanted(
            True,
            frozenset({('/a b/nanochat', '/a b/nanochat'), ('/here/nanochat', '/here/nanochat')}),
            frozenset({Source('/here/nanochat', 'broken', '/a b')}),
        )
    )
    ros.start()
    try:
        until = time.monotonic() + 30.0
        while not heard or '/here/nanochat' not in ros.links:
            assert time.monotonic() < until, (heard, ros.links)
            time.sleep(0.02)
        assert list(heard[0][2]) == ['/here/nanochat'] and list(ros.links) == ['/here/nanochat']
    finally:
        ros.close()
        node.destroy_node()


class Full(Node):
    """A node whose transport has no place for another subscription."""

    def create_subscription(self, *arguments, **options):
        raise RuntimeError('no place left')


def test_what_has_arrived_is_handed_on_although_nothing_can_be_opened():
    node = Full('full', parameter_overrides=[Parameter('start_type_description_service', value=False)])
    heard, came = [], threading.Event()
    ros = RosThread(node, lambda batch: heard.extend(batch) or came.set(), 5.0)
    ros.want(Wanted(any_page=True))
    frames = [('camera', '/here/nanochat', ('image', bytes([n]))) for n in range(3)]
    for frame in frames:
        ros._put(frame)
    ros.start()
    try:
        assert came.wait(30.0) and heard == frames
    finally:
        ros.close()
        node.destroy_node()


def test_what_is_wanted_just_after_a_vain_wait_is_opened_at_once():
    node = Node('late', parameter_overrides=[Parameter('start_type_description_service', value=False)])
    ros, opened = RosThread(node, lambda _: None, 5.0), threading.Event()
    follow = ros._follow
    ros._follow = lambda wanted, **options: (follow(wanted, **options), wanted.any_page and opened.set())

    class Late(threading.Event):
        def wait(self, timeout=None):
            came = super().wait(0.01)
            if not came and not ros._wanted.any_page:
                ros.want(Wanted(any_page=True))
            return came

    ros._changed, ros._looked = Late(), math.inf  # so that only a change is followed
    ros.start()
    try:
        assert opened.wait(30.0)
    finally:
        ros.close()
        node.destroy_node()


@pytest.mark.parametrize('kind, name', [(Token, 'tokens'), (Turn, 'turn')])
def test_a_message_that_cannot_be_converted_costs_no_other(monkeypatch, kind, name):
    def convert(message):
        if getattr(message, 'turn_id', '') == 'bad':
            raise ValueError('no value')
        return to_value(message)

    for module in (robot_link, turn_log):
        monkeypatch.setattr(module, 'to_value', convert)
    node = Node('odd', parameter_overrides=[Parameter('start_type_description_service', value=False)])
    heard, errors = [], []
    link = robot_link.RobotLink(node, '/here/nanochat', '/here/nanochat', heard.append, errors.append)
    tap = next(each for each in link._taps if each._kind is kind)
    try:
        tap._receive([kind(turn_id=each) for each in ('a', 'bad', 'b')])
        assert [(each, value['turn_id']) for each, _, value in heard] == [(name, 'a'), (name, 'b')]
        assert list(map(str, errors)) == ['no value']
    finally:
        link.close()
        node.destroy_node()


def test_a_camera_is_shown_less_often_while_a_reply_streams():
    node = Node('streams', parameter_overrides=[Parameter('start_type_description_service', value=False)])
    ros = RosThread(node, lambda _: None, 5.0)
    source = Source('/here/nanochat', 'image', '/here/nanochat/image')
    feed = CameraFeed(node, source, 5.0, lambda _: None, ros.is_streaming)
    slow = CameraFeed(node, source, 0.5, lambda _: None, ros.is_streaming)
    try:
        assert feed.pause == 0.2
        ros._put(('tokens', '/here/nanochat', {}))
        ros._hand_on()
        assert feed.pause == 0.5 and slow.pause == 2.0
        ros._streamed -= 2.0  # of a model that is slower than a token per second
        assert feed.pause == 0.5
    finally:
        feed.close()
        slow.close()
        node.destroy_node()


@pytest.fixture
def pages():
    """Pages of the robots r1 and r2, without ROS; `reported` are the errors."""
    pages = Pages(Album())
    pages.reported = []
    nothing = {'links': {}, 'cameras': {}, 'known_cameras': {}}
    pages.ros = SimpleNamespace(report=pages.reported.append, want=lambda _: None, **nothing)
    show_graph(pages, b'1')
    return pages


def show_graph(pages, *ends):
    found = {'node': '/nanochat', 'cameras': {}, 'watches': False, 'ends': frozenset(ends)}
    robots = {f'/{name}/nanochat': dict(found) for name in ('r1', 'r2')}
    pages.listener.deliver([('graph', '', robots)])


def states(pages, prefix):
    return [item['state'] for item in pages.views[prefix].log.conversation()['items']]


def test_what_one_robot_sends_costs_the_others_nothing(pages):
    piece = {'turn_id': 'a', 'index': 0, 'text': 'Hi', 'last': False, 'reasoning': False, 'num_tokens': 1}
    pages.listener.deliver([('turn', '/r1/nanochat', {}), ('tokens', '/r2/nanochat', piece)])
    assert len(pages.reported) == 1 and states(pages, '/r2/nanochat') == ['streaming']


def test_a_reply_that_may_be_in_the_history_already_is_looked_for_in_it_when_it_has_ended(pages):
    view, learned = pages.views['/r1/nanochat'], []
    pages.listener.learn = lambda view, changed=False: learned.append((view.prefix, changed))
    ended = {'turn_id': 'a', 'query': 'Open?', 'reply': 'Yes.', 'reasoning': '', 'finish_reason': 'stop'}
    ended |= {'prompt_tokens': 5, 'new_tokens': 2, 'image_used': False}
    view.known = True
    view.log.asked('a', '', [])
    read = [
        {'role': role, 'text': text, 'num_images': 0} for role, text in (('user', 'Open?'), ('bot', 'Yes.'))
    ]
    view.log.history(read, 5, 100)
    pages.listener.ended('/r1/nanochat', ended)
    assert learned == [('/r1/nanochat', True)] and states(pages, '/r1/nanochat') == ['past', 'ended']


def test_replies_of_a_node_that_was_started_again_are_lost_as_soon_as_it_is_there(pages):
    pages.views['/r1/nanochat'].log.asked('a', 'Hi', [])
    show_graph(pages, b'1')
    assert states(pages, '/r1/nanochat') == ['asked']
    show_graph(pages, b'1', b'2')  # the transport takes a while to notice that the first was killed
    assert states(pages, '/r1/nanochat') == ['lost'] and not pages.reported
