"""Start the chat node: `ros2 launch nanochat chat.launch.py model:=... system_prompt:=...
image_topic:=/camera/image_raw`.

Arguments override `params_file`, which overrides config/chat.yaml. You can include this file in other launch
files, and push it into a namespace.
"""

import os
import re

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription
from ros2_nanochat.config import WebConfig, options_of
from ros2_nanochat.robot.options import PARAMETERS, robot_names

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


_OTHERS = {
    'robots': 'names of the robots to serve, separated by commas or spaces; empty: the node itself',
    'namespace': 'namespace of the node',
    'image_topic': 'camera topic, raw (<topic>/compressed is used if only that is published) or compressed;'
    " {robot} in it is replaced with the name of each robot, as in '{robot}/camera/image_raw'; empty:"
    ' <robot>/nanochat/image',
    'params_file': 'YAML file with parameters; config/ of this package has presets',
    'use_sim_time': 'true: stamps and ages follow /clock; empty: as in params_file, else false',
    'log_level': 'debug, info, warn, error, fatal',
    'web': 'true: also serve a page that shows the robots (docs/web.md)',
}
_DEFAULTS = {'log_level': 'info', 'web': 'false'}
_WEB = {option.name: option for option in options_of(WebConfig) if option.name in ('host', 'port')}


_TOPIC = re.compile(r'(?:~?/)?[A-Za-z_]\w*(?:/[A-Za-z_]\w*)*', re.ASCII)
_DECLARED = (*_PARAMETERS, *_OTHERS, *(f'web_{name}' for name in _WEB))


def _start(context):
    value = {name: LaunchConfiguration(name).perform(context) for name in _DECLARED}
    share = get_package_share_directory('nanochat')
    parameters = [os.path.join(share, 'config', 'chat.yaml')]
    if value['params_file']:
        parameters.append(_file('params_file', value['params_file']))
    given = {name: value[name] for name in _PARAMETERS if value[name]}
    if 'gpu_layers' in given:
        given['gpu_layers'] = _whole_number('gpu_layers', given['gpu_layers'])
    if value['use_sim_time']:
        given['use_sim_time'] = _true_or_false('use_sim_time', value['use_sim_time'])
    robots = [name.strip('/') for name in re.split(r'[\s,\[\]\'"]+', value['robots']) if name.strip('/')]
    if robots:
        robots = robot_names(robots)
        given['robots'] = robots
    if given:
        parameters.append(given)
    remappings = _cameras(value['image_topic'], robots) if value['image_topic'] else []
    # Shared memory for camera frames; see config/fastdds.xml. Fast DDS 2 uses the old name of the variable.
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
    page = [_page(value, remappings)] if _true_or_false('web', value['web']) else []
    return [*environment, *page, node]


def _page(value, remappings):
    """The program that serves the page. It sees the same cameras as the chat node."""
    arguments = [part for name in _WEB for part in (f'--{name}', value[f'web_{name}'])]
    return Node(
        package='nanochat',
        executable='web',
        name='nanochat_web',
        namespace=value['namespace'],
        output='screen',
        emulate_tty=True,
        remappings=[(name.replace('~', 'nanochat'), camera) for name, camera in remappings],
        arguments=[*arguments, '--ros-args', '--log-level', value['log_level']],
    )


def _cameras(topic, robots):
    """Remappings of the images of each robot to its camera: a pattern with {robot}, or one camera for all."""
    if '{robot}' in topic and not robots:
        raise ValueError(f'image_topic:={topic} is not valid: it names {{robot}}, and robots is empty')
    given, topic = topic, topic.strip().rstrip('/')
    if not _TOPIC.fullmatch(topic.replace('{robot}', 'robot')):
        raise ValueError(
            f'image_topic:={given} is not valid: it has to be the name of a topic, in which {{robot}} may'
            ' stand for the name of each robot'
        )
    images = {f'{robot}/nanochat/image': topic.replace('{robot}', robot) for robot in robots}
    # A compressed topic is used as it is; for a raw one, the compressed topic is remapped, too.
    suffixes = ('',) if topic.endswith('/compressed') else ('', '/compressed')
    return [
        (image + suffix, camera + suffix)
        for image, camera in (images or {'~/image': topic}).items()
        for suffix in suffixes
    ]


def _file(name, path):
    path = os.path.expanduser(path)  # a shell does not expand ~ after :=
    if not os.path.isfile(path):
        raise ValueError(f'{name}:={path} is no file')  # launch would only warn and start without it
    return path


def _whole_number(name, text):
    try:
        return int(text)
    except ValueError:
        raise ValueError(f'{name}:={text} is not valid: it has to be a whole number') from None


def _true_or_false(name, text):
    values = {'true': True, 'yes': True, 'on': True, '1': True}
    values |= {'false': False, 'no': False, 'off': False, '0': False}
    if text.strip().lower() not in values:
        raise ValueError(f'{name}:={text} is not valid: it has to be true or false')
    return values[text.strip().lower()]


def generate_launch_description():
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(
                    name,
                    default_value='',
                    description=f'{PARAMETERS[name].text}. Empty: as in params_file',
                )
                for name in _PARAMETERS
            ),
            *(
                DeclareLaunchArgument(name, default_value=_DEFAULTS.get(name, ''), description=text)
                for name, text in _OTHERS.items()
            ),
            *(
                DeclareLaunchArgument(
                    f'web_{name}',
                    default_value=str(option.default),
                    description=f'The page: {option.explained()}',
                )
                for name, option in _WEB.items()
            ),
            OpaqueFunction(function=_start),
        ]
    )
