"""The parameters of the node and of each robot, declared on a node and read from it. What they are:
parameters.py.
"""

from __future__ import annotations

import difflib
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from ros2_nanochat.robot.options import (
    OPTIONS,
    QOS_OPTIONS,
    ROBOT,
    ROBOT_OPTIONS,
    Option,
    RobotOptions,
    model_config,
    robot_names,
    robot_options,
)

# How `ros2 param dump` writes a robot's parameter that is not set, and how `ros2 param load` and YAML files
# give it back.
_NOT_SET = ('null', 'None')

_QOS = 'qos_overrides.'


class NodeParameters:
    """Declares them all; ValueError for one that is wrong or that nobody knows."""

    def __init__(self, node: Node):
        self._node = node
        for option in OPTIONS.values():
            node.declare_parameter(option.name, option.default, _descriptor(option))
        names = self.robots()
        self.declare_robots(names)
        absent: dict[str, list[str]] = {}
        for name, override in node._parameter_overrides.items():  # public ways show only what was declared
            robot, _, option = name.rpartition('.')
            if name.startswith(_QOS):
                if option in QOS_OPTIONS:
                    QOS_OPTIONS[option].check(override.value, name)
                continue
            if node.has_parameter(name):
                continue
            if option not in ROBOT_OPTIONS or not robot:
                near = difflib.get_close_matches(name, OPTIONS, n=1)
                raise ValueError(
                    f'there is no parameter {name!r}'
                    + (f' (did you mean {near[0]!r}?)' if near else '')
                    + f'. Parameters: {", ".join(OPTIONS)}'
                )
            if _is_set(override.value):
                absent.setdefault(robot, []).append(option)
        for robot, options in absent.items():
            node.get_logger().warning(
                f'{robot!r} is not among the robots yet: its {", ".join(options)} will be used when it is'
            )
        model_config(self.values())
        for robot in names:
            self.robot(robot)

    def declare_robots(self, names: list[str]) -> None:
        """Declare the parameters of these robots' own, where they are not yet."""
        for robot in names:
            for option in ROBOT if robot else ():
                if not self._node.has_parameter(f'{robot}.{option.name}'):
                    self._node.declare_parameter(
                        f'{robot}.{option.name}',
                        None,
                        ParameterDescriptor(
                            description=(
                                f'{option.text}. Of {robot} alone; not set, or null: as {option.name}'
                            ),
                            dynamic_typing=True,
                        ),
                    )

    def unused_qos(self) -> list[str]:
        """What was given of `qos_overrides` and belongs to no topic, or to no policy that can be chosen, as
        things stand.
        """
        return [
            name
            for name in self._node._parameter_overrides
            if name.startswith(_QOS) and not self._node.has_parameter(name)
        ]

    def robots(self) -> list[str]:
        """The names in `robots`; [''] where the node serves itself."""
        return robot_names(list(self._node.get_parameter('robots').value or []))

    def values(self, changed: dict | None = None) -> dict:
        """The node's parameters, checked, as they would be with what changed. ValueError for a wrong one."""
        return {
            name: option.check((changed or {}).get(name, self._node.get_parameter(name).value))
            for name, option in OPTIONS.items()
        }

    def robot(self, robot: str, changed: dict | None = None) -> RobotOptions:
        """A robot's options: the node's, and over them its own. ValueError for a wrong one."""
        values, changed = self.values(changed), changed or {}
        for name, option in ROBOT_OPTIONS.items() if robot else ():
            own = f'{robot}.{name}'
            value = (
                changed[own]
                if own in changed
                else self._node.get_parameter(own).value
                if self._node.has_parameter(own)
                else None
            )
            if _is_set(value):
                values[name] = option.check(value, own)
        return robot_options(values)


def _is_set(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and value in _NOT_SET)


def _descriptor(option: Option) -> ParameterDescriptor:
    allowed = (
        f' One of: {", ".join(choice or "(empty)" for choice in option.choices)}.' if option.choices else ''
    )
    when = '' if option.live else ' Read when the model is loaded.'
    descriptor = ParameterDescriptor(description=f'{option.text}.{allowed}{when}')
    if isinstance(option.default, int) and not isinstance(option.default, bool):
        descriptor.integer_range = [IntegerRange(from_value=option.low, to_value=option.high, step=1)]
    elif isinstance(option.default, float):
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=option.low, to_value=option.high, step=0.0)
        ]
    return descriptor
