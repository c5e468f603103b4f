"""Robots share the thread that takes their questions: what is stuck at one of them holds up no other one."""

import subprocess
import sys

import pytest

BEGIN = """
import os, sys, threading, time
import rclpy
from std_msgs.msg import String
from ros2_nanochat.ros.chat_node import ChatNode

rclpy.init(args=sys.argv)
node = ChatNode(threading.Event())
node.trigger_configure(), node.trigger_activate()
fleet, model = node._fleet, node._model
chats, ports, heard = {**fleet._chats}, {**fleet._ports}, []
blocked, go_on = threading.Event(), threading.Event()
other = rclpy.create_node('other')

def wait(condition):
    until = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < until, heard[-10:]
        time.sleep(0.01)

def asking(robot):
    speaker = other.create_publisher(String, f'/{robot}/nanochat/query', 1000)
    wait(speaker.get_subscription_count)
    return lambda text: speaker.publish(String(data=text))

def hear(robot, before=lambda turn: None):
    tell = ports[robot].ended

    def ended(turn):
        before(turn)
        heard.append((robot, turn.query, str(turn.finish_reason)))
        tell(turn)

    ports[robot].ended = ended

def block(*_):
    blocked.set()
    assert go_on.wait(20.0)

ask0, ask1 = asking('r0'), asking('r1')
"""

BLOCKED = """
hear('r0', block), hear('r1')
ask0('x' * 10_000_000)  # is refused
assert blocked.wait(20.0)
for n in range(3):
    ask0('again')  # too: two of them are displaced or refused
ask1('hello')
wait(lambda: heard)
assert heard == [('r1', 'hello', 'stop')], heard
go_on.set()
wait(lambda: len(heard) == 5)
assert [robot for robot, _, _ in heard[1:]] == ['r0'] * 4
"""

BURST = """
hear('r0')
for n in range(200):
    ask0(str(n))
wait(lambda: len(heard) == 200)
for reason in ('stop', 'refused'):
    numbers = [int(text) for _, text, why in heard if why == reason]
    assert numbers == sorted(numbers) and numbers, heard
assert {text for _, text, _ in heard} == {str(n) for n in range(200)}
heard.clear()
for n in range(200):
    ask0(str(n))
fleet.close_ports()
told = list(heard)
time.sleep(0.5)
assert heard == told and len({text for _, text, _ in heard}) == len(heard), heard
"""

STUCK = """
chats['r0'].ask = block
ask0('hello')
assert blocked.wait(20.0)
began = time.monotonic()
fleet.close_ports()
assert time.monotonic() - began < 3.0, time.monotonic() - began
go_on.set()
"""

SHUT_DOWN = """
rclpy.shutdown()
time.sleep(0.3)
"""

END = """
assert node.close(10.0), 'it does not end'
assert not fleet._chats and not fleet._ports and node._model is None and not model.engine.alive
from ros2_nanochat.robot.store import ConversationStore
for robot in chats:  # another node could take it over
    place = f'/{robot}/nanochat'
    ConversationStore(node.get_parameter('state_dir').value, place, node.get_logger(), False).close()
print('all closed', flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    'story, robots',
    [(BLOCKED, 2), (BURST, 2), (STUCK, 20), (SHUT_DOWN, 3), (BURST + SHUT_DOWN, 2)],
    ids=['blocked', 'burst', 'stuck', 'shut down', 'shut down after the end'],
)
def test_what_is_stuck_at_one_robot_holds_up_no_other_one(tmp_path, story, robots):
    parameters = {
        'model': 'tokens_per_second=2000',
        'api': 'fake',
        'state_dir': str(tmp_path),
        'on_new_query': 'queue',
        'max_queue': '10' if '200' in story else '1',
        'robots': str([f'r{n}' for n in range(robots)]),
    }
    arguments = [part for name, value in parameters.items() for part in ('-p', f'{name}:={value}')]
    done = subprocess.run(
        [sys.executable, '-c', BEGIN + story + END, '--ros-args', *arguments],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert 'all closed' in done.stdout, done.stdout + done.stderr
