"""The robot's services, actions and topics as tools, over real DDS with servers in another process.

The fake model writes the calls that a script names, so that only what happens with a call is tested here.
"""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nanochat.msg import ToolCall
from nanochat.srv import Approve
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_srvs.srv import Trigger

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.tools import Tool

HERE = Path(__file__).parent
FILE = (HERE / 'ros_tools.yaml').read_text()


class Servers:
    """The process of the servers, and what it printed."""

    def __init__(self, namespace):
        self.lines, self.changed = [], threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, HERE / 'tool_servers.py', namespace], stdout=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.wait_for('ready')

    def _read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.split())
                self.changed.notify_all()

    def says(self, *words, timeout):
        def found():
            return next((line for line in self.lines if line[: len(words)] == list(words)), None)

        with self.changed:
            return self.changed.wait_for(found, timeout)

    def wait_for(self, *words, timeout=60.0):
        line = self.says(*words, timeout=timeout)
        assert line, (words, self.lines)
        return float(line[-1])

    def stop(self):
        self.process.kill()
        self.process.wait(10)


@pytest.fixture(scope='module')
def servers(ros):
    running = Servers('tools')
    yield running
    running.stop()


@pytest.fixture(scope='module')
def call_text():
    model = NanoLLM.from_pretrained('', api='fake')
    history = ChatHistory(model, tools=[Tool('any')])

    def call_text(*calls):
        return history.template.call_format.write([WrittenCall(name, arguments) for name, arguments in calls])

    yield call_text
    model.close()


