"""Tools whose other side does what it should not, over real DDS with servers in another process: it ignores
a cancel, answers at length, comes and goes; and approvals that come twice, too late, or for another call.
"""

import json

import pytest
from conftest import meet
from nanochat.msg import ToolCall
from nanochat.srv import Approve, Reset
from rcl_interfaces.srv import GetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_srvs.srv import Trigger
from test_robots import call, set_parameter
from test_ros_tools import Robot, call_text, robot, servers  # noqa: F401 (fixtures)

DEAF = 'action: /NS/deaf, type: nanochat/action/Drive, confirm: false'
CAMERA = {
    'height': 4,
    'width': 6,
    'distortion_model': 'plumb_"é"',
    'd': [0.5, -0.25],
    'k': [1.0, *[0.0] * 7, 1.0],
    'r': [2.0] * 9,
    'p': [0.125] * 12,
    'binning_x': 1,
    'binning_y': 0,
    'roi': {'x_offset': 1, 'y_offset': 2, 'height': 3, 'width': 4, 'do_rectify': True},
}


def test_nested_values_reach_a_service_and_a_long_answer_is_cut(robot, servers):  # noqa: F811
    value = {
        'type': 3,
        'bool_value': False,
        'integer_value': 0,
        'double_value': 0.25,
        'string_value': '',
        'byte_array_value': [0, 255],
        'bool_array_value': [True],
        'integer_array_value': [-1],
        'double_array_value': [],
        'string_array_value': ['<|im_end|>', 'b'],
    }
    whole = [{'name': 'max_speed', 'value': value}]
    r = robot(
        {
            'camera': [('camera', {'camera_info': CAMERA})],
            'set': [('set', {'parameters': whole}), ('speed', {})],
            'huge': [('huge', {})],
        },
        file="""
tools:
  camera: {service: /NS/set_camera_info, type: sensor_msgs/srv/SetCameraInfo}
  set:    {service: /NS/tool_servers/set_parameters, type: rcl_interfaces/srv/SetParameters}
  speed:  {parameter: /NS/tool_servers, name: max_speed}
  huge:   {service: /NS/huge, type: std_srvs/srv/Trigger}
limits: {rate: 100.0}
""",
        max_new_tokens=4000,  # bytes
    )
    turn, calls = r.turn('camera')
    assert len(calls) == 1, turn
    ((_, state, result),) = calls
    assert state == 'done', result
    servers.wait_for('camera')
    heard = json.loads(next(line for line in servers.lines if line[0] == 'camera')[1])
    heard.pop('header')
    assert heard == CAMERA
    (_, first, result), (_, second, speed) = r.turn('set')[1]
    assert (first, second, json.loads(speed)) == ('done', 'done', {'max_speed': 0.25}), result
    turn, ((_, state, result),) = r.turn('huge')
    assert state == 'done' and len(result) < 2000 and '<|im_end|>' in result
    assert r.ears.turn('hello').reply == 'You said: hello'


def test_a_tool_that_ignores_its_cancel_holds_up_neither_turns_nor_reset(robot, servers):  # noqa: F811
    limits = 'limits: {rate: 100.0, stop_timeout: 0.5}'
    r = robot(
        {'go': [('deaf', {'distance': 1.0, 'speed': 0.001})]}, file=f'tools: {{deaf: {{{DEAF}}}}}\n{limits}'
    )
    for number, stop in enumerate(('cancel', 'question', 'reset')):
        r.calls.clear()
        r.ears.ask('<go>')
        r.ears.wait_for(lambda: any(call.feedback for _, call in r.calls))
        if stop == 'cancel':
            assert r.ask_service(r.cancelling, Trigger.Request()).success
        elif stop == 'question':
            assert r.ears.turn('and you').reply == 'You said: and you'
        else:
            assert call(r.ears, Reset, '/nanochat/reset', Reset.Request()).success
        told = r.heard('deaf', 'unknown').result
        assert 'has not confirmed' in told and '\n' not in told
        r.ears.wait_for(
            lambda number=number: sum(turn.query == '<go>' for _, _, turn in r.ears.turns) == number + 1
        )
    assert r.ears.turn('hello').reply == 'You said: hello'
    turns = [turn for _, _, turn in r.ears.turns if turn.query == '<go>']
    assert [turn.finish_reason for turn in turns] == ['cancelled', 'interrupted', 'cancelled']
    assert all(turn.tool_calls[0].state == 'unknown' for turn in turns)


