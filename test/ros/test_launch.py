"""The launch files under the real launch and launch_ros; skipped where these are not installed (they are no
wheels: ROS from apt has them).
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip(
    'launch_ros', reason='launch_ros is not installed: it comes with ROS from apt, not with the wheels'
)

from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python
from test_robots import call

RUN = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import PushRosNamespace
arguments = dict(argument.split(':=') for argument in sys.argv[3:])
source = PythonLaunchDescriptionSource(sys.argv[1])
include = IncludeLaunchDescription(source, launch_arguments=arguments.items())
space = [PushRosNamespace(sys.argv[2])] if sys.argv[2] else []
# sends on what ends it; in a terminal Ctrl-C reaches every process
service = LaunchService(noninteractive=True)
service.include_launch_description(LaunchDescription([GroupAction([*space, include])]))
sys.exit(service.run())
"""


@pytest.fixture
def launch():
    from ament_index_python.packages import get_package_share_directory

    running = []

    def launch(name, *arguments, namespace=''):
        path = Path(get_package_share_directory('nanochat'), 'launch', name)
        running.append(
            subprocess.Popen(
                [sys.executable, '-c', RUN, str(path), namespace, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return running[-1]

    yield launch
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=15)
        assert (
            process.returncode in (0, 1, -signal.SIGINT)
            and 'Traceback' not in output
            and 'failed to terminate' not in output
        ), output


def test_chat_launch_takes_its_arguments_and_is_composed_into_a_namespace(launch, listen):
    launch('chat.launch.py', 'api:=fake', 'system_prompt:=Be brief.', namespace='kitchen')
    ears = listen('/kitchen/nanochat')
    assert ears.turn('hello').reply == 'You said: hello'


def test_what_is_given_wins_over_the_file_of_parameters_and_reaches_the_node(launch, listen, tmp_path):
    (tmp_path / 'mine.yaml').write_text(
        "/**/nanochat:\n  ros__parameters: {gpu_layers: 7, max_queue: 3, system_prompt: 'From the file.'}\n"
    )
    launch(
        'chat.launch.py',
        'api:=fake',
        f'params_file:={tmp_path}/mine.yaml',
        'gpu_layers:=-1',
        f'state_dir:={tmp_path}',
        'system_prompt:=42',
    )
    ears = listen()
    answer = call(
        ears,
        GetParameters,
        '/nanochat/get_parameters',
        GetParameters.Request(names=['gpu_layers', 'max_queue', 'system_prompt', 'state_dir']),
    )
    assert [parameter_value_to_python(value) for value in answer.values] == [-1, 3, '42', str(tmp_path)]
    ears.turn('hello')
    assert (tmp_path / 'nanochat.json').exists()


@pytest.mark.parametrize(
    'name, argument, told',
    [
        ('chat.launch.py', 'gpu_layers:=many', 'gpu_layers:=many is not valid: it has to be a whole number'),
        ('chat.launch.py', 'use_sim_time:=maybe', 'use_sim_time:=maybe is not valid'),
        ('chat.launch.py', 'params_file:=/no/such.yaml', 'params_file:=/no/such.yaml is no file'),
        ('voice.launch.py', 'robots:=r1', 'robots:=r1 is not valid here'),
    ],
)
def test_a_wrong_argument_ends_the_launch_with_one_line(launch, name, argument, told):
    process = launch(name, 'api:=fake', argument)
    assert process.wait(30) == 1
    lines = [line for line in process.stdout if 'ERROR' in line]
    assert len(lines) == 1 and told in lines[0]


def test_fleet_launch_gives_each_robot_its_own_camera_and_follows_a_simulated_clock(launch, listen, tmp_path):
    import rclpy

    (tmp_path / 'short.yaml').write_text('/**:\n  ros__parameters: {max_new_tokens: 4}\n')
    launch(
        'fleet.launch.py',
        'vision:=tiny',  # a model without vision subscribes to no camera
        'robots:=r1,r2',
        'image_topic:={robot}/cam',
        'use_sim_time:=true',
        f'params_file:={tmp_path}/short.yaml',
    )
    ears = listen('/r1/nanochat', '/r2/nanochat')
    ears.turn('hello', '/r1/nanochat')
    node = rclpy.create_node('camera_test')
    until = time.monotonic() + 20
    while not all(node.count_subscribers(f'/{robot}/cam') for robot in ('r1', 'r2')):
        assert time.monotonic() < until
        time.sleep(0.1)
    node.destroy_node()
    request = GetParameters.Request(names=['use_sim_time'])
    answer = call(ears, GetParameters, '/nanochat/get_parameters', request)
    assert parameter_value_to_python(answer.values[0]) is True


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
