"""Answers in a set form over real DDS: parameters, goals, the typed topic, and what is refused."""

from __future__ import annotations

import time

import pytest
from geometry_msgs.msg import Twist
from nanochat.action import Chat
from rcl_interfaces.msg import Log, Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import QoSProfile

pytest.importorskip('llguidance')

TWIST = (
    '{"ros_type": "geometry_msgs/msg/Twist", "fields": {"linear.x": {"minimum": -0.3, "maximum": 0.3}, '
    '"linear.y": {"const": 0}, "linear.z": {"const": 0}, "angular.x": {"const": 0}, '
    '"angular.y": {"const": 0}, '
    '"angular.z": {"minimum": -1, "maximum": 1}}}'
)


@pytest.fixture
def robot(share, listen):
    """A node with the embedded model, and what listens to it."""
    share({'response_format': ''}, model='', threads=1, max_context_len=1024, max_new_tokens=120)
    return listen()


def set_form(ears, text):
    client = ears.node.create_client(SetParameters, '/nanochat/set_parameters')
    assert client.wait_for_service(20.0)
    value = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=text)
    request = SetParameters.Request(parameters=[Parameter(name='response_format', value=value)])
    future = client.call_async(request)
    until = time.monotonic() + 20
    while not future.done():
        assert time.monotonic() < until
        time.sleep(0.01)
    return future.result().results[0]


def raw_goal(chat, goal):
    """The turn of a goal as a client sends it that checks nothing."""

    def wait(future):
        until = time.monotonic() + 30
        while not future.done():
            assert time.monotonic() < until
            time.sleep(0.01)
        return future.result()

    return wait(wait(chat._action.send_goal_async(goal)).get_result_async()).result.turn


def test_forms_change_while_the_node_runs_and_a_wrong_one_is_refused(robot):
    assert not robot.turn('Is ice cold?').valid
    assert set_form(robot, 'yes | no').successful
    turn = robot.turn('Is ice cold?')
    assert turn.valid and turn.reply in ('yes', 'no') and turn.finish_reason == 'stop'
    for wrong, reason in (('maybe', "'maybe'"), ('/(/', 'unclosed'), ('nope_msgs/msg/X', 'nope_msgs')):
        result = set_form(robot, wrong)
        assert not result.successful and reason in result.reason and '\\n' not in result.reason
    assert robot.turn('Is fire cold?').reply in ('yes', 'no'), 'the form before holds'
    assert set_form(robot, '/[0-9]{1,3}/').successful
    number = robot.turn('How many legs has a dog?')
    assert number.valid and number.reply.isdigit()
    assert set_form(robot, '').successful
    assert not robot.turn('Say hello.').valid


def test_a_typed_reply_reaches_a_subscriber_and_a_cut_one_does_not(robot, talk):
    assert set_form(robot, TWIST).successful
    heard = []
    robot.node.create_subscription(Twist, '/nanochat/typed_reply', heard.append, QoSProfile(depth=10))
    until = time.monotonic() + 20
    while not robot.node.count_publishers('/nanochat/typed_reply'):
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.5)
    turn = robot.turn('Drive forward slowly.')
    assert turn.valid, turn
    robot.wait_for(lambda: heard)
    assert -0.3 <= heard[0].linear.x <= 0.3 and -1 <= heard[0].angular.z <= 1 and heard[0].linear.y == 0
    with talk() as chat:
        cut = chat.ask('Turn.', max_new_tokens=4).result(30)
        assert cut.finish_reason == 'length' and not cut.valid
        kept = chat.ask('Stop.').result(30)
    assert kept.valid
    robot.wait_for(lambda: len(heard) == 2)


def test_the_type_of_the_topic_changes_with_the_form(robot):
    logged = []
    robot.node.create_subscription(Log, '/rosout', logged.append, QoSProfile(depth=100))

    def wait_for_types(*expected):
        until = time.monotonic() + 20
        while (found := types()) != list(expected):
            assert time.monotonic() < until, found
            time.sleep(0.02)

    def types():
        found = robot.node.get_publishers_info_by_topic('/nanochat/typed_reply')
        return [info.topic_type for info in found]

    for form in ('std_msgs/msg/Empty', 'geometry_msgs/msg/Twist', 'geometry_msgs/msg/Pose'):
        assert set_form(robot, form).successful
        wait_for_types(form)
    assert set_form(robot, '').successful
    wait_for_types()
    robot.turn('Is ice cold?')
    assert not [line.msg for line in logged if 'failed' in line.msg]


def test_a_goal_has_a_form_of_its_own_and_its_client_gets_a_value(robot, talk):
    with talk() as chat:
        turn = chat.ask('Is the door open?', response_format=['open', 'closed'], probabilities=True).result(
            30
        )
        assert turn.valid and turn.parsed == turn.reply == turn.choice and 0 < turn.probability <= 1
        twist = chat.ask('Drive!', response_format=Twist, max_new_tokens=300).result(60)
        assert not twist.valid or isinstance(twist.parsed, Twist)
        schema = {'type': 'object', 'properties': {'n': {'type': 'integer', 'maximum': 9, 'minimum': 0}}}
        schema |= {'required': ['n'], 'additionalProperties': False}
        assert chat.ask('A number?', response_format=schema).result(30).parsed.keys() == {'n'}
        free = chat.ask('Say hello.', max_new_tokens=8).result(30)
        assert not free.valid and not hasattr(free, 'parsed')


def test_what_is_no_form_ends_its_turn_and_no_file_can_be_named(robot, talk, tmp_path):
    (tmp_path / 'a.lark').write_text('start: "yes"')
    with talk() as chat:
        for wrong, reason in (
            ('perhaps', "'perhaps'"),
            (str(tmp_path / 'a.lark'), 'only as a parameter'),
            ('{"type": "integer", "minimum": 3, "maximum": 2}', 'minimum'),
        ):
            with pytest.raises(ValueError, match='response_format'):
                chat.ask('Is it open?', response_format=wrong)
            turn = raw_goal(chat, Chat.Goal(query='Is it open?', response_format=wrong))
            assert turn.finish_reason == 'error' and reason in turn.error and '\\n' not in turn.error
        assert chat.ask('Say hello.', max_new_tokens=4).result(30).reply


def test_a_file_is_a_form_as_a_parameter(start, listen, tmp_path):
    (tmp_path / 'door.lark').write_text('start: "open" | "closed"')
    start(model='', threads=1, max_context_len=512, response_format=str(tmp_path / 'door.lark'))
    assert listen().turn('Is the door open?').reply in ('open', 'closed')


def test_an_impossible_form_ends_the_start_with_one_line(start):
    node = start(wait=False, response_format='perhaps')
    assert node.process.wait(60) != 0
    node.stop()
    assert "response_format='perhaps' is not valid" in node.output