class Pair:
    """Two robots of one node, and what each says about its calls."""

    names = 'r0', 'r1'

    def __init__(self, start, listen, tmp_path, call_text, script, file):  # noqa: F811
        entries = [[f'<{question}>', call_text(*calls)] for question, calls in script.items()]
        (tmp_path / 'script.json').write_text(json.dumps(entries))
        (tmp_path / 'tools.yaml').write_text(file.replace('NS', 'tools'))
        start(
            model=f'script={tmp_path / "script.json"},context=16384',
            max_context_len=16384,
            robots=list(self.names),
            tools_file=str(tmp_path / 'tools.yaml'),
        )
        self.ears = listen(*(f'/{name}/nanochat' for name in self.names))
        self.calls = []
        for name in self.names:
            self.ears.node.create_subscription(
                ToolCall,
                f'/{name}/nanochat/tool_calls',
                self._hear,
                QoSProfile(depth=50, durability=DurabilityPolicy.TRANSIENT_LOCAL),
            )

        node = self.ears.node
        self.approval = {
            name: node.create_client(Approve, f'/{name}/nanochat/approve') for name in self.names
        }
        self.cancelling = {
            name: node.create_client(Trigger, f'/{name}/nanochat/cancel') for name in self.names
        }
        for client in (*self.approval.values(), *self.cancelling.values()):
            assert client.wait_for_service(30)
        meet(node, GetParameters, '/nanochat/get_parameters', GetParameters.Request())

    ask_service = Robot.ask_service

    def _hear(self, message):
        with self.ears.changed:
            self.calls.append(message)
            self.ears.changed.notify_all()

    def heard(self, robot, state):  # noqa: F811
        def found():
            return next((call for call in self.calls if (call.robot, call.state) == (robot, state)), None)

        self.ears.wait_for(found)
        return found()

    def approve(self, robot, call_id, approve=True):  # noqa: F811
        request = Approve.Request(id=call_id, approve=approve, reason='no')
        return self.ask_service(self.approval[robot], request).success


@pytest.fixture
def pair(servers, start, listen, tmp_path, call_text):  # noqa: F811
    return lambda script, file: Pair(start, listen, tmp_path, call_text, script, file)


def test_an_approval_counts_once_in_time_for_its_call_and_its_robot(pair, servers):  # noqa: F811
    p = pair(
        {'on': [('lamp', {'data': True})]},
        'tools: {lamp: {service: /NS/lamp, type: std_srvs/srv/SetBool, confirm: true}}',
    )

    def lamps():
        return sum(line[0] == 'lamp' for line in servers.lines)

    before = lamps()
    for name in p.names:
        p.ears.ask('<on>', f'/{name}/nanochat')
    first, second = (p.heard(name, 'waiting').id for name in p.names)
    for name, wrong in (
        ('r0', second),
        ('r1', first),
        ('r0', ''),
        ('r0', first[:-1]),
        ('r0', first + '0'),
        ('r0', first.partition('.')[2]),
    ):
        assert not p.approve(name, wrong), wrong
    assert lamps() == before and not any(call.state != 'waiting' for call in p.calls)
    assert p.approve('r1', second, False) and not p.approve('r1', second)
    assert 'refused: no' in p.heard('r1', 'failed').result
    assert p.approve('r0', first) and not p.approve('r0', first) and not p.approve('r0', first, False)
    p.heard('r0', 'done')
    assert lamps() == before + 1
    p.calls.clear()
    p.ears.ask('<on>', '/r1/nanochat')
    late = p.heard('r1', 'waiting').id
    assert p.ask_service(p.cancelling['r1'], Trigger.Request()).success
    p.heard('r1', 'cancelled')
    assert not p.approve('r1', late) and lamps() == before + 1


def test_a_robot_is_removed_and_comes_back_while_its_tool_hangs(pair, servers):  # noqa: F811
    p = pair(
        {'go': [('deaf', {'distance': 1.0, 'speed': 0.001})]},
        f'tools: {{deaf: {{{DEAF}}}}}\nlimits: {{rate: 100.0, stop_timeout: 0.5}}',
    )
    p.ears.ask('<go>', '/r0/nanochat')
    p.heard('r0', 'running')
    for robots in (['r1'], ['r0', 'r1']):
        assert set_parameter(p.ears, 'robots', robots).successful
        assert p.ears.turn('hello', '/r1/nanochat').reply == 'You said: hello'
    p.ears.wait_until_connected()
    assert p.ears.turn('back', '/r0/nanochat').reply == 'You said: back'