class Robot:
    """A chat node on the fake model that writes a call for each question of its script."""

    def __init__(self, start, listen, tmp_path, call_text, script, file=FILE, **parameters):
        (tmp_path / 'tools.yaml').write_text(file.replace('NS', 'tools'))
        entries = [[f'<{question}>', call_text(*calls)] for question, calls in script.items()]
        (tmp_path / 'script.json').write_text(json.dumps(entries))
        self.node = start(
            model=f'script={tmp_path / "script.json"},context=32768',
            max_context_len=32768,  # a byte is a token, and each tool is described
            tools_file=str(tmp_path / 'tools.yaml'),
            **parameters,
        )
        self.ears = listen()
        self.calls, node = [], self.ears.node
        node.create_subscription(
            ToolCall,
            '/nanochat/tool_calls',
            self._hear,
            QoSProfile(depth=50, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        )
        self.approval = node.create_client(Approve, '/nanochat/approve')
        self.cancelling = node.create_client(Trigger, '/nanochat/cancel')
        assert self.approval.wait_for_service(30) and self.cancelling.wait_for_service(30)

    def _hear(self, message):
        with self.ears.changed:
            self.calls.append((time.monotonic(), message))
            self.ears.changed.notify_all()

    def turn(self, question):
        turn = self.ears.turn(f'<{question}>')
        return turn, [(call.name, call.state, call.result) for call in turn.tool_calls]

    def heard(self, name, state, timeout=30.0):
        def found():
            return next((call for _, call in self.calls if (call.name, call.state) == (name, state)), None)

        self.ears.wait_for(found, timeout)
        return found()

    def ask_service(self, client, request):
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        assert done.wait(20)
        return future.result()


@pytest.fixture
def robot(servers, start, listen, tmp_path, call_text):
    return lambda script, **more: Robot(start, listen, tmp_path, call_text, script, **more)


def test_services_topics_and_parameters_are_called_and_their_answers_reach_the_model(robot, servers):
    r = robot(
        {
            'on': [('lamp', {'data': True})],
            'say': [('say', {'data': 'hello'})],
            'level': [('battery', {})],
            'speed': [('speed', {})],
            'two': [('lamp', {'data': False}), ('battery', {})],
        }
    )
    turn, calls = r.turn('on')
    assert calls == [('lamp', 'done', '{"success": true, "message": "as you wish <|im_end|>"}')]
    assert 'as you wish' in turn.reply and turn.finish_reason == 'stop'
    pieces = r.ears.pieces(turn.turn_id)
    assert [piece.tool_call_id for piece in pieces if piece.tool_call_id] == [turn.tool_calls[0].id]
    assert ''.join(piece.text for piece in pieces) == turn.reply and '"arguments"' not in turn.reply
    assert sum(piece.num_tokens for piece in pieces) == turn.new_tokens
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    servers.wait_for('lamp', 'True')
    assert [call.state for _, call in r.calls] == ['running', 'done']
    assert r.turn('say')[1] == [('say', 'done', 'done')]
    servers.wait_for('speech', 'hello')
    assert r.turn('level')[1] == [('battery', 'done', '{"percentage": 0.5, "voltage": 12.0}')]
    assert r.turn('speed')[1] == [('speed', 'done', '{"max_speed": 0.5}')]
    assert [call[:2] for call in r.turn('two')[1]] == [('lamp', 'done'), ('battery', 'done')]
    assert 'has no minimum and maximum' in r.node.output  # `kept` has no limits


def test_what_goes_wrong_is_one_line_for_the_model_and_the_turn(robot, servers):
    r = robot(
        {
            'broken': [('broken', {})],
            'hang': [('hang', {})],
            'absent': [('absent', {})],
            'away': [('away', {})],
            'silent': [('silent', {})],
            'unknown': [('unknown', {})],
            'too far': [('drive', {'distance': 9.0, 'speed': 1.0})],
            'backwards': [('drive', {'distance': -0.1, 'speed': 1.0})],
        }
    )
    for question, says in (
        ('broken', 'the fuse is gone'),
        ('hang', 'no answer within 1 s'),
        ('absent', 'the service /tools/absent is not there'),
        ('away', 'the service /tools/away is not there'),
        ('silent', 'no message came on /tools/silent: nobody publishes it'),
        ('unknown', 'has no parameter nothing'),
        ('too far', 'the action /tools/drive rejected the goal'),
        ('backwards', 'aborted the goal'),
    ):
        turn, ((_, state, result),) = r.turn(question)
        assert state == 'failed' and says in result and '\n' not in result, (question, result)
        assert says in turn.reply and turn.finish_reason == 'stop'


def test_a_parameter_is_set_within_its_limits(robot, servers):
    r = robot(
        {
            'faster': [('faster', {'value': 0.75}), ('speed', {})],
            'too fast': [('faster', {'value': 9.0}), ('speed', {})],
            'back': [('faster', {'value': 0.5})],
            'nothing': [('nothing', {'value': True})],
            'seen': [('seen', {})],
        }
    )
    assert r.turn('faster')[1] == [('faster', 'done', 'done'), ('speed', 'done', '{"max_speed": 0.75}')]
    turn, calls = r.turn('too fast')  # what the model wants to write cannot be written
    written = json.loads(turn.tool_calls[0].arguments)['value']
    assert 0 <= written <= 1 and json.loads(calls[1][2]) == {'max_speed': written}
    assert r.turn('back')[1] == [('faster', 'done', 'done')]
    ((_, state, result),) = r.turn('nothing')[1]
    assert state == 'failed' and 'did not set nothing' in result and '\n' not in result
    ((_, state, result),) = r.turn('seen')[1]
    assert state == 'failed' and 'no vision' in result


def test_an_action_sends_feedback_and_is_cancelled_with_its_turn(robot, servers):
    r = robot(
        {
            'near': [('drive', {'distance': 0.1, 'speed': 1.0})],
            'far': [('drive', {'distance': 4.0, 'speed': 0.5})],
        }
    )
    turn, ((_, state, result),) = r.turn('near')
    assert state == 'done' and 'driven' in result and 'driven' in turn.tool_calls[0].feedback
    r.calls.clear()
    r.ears.ask('<far>')
    r.ears.wait_for(lambda: any(call.feedback for _, call in r.calls))
    servers.wait_for('drive', '4.0', '0.5')
    assert r.ask_service(r.cancelling, Trigger.Request()).success
    asked = time.monotonic()
    canceled = servers.wait_for('canceled')
    r.ears.wait_for(lambda: len(r.ears.turns) == 2)
    ended = r.ears.turns[-1][1]
    turn = r.ears.turns[-1][2]
    assert turn.finish_reason == 'cancelled' and turn.tool_calls[0].state == 'cancelled'
    assert canceled - ended < 0.2 and canceled - asked < 5.0
    # A new question interrupts a drive, too, and is answered.
    r.calls.clear()
    r.ears.ask('<far>')
    r.heard('drive', 'running')
    assert r.ears.turn('hello').reply == 'You said: hello'
    assert r.ears.turns[-2][2].finish_reason == 'interrupted'
    assert r.ears.turns[-2][2].tool_calls[0].state == 'cancelled'


def test_a_kept_and_a_background_drive_go_on_until_a_stop_word(robot, servers):
    drive = {'distance': 4.9, 'speed': 0.1}
    r = robot(
        {
            'kept': [('kept', drive)],
            'far': [('far', drive)],
            'near': [('far', {'distance': 0.1, 'speed': 1.0})],
        }
    )
    r.ears.ask('<kept>')
    r.heard('kept', 'running')
    assert r.ears.turn('how are you').reply == 'You said: how are you'
    interrupted = r.ears.turns[0][2]
    assert interrupted.finish_reason == 'interrupted' and interrupted.tool_calls[0].state == 'running'
    turn = r.ears.turn('Stop!')
    assert turn.tool_calls == [] and turn.finish_reason == 'stop'
    assert r.heard('kept', 'cancelled').background
    turn, calls = r.turn('near')
    assert calls[0][1] == 'running' and 'started' in turn.reply
    r.heard('far', 'done')
    assert 'far, which went on in the background, has ended: done' in r.ears.turn('and now').reply
    r.turn('far')
    assert r.ask_service(r.cancelling, Trigger.Request()).success  # no reply streams
    r.heard('far', 'cancelled')
    assert not r.ask_service(r.cancelling, Trigger.Request()).success


def test_what_goes_on_acting_is_undone(robot, servers):
    r = robot({'creep': [('creep', {'linear': {'x': 0.1}})]})
    assert r.turn('creep')[1] == [('creep', 'done', 'done')]
    servers.wait_for('cmd_vel', '0.1')
    r.ask_service(r.cancelling, Trigger.Request())
    servers.wait_for('cmd_vel', '0.0')
    r.turn('creep')
    before = len(servers.lines)
    r.node.stop()  # shutting down undoes it, too
    with servers.changed:
        assert servers.changed.wait_for(
            lambda: any(line[:2] == ['cmd_vel', '0.0'] for line in servers.lines[before:]), 10
        )


def test_approval_is_given_refused_and_expires(robot, servers):
    r = robot({'on': [('asked', {'data': True})]})
    for approve, reason, state, says in (
        (True, '', 'done', 'as you wish'),
        (False, 'not now', 'failed', 'not called: it was refused: not now'),
        (None, '', 'failed', 'not called: nobody approved it within 2 s'),
    ):
        r.calls.clear()
        r.ears.ask('<on>')
        waiting = r.heard('asked', 'waiting')
        assert json.loads(waiting.arguments) == {'data': True}
        if approve is not None:
            request = Approve.Request(id=waiting.id, approve=approve, reason=reason)
            assert r.ask_service(r.approval, request).success
            assert not r.ask_service(r.approval, request).success
        assert says in r.heard('asked', state).result
        count = len(r.ears.turns)
        r.ears.wait_for(lambda count=count: len(r.ears.turns) >= max(1, count))


def test_a_turn_with_calls_survives_a_kill_and_no_call_is_repeated(robot, servers, talk, tmp_path):
    script = {'both': [('lamp', {'data': True}), ('wait', {})]}
    r = robot(script, state_dir=str(tmp_path / 'state'))
    before = sum(line[0] == 'hang' for line in servers.lines)
    r.ears.ask('<both>')
    r.heard('lamp', 'done')
    r.heard('wait', 'running')
    with servers.changed:
        assert servers.changed.wait_for(
            lambda: sum(line[0] == 'hang' for line in servers.lines) == before + 1, 30
        )
    r.node.process.kill()
    r.node.process.wait(10)
    lamps = sum(line[0] == 'lamp' for line in servers.lines)
    again = robot(script, state_dir=str(tmp_path / 'state'))
    lost = again.heard('wait', 'unknown')
    assert 'not repeated' in lost.result and lost.turn_id
    tools = [text for role, text in talk().history() if role == 'tool']
    assert ['as you wish' in text for text in tools] == [True, False] and 'unknown' in tools[1]
    assert again.ears.turn('hello').reply.endswith('hello')
    assert sum(line[0] == 'lamp' for line in servers.lines) == lamps
    assert sum(line[0] == 'hang' for line in servers.lines) == before + 1


def test_a_call_that_ended_just_before_a_kill_is_told_as_it_ended(robot, servers, talk, tmp_path):
    script = {'one': [('lamp', {'data': True})]}
    r = robot(script, state_dir=str(tmp_path / 'state'))
    r.ears.ask('<one>')
    r.heard('lamp', 'done')
    r.node.process.kill()  # the history with the answer is probably not on disk yet
    r.node.process.wait(10)
    lamps = sum(line[0] == 'lamp' for line in servers.lines)
    again = robot(script, state_dir=str(tmp_path / 'state'))
    (told,) = [text for role, text in talk().history() if role == 'tool']
    assert 'as you wish' in told
    assert again.ears.turn('hello').reply.endswith('hello')
    assert sum(line[0] == 'lamp' for line in servers.lines) == lamps


def test_the_death_of_a_server_ends_its_call(robot, start, listen):
    dying = Servers('dying')
    keys = 'action: /dying/drive, type: nanochat/action/Drive, confirm: false, timeout: 10.0'
    file = f'tools: {{drive: {{{keys}}}}}'
    try:
        r = robot({'wait': [('drive', {'distance': 5.0, 'speed': 0.01})]}, file=file)
        r.ears.ask('<wait>')
        dying.wait_for('drive')
        dying.process.send_signal(signal.SIGKILL)
        r.ears.wait_for(lambda: r.ears.turns, 60)
        (call,) = r.ears.turns[-1][2].tool_calls
        assert call.state in ('failed', 'unknown') and call.result and '\n' not in call.result
        assert r.ears.turn('hello').reply == 'You said: hello'
    finally:
        dying.stop()


def test_a_goal_reaches_a_server_that_has_just_appeared(robot):
    keys = 'action: /late/drive, type: nanochat/action/Drive, confirm: false, timeout: 60.0'
    r = robot({'go': [('drive', {'distance': 0.1, 'speed': 1.0})]}, file=f'tools: {{drive: {{{keys}}}}}')
    late = Servers('late')
    try:
        ((_, state, result),) = r.turn('go')[1]
        assert state == 'done' and 'driven' in result, result
    finally:
        late.stop()


def test_deactivation_cancels_a_running_action(robot, servers):
    r = robot({'far': [('drive', {'distance': 4.5, 'speed': 0.5})], 'on': [('lamp', {'data': True})]})
    r.ears.ask('<far>')
    r.ears.wait_for(lambda: any(call.feedback for _, call in r.calls))
    before = len(servers.lines)
    changing = r.ears.node.create_client(ChangeState, '/nanochat/change_state')
    assert changing.wait_for_service(30)
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE))
    assert r.ask_service(changing, request).success
    with servers.changed:
        assert servers.changed.wait_for(
            lambda: any(line[0] == 'canceled' for line in servers.lines[before:]), 20
        )
    r.ears.wait_for(lambda: r.ears.turns)
    turn = r.ears.turns[-1][2]
    assert turn.query == '<far>' and turn.tool_calls[0].state == 'cancelled'
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_ACTIVATE))
    assert r.ask_service(changing, request).success
    r.ears.wait_until_connected()
    assert r.turn('on')[1][0][:2] == ('lamp', 'done')


