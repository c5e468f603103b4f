"""The chat node between a speech recognizer and a speech synthesizer, which speak std_msgs/String:
`ros2 launch nanochat voice.launch.py speech_topic:=/asr/text say_topic:=/tts/text`.

What is recognized becomes a query; a new one interrupts the reply. The reply goes out a sentence at a time,
so that speaking begins early.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import SetRemap

from launch import LaunchDescription


def _refuse_robots(context):
    robots = context.launch_configurations.get('robots')
    if robots:
        raise ValueError(
            f'robots:={robots} is not valid here: one recognizer and one synthesizer belong to one robot,'
            ' which is served under the node itself'
        )


def generate_launch_description():
    chat = os.path.join(get_package_share_directory('nanochat'), 'launch', 'chat.launch.py')
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'speech_topic', default_value='/speech', description='what was heard (std_msgs/String)'
            ),
            DeclareLaunchArgument(
                'say_topic',
                default_value='/say',
                description='what to speak, a sentence a message (std_msgs/String)',
            ),
            OpaqueFunction(function=_refuse_robots),
            # The arguments of chat.launch.py (model, system_prompt, ..., but for robots) can be given here as
            # well.
            GroupAction(
                [
                    SetRemap('~/query', LaunchConfiguration('speech_topic')),
                    SetRemap('~/sentence', LaunchConfiguration('say_topic')),
                    IncludeLaunchDescription(PythonLaunchDescriptionSource(chat)),
                ]
            ),
        ]
    )
