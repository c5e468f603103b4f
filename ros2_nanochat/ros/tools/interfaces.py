"""Finds the interface of a tool: by the type in the tools file, or as the running system declares it."""

from __future__ import annotations

import importlib
from typing import Any

from ament_index_python import has_resource
from rclpy.action import get_action_names_and_types

from ros2_nanochat.errors import shorten
from ros2_nanochat.robot.tool_policy import ToolKind
from ros2_nanochat.ros.message_types import TYPE_NAME

_FOLDERS = {
    ToolKind.SERVICE: 'srv',
    ToolKind.ACTION: 'action',
    ToolKind.PUBLISH: 'msg',
    ToolKind.READ: 'msg',
}


def interface_class(name: str, kind: ToolKind, where: str) -> Any:
    """Return the class of a service, action or message type.

    Args:
        name: `package/srv/Type`, or `package/Type`.
        kind: What it is used for.
        where: Beginning of the error message.

    Raises:
        ValueError: It is not the name of such a type, or not installed.
    """
    folder = _FOLDERS[kind]
    match = TYPE_NAME.fullmatch(name)
    if match is None or match[2] not in (None, folder):
        raise ValueError(f'{where}.type: {shorten(name)!r} is not valid: package/{folder}/Type')
    package, type_name = match[1], match[3]
    if not has_resource('rosidl_interfaces', package):
        raise ValueError(
            f'{where}.type: {name!r} is not there: no package {package!r} in the sourced workspace'
        )
    try:
        found = getattr(importlib.import_module(f'{package}.{folder}'), type_name, None)
    except ImportError:
        found = None
    if found is None:
        raise ValueError(f'{where}.type: {name!r} is not there: {package} has no {folder} type {type_name!r}')
    return found


def declared_type(node: Any, target: str, kind: ToolKind, where: str) -> str:
    """Return the type that the running system declares for a name, '' if nobody does.

    Args:
        node: The node.
        target: Name of the service, action or topic.
        kind: What it is.
        where: Beginning of the error message.

    Raises:
        ValueError: There are several types.
    """
    if kind is ToolKind.SERVICE:
        full, listed = node.resolve_service_name(target), node.get_service_names_and_types()
    elif kind is ToolKind.ACTION:
        full = node.resolve_service_name(f'{target}/_action/send_goal').removesuffix('/_action/send_goal')
        listed = get_action_names_and_types(node)
    else:
        full, listed = node.resolve_topic_name(target), node.get_topic_names_and_types()
    types: list[str] = next((types for name, types in listed if name == full), [])
    if len(types) > 1:
        raise ValueError(f'{where}: {full} has several types: {", ".join(types)}; name one as type')
    return types[0] if types else ''


def request_part(cls: Any, kind: ToolKind) -> Any:
    """Return the message class whose fields are the arguments of a tool."""
    return cls.Request if kind is ToolKind.SERVICE else cls.Goal if kind is ToolKind.ACTION else cls