def test_robots_have_different_tools_and_one_that_hangs_holds_up_nobody(
    servers, start, listen, tmp_path, call_text
):
    names = [f'r{n}' for n in range(8)]
    for name in names:
        tool = 'hang, timeout: 30.0' if name == 'r0' else 'lamp'
        kind = 'Trigger' if name == 'r0' else 'SetBool'
        (tmp_path / f'{name}.yaml').write_text(
            f'tools: {{do_{name}: {{service: /tools/{tool}, type: std_srvs/srv/{kind}}}}}\n'
        )
    entries = [
        [f'<{name}>', call_text((f'do_{name}', {} if name == 'r0' else {'data': True}))] for name in names
    ]
    (tmp_path / 'script.json').write_text(json.dumps(entries))
    start(
        model=f'script={tmp_path / "script.json"}',
        robots=names,
        **{f'{name}__tools_file': str(tmp_path / f'{name}.yaml') for name in names},
    )
    ears = listen(*(f'/{name}/nanochat' for name in names))
    ears.ask('<r0>', '/r0/nanochat')
    for name in names[1:]:
        ears.ask(f'<{name}>', f'/{name}/nanochat')
    ears.wait_for(lambda: len(ears.turns) == 7)
    assert {turn.robot for _, _, turn in ears.turns} == set(names[1:])
    for _, _, turn in ears.turns:
        assert [(call.name, call.state) for call in turn.tool_calls] == [(f'do_{turn.robot}', 'done')]


