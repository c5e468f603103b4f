"""What the documentation shows runs as it stands."""

import os
import re
import subprocess
import sys
import time

import rclpy
from conftest import ROOT
from rclpy.qos import QoSProfile
from std_msgs.msg import Bool, String


def test_the_robot_of_the_documentation_looks_who_rings_and_says_it(start, tmp_path):
    program = tmp_path / 'door_keeper.py'
    program.write_text(
        re.search(r'```python\n(.*?)```', (ROOT / 'docs' / 'robot.md').read_text(), re.S).group(1)
    )
    said, node = [], rclpy.create_node('visitor')
    bell = node.create_publisher(Bool, '/bell', 10)
    node.create_subscription(
        String, '/tts/text', lambda message: said.append(message.data), QoSProfile(depth=10)
    )
    robot = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ,
    )

    def ring_until(happened):
        until = time.monotonic() + 60
        while not happened():
            assert time.monotonic() < until and robot.poll() is None, (
                robot.poll() is not None and robot.stdout.read()
            )
            bell.publish(Bool(data=True))
            for _ in range(20):
                rclpy.spin_once(node, timeout_sec=0.1)
                if happened():
                    break

    try:
        ring_until(bell.get_subscription_count)
        start(model='reply=Somebody stands there. It rains.')
        ring_until(lambda: len(said) >= 2)
    finally:
        robot.kill()  # how rclpy ends under a signal is its own business
        output, _ = robot.communicate(timeout=20)
        node.destroy_node()
    assert said[:2] == ['Somebody stands there.', 'It rains.']
    assert 'Traceback' not in output, output
