"""Declares and reads the parameters of the node and of each robot. robot/options.py defines them."""

from __future__ import annotations

import difflib
import functools
from typing import Any

import rclpy
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from ros2_nanochat.config import EngineConfig, ModelConfig, NodeConfig, Option, RobotOptions
from ros2_nanochat.robot.options import (
    PARAMETERS,
    ROBOT_PARAMETERS,
    engine_config,
    model_config,
    node_config,
    robot_names,
    robot_options,
)
from ros2_nanochat.robot.parameter import Parameter
from ros2_nanochat.ros.typed_reply import with_form
from ros2_nanochat.ros.watches_file import read_watches
from ros2_nanochat.states import NodeState

# What `ros2 param dump` writes for a parameter that is not set, and `ros2 param load` reads.
_NOT_SET = ('null', 'None')

_QOS = 'qos_overrides.'

_QOS_PARAMETERS = {
    each.name: Parameter.of(each)
    for each in (
        Option('Messages kept', name='depth', kind=int, default=10, low=1, high=1_000_000),
        Option(
            'Which are kept',
            name='history',
            kind=str,
            default='keep_last',
            choices=('keep_last', 'keep_all', 'system_default'),
        ),
        Option(
            'What is lost',
            name='reliability',
            kind=str,
            default='reliable',
            choices=('reliable', 'best_effort', 'system_default'),
        ),
        Option(
            'What was sent before',
            name='durability',  # of the camera's topics
            kind=str,
            default='volatile',
            choices=('volatile', 'transient_local', 'system_default'),
        ),
    )
}
"""Values of `qos_overrides.<topic>.publisher.<name>` (or `.subscription.`); rclpy declares them."""


class NodeParameters:
    """Declares all parameters of a node and reads them.

    Raises:
        ValueError: A parameter is unknown, or its value is not valid.
    """

    def __init__(self, node: Node):
        self._node = node
        overrides = node._parameter_overrides  # the public interface shows only declared ones
        for name in [name for name, given in overrides.items() if given.value is None and name in PARAMETERS]:
            del overrides[name]  # `robots: []` has no type in ROS: treat it as not set
        for name, given in overrides.items():
            if name in PARAMETERS:  # YAML reads the word `off` as false, and 1 as a whole number
                overrides[name] = rclpy.Parameter(name, value=PARAMETERS[name].check(given.value))
        self._declared: set[str] = set()  # robots
        for parameter in PARAMETERS.values():
            node.declare_parameter(parameter.name, parameter.default, _descriptor(parameter))
        names = self.robots()
        self.declare_robots(names)
        absent: dict[str, list[str]] = {}
        for name, override in overrides.items():
            robot, _, option = name.rpartition('.')
            if name.startswith(_QOS):
                if option in _QOS_PARAMETERS:
                    _QOS_PARAMETERS[option].check(override.value, name)
                continue
            if node.has_parameter(name):
                continue
            if option not in ROBOT_PARAMETERS or not robot:
                near = difflib.get_close_matches(name, PARAMETERS, n=1)
                raise ValueError(
                    f'there is no parameter {name!r}'
                    + (f' (did you mean {near[0]!r}?)' if near else '')
                    + f'. Parameters: {", ".join(PARAMETERS)}'
                )
            if _is_set(override.value):
                absent.setdefault(robot, []).append(option)
        for robot, options in absent.items():
            node.get_logger().warning(
                f'{robot!r} is not among the robots yet: its {", ".join(options)} will be used when it is'
            )
        self.model()
        for robot in names:
            _check_watches(robot, self.robot(robot))
        if hasattr(node, 'add_pre_set_parameters_callback'):  # rclpy has it since Iron
            node.add_pre_set_parameters_callback(_in_declared_types)

    def declare_robots(self, names: list[str]) -> None:
        """Declare the parameters of these robots, unless they are declared already."""
        for robot in names:
            if robot and robot not in self._declared:
                self._declared.add(robot)
                self._declare_robot(robot)

    def _declare_robot(self, robot: str) -> None:
        node = self._node
        for name, descriptor in _of_robot().items():
            own = f'{robot}.{name}'
            if own in node._parameters:
                continue
            if own in node._parameter_overrides:
                node.declare_parameter(own, None, descriptor)
            else:
                # What declare_parameter does, without a check and an event for each: those of one robot would
                # take longer than all the rest of it.
                node._descriptors[own], node._parameters[own] = descriptor, RosParameter(own)

    def check_change(self, name: str, value: Any, state: NodeState) -> None:
        """Check whether a parameter may be changed now.

        Args:
            name: Its name.
            value: Its new value, None to delete it.
            state: The node's state.

        Raises:
            ValueError: It may not.
        """
        if value is None and self._node.has_parameter(name):
            raise ValueError(
                f'{name} cannot be deleted, it could not be set again: set it to null, and the robot does as '
                'the node'
            )
        known = PARAMETERS.get(name) or ROBOT_PARAMETERS.get(name.rpartition('.')[2])
        if (
            known is not None
            and not known.live
            and state != NodeState.UNCONFIGURED
            and value != self._node.get_parameter(name).value
        ):
            raise ValueError(
                f'{name} takes effect when the model is loaded, and the node is {state}: deactivate it '
                'and clean it up first (ros2 lifecycle set), then set it and configure again'
            )

    def forget_robots(self, names: list[str]) -> None:
        """Remove the parameters of all other robots: their options, and the QoS of their topics."""
        for robot in self._declared.difference(names):
            topics = f'{self._node.get_namespace()}/{robot}/{self._node.get_name()}/'.replace('//', '/')
            beginnings = (f'{robot}.', f'{_QOS}{topics}')
            # Not undeclare_parameter: rclpy declares QoS as read-only, and so refuses to undeclare it.
            for name in [name for name in list(self._node._parameters) if name.startswith(beginnings)]:
                self._node._parameters.pop(name, None)
                self._node._descriptors.pop(name, None)
            self._declared.discard(robot)

    def unused_qos(self) -> list[str]:
        """Return the `qos_overrides` that belong to no open topic or to no policy."""
        return [
            name
            for name in self._node._parameter_overrides
            if name.startswith(_QOS) and not self._node.has_parameter(name)
        ]

    def robots(self) -> list[str]:
        """Return the names in `robots`, [''] if the node serves only itself."""
        return robot_names(list(self._node.get_parameter('robots').value or []))

    def values(self, changed: dict | None = None) -> dict:
        """Return the node's parameters, checked.

        Args:
            changed: Values to use instead of the current ones.

        Raises:
            ValueError: A value is not valid.
        """
        return {
            name: parameter.check((changed or {}).get(name, self._node.get_parameter(name).value))
            for name, parameter in PARAMETERS.items()
        }

    def node(self) -> NodeConfig:
        """Return what the node serves and keeps. ValueError for a value that is not valid, here and below."""
        return node_config(self.values())

    def model(self, changed: dict | None = None) -> ModelConfig:
        """Return which model to open, with `changed` applied."""
        return model_config(self.values(changed))

    def engine(self) -> EngineConfig:
        """Return how robots share the model."""
        return engine_config(self.values())

    @property
    def watch_share(self) -> float:
        """The share of the model's time that standing questions may take."""
        return self._node.get_parameter('watch_share').value

    def robot(self, robot: str, changed: dict | None = None) -> RobotOptions:
        """Return a robot's options: its own, else the node's."""
        return self._robot(robot, self.values(changed), changed or {})

    def changed_robots(self, names: list[str], changed: dict) -> dict[str, RobotOptions]:
        """Return the options of the robots that a change of parameters affects."""
        asked_for = {'watches_file', 'cameras'} & {name.rpartition('.')[2] for name in changed}
        concerned = {name.rpartition('.')[0] for name in changed}  # '' stands for the node's own
        values = self.values(changed)
        options = {
            robot: self._robot(robot, values, changed)
            for robot in names
            if '' in concerned or robot in concerned
        }
        for robot, each in options.items() if asked_for else ():
            _check_watches(robot, each)
        return options

    def _robot(self, robot: str, values: dict, changed: dict) -> RobotOptions:
        values = dict(values)
        for name, parameter in ROBOT_PARAMETERS.items() if robot else ():
            own = f'{robot}.{name}'
            value = (
                changed[own]
                if own in changed
                else self._node.get_parameter(own).value
                if self._node.has_parameter(own)
                else None
            )
            if _is_set(value):
                values[name] = parameter.check(value, own)
        return with_form(robot_options(values), files=True)