@pytest.mark.parametrize(
    'text, says',
    [
        ('tools: {a: {service: /x, type: std_srvs/srv/SetBol}}', 'tools.a.type'),
        ('tools: {a: {service: /x, type: std_msgs/msg/String}}', 'tools.a.type'),
        (
            'tools: {a: {service: /x, type: std_srvs/srv/SetBool, arguments: {dat: {const: 1}}}}',
            'arguments.dat',
        ),
        (
            'tools: {a: {action: /x, type: nanochat/action/Drive, arguments: {distance: {minimum: a}}}}',
            'arguments.distance',
        ),
        ('tools: {a: {publish: /x, type: geometry_msgs/msg/Twist}}', 'tools.a.on_cancel is missing'),
        (
            'tools: {a: {publish: /x, type: geometry_msgs/msg/Twist, on_cancel: {linar: {}}}}',
            'on_cancel does not',
        ),
        ('tools: {a: {read: /x, type: std_msgs/msg/String, fields: [dta]}}', "tools.a.fields: 'dta'"),
        ('tools: {a: {service: /x, tipe: std_srvs/srv/Trigger}}', 'tools.a.tipe'),
        (
            "tools: {a: {publish: /x, type: std_msgs/msg/String, arguments: {data: {pattern: '('}}}}",
            'tools.a',
        ),
        ("tools: {a: {parameter: /x, name: y, set: {type: string, pattern: '('}}}", 'tools.a'),
        ('limits: {audit: /nowhere/audit.jsonl}', 'limits.audit'),
    ],
)
def test_a_file_that_does_not_fit_its_interfaces_fails_the_configuration(start, tmp_path, text, says):
    (tmp_path / 'tools.yaml').write_text(text)
    node = start(wait=False, tools_file=str(tmp_path / 'tools.yaml'))
    assert node.process.wait(60) == 1
    lines = [line for line in node.lines if 'tools.yaml' in line]
    assert len(lines) == 1 and says in lines[0], node.output
