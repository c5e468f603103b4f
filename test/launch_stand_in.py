"""Stands in for `launch` and `launch_ros` where ROS comes from wheels, which have neither: it runs the
function that makes the node of launch/chat.launch.py, and keeps what the node was given.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock


class _Action:
    def __init__(self, *positional, **named):
        self.positional, self.named = positional, named


class _Configuration:
    def __init__(self, name: str):
        self.name = name

    def perform(self, context) -> str:
        return context[self.name]


def _modules(share: Path) -> dict[str, ModuleType]:
    names = ('DeclareLaunchArgument', 'OpaqueFunction', 'SetEnvironmentVariable', 'Node', 'LaunchDescription')
    modules = {}
    for name in ('launch', 'launch.actions', 'launch.substitutions', 'launch_ros', 'launch_ros.actions'):
        modules[name] = ModuleType(name)
        vars(modules[name]).update({each: type(each, (_Action,), {}) for each in names})
    modules['launch.substitutions'].LaunchConfiguration = _Configuration
    modules['ament_index_python'] = ModuleType('ament_index_python')
    modules['ament_index_python.packages'] = SimpleNamespace(get_package_share_directory=lambda _: str(share))
    return modules


def chat_launch(root: Path, **arguments: str) -> tuple[dict[str, str], _Action]:
    """The descriptions of the arguments of chat.launch.py, and the node that it starts with some given.

    What it starts before that is `node.before`.
    """
    with mock.patch.dict(sys.modules, _modules(root)):
        spec = importlib.util.spec_from_file_location('chat_launch', root / 'launch' / 'chat.launch.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        (entities,) = module.generate_launch_description().positional
        declared = [each for each in entities if type(each).__name__ == 'DeclareLaunchArgument']
        defaults = {each.positional[0]: each.named['default_value'] for each in declared}
        (function,) = (each.named['function'] for each in entities if type(each).__name__ == 'OpaqueFunction')
        assert set(arguments) <= set(defaults)
        *before, node = function({**defaults, **arguments})
        node.before = before
        return {each.positional[0]: each.named['description'] for each in declared}, node
