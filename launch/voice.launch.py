"""The chat node between a speech recognizer and a speech synthesizer, both of which use std_msgs/String:
`ros2 launch nanochat voice.launch.py speech_topic:=/asr/text say_topic:=/tts/text`.

Recognized speech becomes a query, and a new query interrupts the reply. The reply is published sentence by
sentence, so that the robot can start to speak early.
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
            f'robots:={robots} is not valid here: a recognizer and a synthesizer belong to one robot,'
            " which is served under the node's own name"
        )


def generate_launch_description():
    chat = os.path.join(get_package_share_directory('nanochat'), 'launch', 'chat.launch.py')
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'speech_topic',
                default_value='/speech',
                description='Topic of recognized speech (std_msgs/String)',
            ),
            DeclareLaunchArgument(
                'say_topic',
                default_value='/say',
                description='Topic of text to speak, one sentence per message (std_msgs/String)',
            ),
            OpaqueFunction(function=_refuse_robots),
            # Also accepts the arguments of chat.launch.py (model, system_prompt, ...), except robots.
            GroupAction(
                [
                    SetRemap('~/query', LaunchConfiguration('speech_topic')),
                    SetRemap('~/sentence', LaunchConfiguration('say_topic')),
                    IncludeLaunchDescription(PythonLaunchDescriptionSource(chat)),
                ]
            ),
        ]
    )
