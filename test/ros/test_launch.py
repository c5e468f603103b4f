"""The launch files under the real launch and launch_ros; skipped where these are not installed (they are no wheels: ROS from apt has them)."""
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('launch_ros', reason='launch_ros is not installed: it comes with ROS from apt, not with the wheels')

RUN = '''
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import PushRosNamespace
arguments = dict(argument.split(':=') for argument in sys.argv[3:])
include = IncludeLaunchDescription(PythonLaunchDescriptionSource(sys.argv[1]), launch_arguments=arguments.items())
space = [PushRosNamespace(sys.argv[2])] if sys.argv[2] else []
service = LaunchService()
service.include_launch_description(LaunchDescription([GroupAction([*space, include])]))
sys.exit(service.run())
'''


@pytest.fixture
def launch():
    from ament_index_python.packages import get_package_share_directory
    running = []

    def launch(name, *arguments, namespace=''):
        path = Path(get_package_share_directory('nanochat'), 'launch', name)
        running.append(subprocess.Popen([sys.executable, '-c', RUN, str(path), namespace, *arguments]))

    yield launch
    for process in running:
        process.send_signal(signal.SIGINT)
        assert process.wait(15) in (0, 1, -signal.SIGINT)


def test_chat_launch_takes_its_arguments_and_is_composed_into_a_namespace(launch, listen):
    launch('chat.launch.py', 'api:=fake', 'system_prompt:=Be brief.', namespace='kitchen')
    ears = listen('/kitchen/nanochat')
    assert ears.turn('hello').reply == 'You said: hello'


def test_fleet_launch_serves_its_robots(launch, listen):
    launch('fleet.launch.py', 'api:=fake', 'robots:=r1,r2')
    ears = listen('/r1/nanochat', '/r2/nanochat')
    assert ears.turn('hello', '/r2/nanochat').robot == 'r2'


def test_voice_launch_joins_a_recognizer_and_a_synthesizer(launch):
    import time

    import rclpy
    from std_msgs.msg import String
    launch('voice.launch.py', 'api:=fake', 'speech_topic:=/asr', 'say_topic:=/tts')
    node = rclpy.create_node('voice_test')
    asker, said = node.create_publisher(String, '/asr', 10), []
    node.create_subscription(String, '/tts', said.append, 10)
    until = time.monotonic() + 30
    while not (asker.get_subscription_count() and node.count_publishers('/tts')):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(0.5)
    asker.publish(String(data='Good morning. How are you?'))
    while len(said) < 2 and time.monotonic() < until:
        rclpy.spin_once(node, timeout_sec=0.2)
    node.destroy_node()
    assert [message.data for message in said] == ['You said: Good morning.', 'How are you?']