def _in_declared_types(parameters: list[RosParameter]) -> list[RosParameter]:
    """Return parameters that are set in their types: `ros2 param set` reads `off` as false, and 1 as a whole
    number.
    """
    return [_in_declared_type(parameter) for parameter in parameters]


def _in_declared_type(parameter: RosParameter) -> RosParameter:
    name, value = parameter.name, parameter.value
    known = PARAMETERS.get(name) or ROBOT_PARAMETERS.get(name.rpartition('.')[2])
    if known is None or value is None:
        return parameter
    chosen = known.option.chosen(value)
    if type(known.default) is float and type(chosen) is int:
        chosen = float(chosen)
    return parameter if type(chosen) is type(value) else RosParameter(name, value=chosen)


def _is_set(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and value in _NOT_SET)


@functools.cache
def _of_robot() -> dict[str, ParameterDescriptor]:
    """The descriptors of a robot's own parameters."""
    return {
        name: ParameterDescriptor(
            description=f'{parameter.text}. Of this robot only; not set, or null: as {name}',
            dynamic_typing=True,
        )
        for name, parameter in ROBOT_PARAMETERS.items()
    }


def _check_watches(robot: str, options: RobotOptions) -> None:
    """Refuse a file of standing questions that is not valid, while someone hears it."""
    if options.watches_file:
        read_watches(options.watches_file, options.camera_topics(robot))


def _descriptor(parameter: Parameter) -> ParameterDescriptor:
    choices = ', '.join(choice or '(empty)' for choice in parameter.choices)
    allowed = f' One of: {choices}.' if choices else ''
    when = '' if parameter.live else ' Read when the model is loaded.'
    descriptor = ParameterDescriptor(description=f'{parameter.text}.{allowed}{when}')
    if type(parameter.default) is int:
        descriptor.integer_range = [IntegerRange(from_value=parameter.low, to_value=parameter.high, step=1)]
    elif type(parameter.default) is float:
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=parameter.low, to_value=parameter.high, step=0.0)
        ]
    return descriptor
