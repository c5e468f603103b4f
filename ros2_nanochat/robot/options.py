"""The parameters of the node: the declared options in types that ROS supports, and their conversion back to a
`ModelConfig`, an `EngineConfig` and, for each robot, `RobotOptions`.

Knows nothing of rclpy; ros/node_parameters.py declares the parameters. A ROS parameter cannot be None: 0 or
'' stands for it, and its description says what that means.
"""

from __future__ import annotations

import re
from collections import Counter
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
from ros2_nanochat.errors import shown
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
"""Parameters that each robot may override."""

PARAMETERS = {**_parameters(NodeConfig, ModelConfig, EngineConfig), **ROBOT_PARAMETERS}
"""All parameters of the node, by name."""


def robot_names(values: Iterable[str]) -> list[str]:
    """Return the names in the parameter `robots`, `['']` if the node serves only itself.

    Raises:
        ValueError: A name is not a ROS name, or appears twice.
    """
    names = [name.strip('/') for name in values if name.strip('/')]
    for name in names:
        if not _ROBOT_NAME.match(name):
            raise ValueError(
                f'robots: {shown(name)} is not valid: a ROS name of letters, digits and _ that starts with'
                f' a letter'
            )
        if name in PARAMETERS:
            raise ValueError(f'robots: {name!r} is not valid: a parameter has this name')
    twice = {name for name, count in Counter(names).items() if count > 1}
    if twice:
        raise ValueError(f'robots: {shown(min(twice))} appears twice')
    return names or ['']


def node_config(values: Mapping[str, Any]) -> NodeConfig:
    """Return the `NodeConfig` of checked parameter values."""
    return _config(NodeConfig, values)


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """Return the `ModelConfig` of checked parameter values.

    Raises:
        ValueError: A value is not valid for the model.
    """
    # At least two, so that a second robot does not evict the first one's conversation with each turn.
    room = min(max(2, len(robot_names(values['robots']))), 8)
    return _config(ModelConfig, values, max_sequences=values['max_sequences'] or room)


def engine_config(values: Mapping[str, Any]) -> EngineConfig:
    """Return the `EngineConfig` of checked parameter values."""
    return _config(EngineConfig, values)


def robot_options(values: Mapping[str, Any]) -> RobotOptions:
    """Return the `RobotOptions` of checked parameter values.

    Raises:
        ValueError: A value is not valid; the text has its name, the value and what is allowed.
    """
    return _config(RobotOptions, values, generation=_config(GenerationConfig, values))


def _config(kind: type[_Config], values: Mapping[str, Any], **more: Any) -> _Config:
    """Build a dataclass from parameter values. An option without a parameter keeps its default."""
    given = {}
    for option in options_of(kind):
        if option.parameter is not None and option.name not in more:
            parameter = PARAMETERS[option.parameter or option.name]
            given[option.name] = parameter.to_option(values[parameter.name])
    return kind(**given, **more)


def goal_options(goal: Any, base: RobotOptions) -> RobotOptions:
    """Return the options of one turn: those that a nanochat/action/Chat goal sets, else the robot's.

    Args:
        goal: The goal.
        base: The robot's options.

    Raises:
        ValueError: A value is not valid; the text has its name, the value and what is allowed.
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
    """Return the fields of a goal that set an option of `kind`."""
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
            value = round(value, 6)  # float32 in the message: 0.9 arrives as 0.8999999761581421
        values[option.name] = value
    return values
