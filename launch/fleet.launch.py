"""One node that serves many robots: `ros2 launch nanochat fleet.launch.py robots:=r1,r2,r3`. Each is under
/<robot>/nanochat/...
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
                'robots', description='names of the robots to serve, with commas or spaces between'
            ),
            DeclareLaunchArgument(
                'params_file',
                default_value=os.path.join(share, 'config', 'fleet.yaml'),
                description='YAML file with parameters',
            ),
            # Its other arguments (model, system_prompt, namespace, ...) can be given here as well.
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(os.path.join(share, 'launch', 'chat.launch.py')),
                launch_arguments={
                    'robots': LaunchConfiguration('robots'),
                    'params_file': LaunchConfiguration('params_file'),
                }.items(),
            ),
        ]
    )
