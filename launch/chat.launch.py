"""Start the chat node: `ros2 launch nanochat chat.launch.py model:=... system_prompt:=...
image_topic:=/camera/image_raw`.

Arguments that are given win over `params_file`, and that over config/chat.yaml. Can be included in other
launch files, and pushed into a namespace.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription
from ros2_nanochat.robot.options import PARAMETERS

# Parameters that have a launch argument; params_file sets the others.
_PARAMETERS = (
    'model',
    'api',
    'quantization',
    'chat_template',
    'system_prompt',
    'vision',
    'state_dir',
    'gpu_layers',
)


def _start(context):
    value = {
        name: LaunchConfiguration(name).perform(context)
        for name in (*_PARAMETERS, 'robots', 'namespace', 'image_topic', 'params_file', 'log_level')
    }
    share = get_package_share_directory('nanochat')
    parameters = [os.path.join(share, 'config', 'chat.yaml')]
    if value['params_file']:
        parameters.append(_file('params_file', value['params_file']))
    given = {name: value[name] for name in _PARAMETERS if value[name]}
    if 'gpu_layers' in given:
        given['gpu_layers'] = _whole_number('gpu_layers', given['gpu_layers'])
    robots = [name for name in value['robots'].replace(',', ' ').split() if name]
    if robots:
        given['robots'] = robots
    if given:
        parameters.append(given)
    # Every robot looks at the same camera then; else each has its own, <robot>/nanochat/image.
    images = [f'{robot}/nanochat/image' for robot in robots] or ['~/image']
    topic = value['image_topic']
    # A topic of compressed frames is taken for what it is; beside one of raw frames, the compressed ones.
    suffixes = ('',) if topic.endswith('/compressed') else ('', '/compressed')
    remappings = [(name + suffix, topic + suffix) for name in images for suffix in suffixes] if topic else []
    # Room for camera frames in shared memory; see config/fastdds.xml. Fast DDS 2 knows the variable under its
    # old name.
    profile = os.path.join(share, 'config', 'fastdds.xml')
    variable = (
        'FASTRTPS_DEFAULT_PROFILES_FILE'
        if os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy')
        else 'FASTDDS_DEFAULT_PROFILES_FILE'
    )
    environment = [] if os.environ.get(variable) else [SetEnvironmentVariable(variable, profile)]
    node = Node(
        package='nanochat',
        executable='chat_node',
        name='nanochat',
        namespace=value['namespace'],
        output='screen',
        emulate_tty=True,
        parameters=parameters,
        remappings=remappings,
        arguments=['--ros-args', '--log-level', value['log_level']],
    )
    return [*environment, node]


def _file(name, path):
    path = os.path.expanduser(path)  # a shell leaves ~ alone behind :=
    if not os.path.isfile(path):
        raise ValueError(f'{name}:={path} is no file')  # launch would warn, and start without it
    return path


def _whole_number(name, text):
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'{name}:={text} is not valid: it has to be a whole number') from None


def generate_launch_description():
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(
                    name,
                    default_value='',
                    description=f'{PARAMETERS[name].text}. Empty: as params_file says',
                )
                for name in _PARAMETERS
            ),
            DeclareLaunchArgument(
                'robots',
                default_value='',
                description='names of the robots to serve, with commas or spaces between; empty: the node'
                ' itself',
            ),
            DeclareLaunchArgument('namespace', default_value='', description='namespace of the node'),
            DeclareLaunchArgument(
                'image_topic',
                default_value='',
                description=(
                    'camera topic, raw (<topic>/compressed is used if only that is published) or compressed;'
                    ' empty: <robot>/nanochat/image'
                ),
            ),
            DeclareLaunchArgument(
                'params_file',
                default_value='',
                description='YAML file with parameters; config/ of this package has presets',
            ),
            DeclareLaunchArgument('log_level', default_value='info', description='debug, info, warn, error'),
            OpaqueFunction(function=_start),
        ]
    )
