"""Finds the classes of ROS message types by name."""

from __future__ import annotations

import importlib
import re
from typing import Any

from ament_index_python import has_resource
from rosidl_parser.definition import NamespacedType

from ros2_nanochat.errors import shorten

TYPE_NAME = re.compile(r'([a-z]\w*)/(?:(msg|srv|action)/)?([A-Z]\w*)')


def is_message_type(value: Any) -> bool:
    """Whether a value is the Python class of a ROS message type."""
    return isinstance(value, type) and isinstance(getattr(value, 'SLOT_TYPES', None), tuple)


def message_type(name: str) -> Any:
    """Return the class of `package/msg/Type` or `package/Type`.

    Raises:
        ValueError: It is not installed.
    """
    match = TYPE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f'{shorten(name)!r} is not a ROS type: package/msg/Type')
    package, kind, type_name = match[1], match[2] or 'msg', match[3]
    if not has_resource('rosidl_interfaces', package):
        raise ValueError(
            f'the ROS type {name!r} is not there: no package {package!r} in the sourced workspace'
        )
    try:
        found = getattr(importlib.import_module(f'{package}.{kind}'), type_name, None)
    except ImportError as error:
        raise ValueError(f'the ROS type {name!r} is not there: {package} has no {kind} types') from error
    if not is_message_type(found):
        raise ValueError(f'the ROS type {name!r} is not there: {package} has no {kind} type {type_name!r}')
    return found


def type_name(cls: Any) -> str:
    """Return `package/Type` of a message class."""
    return f'{cls.__module__.partition(".")[0]}/{cls.__name__}'


def class_of(slot: NamespacedType) -> type:
    """Return the class of a field's type."""
    return getattr(importlib.import_module('.'.join(slot.namespaces)), slot.name)
