"""One node that serves many robots: `ros2 launch nanochat fleet.launch.py robots:=r1,r2,r3`. Each robot has
its topics under /<robot>/nanochat/.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription


def generate_launch_description():
    share = get_package_share_directory('nanochat')
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                'robots', description='Names of the robots to serve, separated by commas or spaces'
            ),
            DeclareLaunchArgument(
                'params_file',
                default_value=os.path.join(share, 'config', 'fleet.yaml'),
                description='YAML file of parameters',
            ),
            # Also accepts the other arguments of chat.launch.py (model, system_prompt, namespace, ...).
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(os.path.join(share, 'launch', 'chat.launch.py')),
                launch_arguments={
                    'robots': LaunchConfiguration('robots'),
                    'params_file': LaunchConfiguration('params_file'),
                }.items(),
            ),
        ]
    )
