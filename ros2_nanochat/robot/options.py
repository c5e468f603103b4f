"""The parameters of the node: the declared options as ROS can hold them, and the way back to a `ModelConfig`,
an `EngineConfig` and, for each robot, `RobotOptions`.

Knows nothing of rclpy; ros/node_parameters.py declares what stands here. A ROS parameter cannot be none: 0 or
'' stands for it, and its description says what happens then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ros2_nanochat.config import (
    EngineConfig,
    GenerationConfig,
    ModelConfig,
    NodeConfig,
    Options,
    RobotOptions,
    options_of,
)
from ros2_nanochat.robot.parameter import Parameter

_ROBOT_NAME = re.compile(r'[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*\Z')
_Config = TypeVar('_Config', bound=Options)


def _parameters(*classes: type[Options]) -> dict[str, Parameter]:
    made = (
        Parameter.of(option)
        for kind in classes
        for option in options_of(kind)
        if option.parameter is not None
    )
    return {parameter.name: parameter for parameter in made}


ROBOT_PARAMETERS = _parameters(RobotOptions, GenerationConfig)
"""Those that each robot may have of its own."""

PARAMETERS = {**_parameters(NodeConfig, ModelConfig, EngineConfig), **ROBOT_PARAMETERS}
"""All of the node, by name."""


def robot_names(values: Iterable[str]) -> list[str]:
    """The names in the parameter `robots`, `['']` for the node itself.

    Raises:
        ValueError: A name is no ROS name, or stands twice.
    """
    names = [name.strip('/') for name in values if name.strip('/')]
    for name in names:
        if not _ROBOT_NAME.match(name):
            raise ValueError(
                f'robots: {name!r} is not valid: a ROS name of letters, digits and _ that starts with'
                f' a letter'
            )
        if name in PARAMETERS:
            raise ValueError(f'robots: {name!r} is not valid: a parameter has this name')
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f'robots: {min(twice)!r} stands there twice')
    return names or ['']


def node_config(values: Mapping[str, Any]) -> NodeConfig:
    """The `NodeConfig` of checked parameter values."""
    return _config(NodeConfig, values)


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The `ModelConfig` of checked parameter values; ValueError as it says."""
    # Two at least, so that a robot that joins does not evict the other's conversation with each turn.
    room = min(max(2, len(robot_names(values['robots']))), 8)
    return _config(ModelConfig, values, max_sequences=values['max_sequences'] or room)


def engine_config(values: Mapping[str, Any]) -> EngineConfig:
    """The `EngineConfig` of checked parameter values."""
    return _config(EngineConfig, values)


def robot_options(values: Mapping[str, Any]) -> RobotOptions:
    """The `RobotOptions` of checked parameter values.

    Raises:
        ValueError: One line with the name, the value and what is allowed.
    """
    return _config(RobotOptions, values, generation=_config(GenerationConfig, values))


def _config(kind: type[_Config], values: Mapping[str, Any], **more: Any) -> _Config:
    """The dataclass of parameter values; an option that no parameter sets keeps its default."""
    given = {}
    for option in options_of(kind):
        if option.parameter is not None and option.name not in more:
            parameter = PARAMETERS[option.parameter or option.name]
            given[option.name] = parameter.to_option(values[parameter.name])
    return kind(**given, **more)


def goal_options(goal: Any, base: RobotOptions) -> RobotOptions:
    """The options of one turn: those that a nanochat/action/Chat goal sets, and the robot's for the rest.

    Raises:
        ValueError: One of them is wrong; one line with the name, the value and what is allowed.
    """
    generation = _goal_values(goal, GenerationConfig)
    if 'temperature' in generation:
        generation['do_sample'] = generation['temperature'] != 0
    if 'stop_tokens' in generation:
        generation['stop_tokens'] = (*base.generation.stop_tokens, *generation['stop_tokens'])
    return replace(
        base, generation=replace(base.generation, **generation), **_goal_values(goal, RobotOptions)
    )


def _goal_values(goal: Any, kind: type[Options]) -> dict[str, Any]:
    """The fields of a goal that set an option of `kind`."""
    values: dict[str, Any] = {}
    for option in options_of(kind):
        if option.goal is None:
            continue
        value = getattr(goal, option.parameter or option.name)
        if option.keeps(value):
            continue
        if option.kind is tuple:
            value = tuple(text for text in value if text)
        elif option.kind is float:
            value = round(value, 6)  # a float32 on its way: 0.9 came as 0.8999999761581421
        values[option.name] = value
    return values
