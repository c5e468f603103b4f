"""The simulated robot of the demo, used through its own tools file, over real DDS."""

import json
import signal
import subprocess
import threading

import pytest
import rclpy
from conftest import ROOT, program
from nanochat.action import Drive
from rclpy.action import ActionClient

from ros2_nanochat import ChatHistory, NanoLLM, Tool
from ros2_nanochat.answer.written_call import WrittenCall


class Demo:
    """The process of the robot, and what it drew."""

    def __init__(self, **parameters):
        self.lines, self.changed = [], threading.Condition()
        arguments = [part for name, value in parameters.items() for part in ('-p', f'{name}:={value}')]
        self.process = subprocess.Popen(
            [program('demo_robot'), '--ros-args', *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()

    def draws(self, text, timeout=30):
        with self.changed:
            return self.changed.wait_for(lambda: any(text in line for line in self.lines), timeout)


@pytest.fixture
def demo(ros):
    running = Demo(battery=0.5)
    yield running
    running.process.kill()
    running.process.wait(10)


def test_the_demo_robot_does_what_its_tools_ask_for(demo, start, listen, tmp_path):
    names = ('on', 'off', 'battery', 'move')
    with NanoLLM.from_pretrained('', api='fake') as model:
        write = ChatHistory(model, tools=[Tool('any')]).template.call_format.write
        script = [[f'<{name}>', write([WrittenCall(name, {})])] for name in names]
    (tmp_path / 'script.json').write_text(json.dumps(script))
    start(
        model=f'script={tmp_path / "script.json"},context=32768',
        max_context_len=32768,
        tools_file=str(ROOT / 'config' / 'tools' / 'demo.yaml'),
    )
    assert demo.draws('lamp off')
    ears = listen()

    def call(name):
        ((call),) = ears.turn(f'<{name}>').tool_calls
        return call.name, call.state, call.result

    name, state, result = call('on')
    assert (name, state) == ('on', 'done') and 'the lamp is on' in result and demo.draws('(*) lamp on')
    name, state, result = call('battery')
    assert state == 'done' and json.loads(result) == {'percentage': 0.5}
    assert call('off')[1] == 'done'
    ears.ask('<move>')
    assert demo.draws('drives')
    ears.turn('Stop!')
    moved = next(turn for _, _, turn in ears.turns if turn.query == '<move>')
    assert moved.finish_reason == 'cancelled' and moved.tool_calls[0].state == 'cancelled'
    assert demo.draws('was stopped')
    assert call('move')[1] == 'done' and demo.draws('+2.')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_drives_stops_it_and_ends_it_in_order(demo, number):
    node = rclpy.create_node('driver')
    client = ActionClient(node, Drive, 'drive')
    assert client.wait_for_server(30)
    client.send_goal_async(Drive.Goal(distance=4.0, speed=0.5))
    assert demo.draws('drives')
    demo.process.send_signal(number)
    assert demo.process.wait(20) == 0
    assert demo.draws('was stopped', 5)
    told = [line for line in demo.lines if '[robot]' not in line]
    assert not told, ''.join(told)
    client.destroy()
    node.destroy_node()


@pytest.mark.parametrize('parameters', [{'rate': 0.0}, {'battery': 1.5}])
def test_a_parameter_of_the_demo_robot_that_is_out_of_range_is_one_line(ros, parameters):
    arguments = [part for name, value in parameters.items() for part in ('-p', f'{name}:={value}')]
    ended = subprocess.run(
        [program('demo_robot'), '--ros-args', *arguments], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1 and 'has to be' in ended.stderr + ended.stdout
    assert 'Traceback' not in ended.stderr
