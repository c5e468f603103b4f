"""ROS messages as JSON that a model reads: cut to some fields, long arrays and texts shortened."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ros2_nanochat.ros.message_types import is_message_type

_ITEMS = 16  # of an array
_CHARACTERS = 500  # of one text
_DIGITS = 6


def to_data(message: Any, fields: Sequence[str] = ()) -> dict[str, Any]:
    """Return a message as JSON values.

    Args:
        message: The message.
        fields: Paths of the fields to keep, such as `pose.position.x`; () keeps all.
    """
    if not fields:
        return {name: _value(getattr(message, name)) for name in message.get_fields_and_field_types()}
    data: dict[str, Any] = {}
    for path in fields:
        value = message
        for part in path.split('.'):
            value = getattr(value, part)
        data[path] = _value(value)
    return data


def check_fields(cls: Any, fields: Iterable[str], where: str) -> None:
    """Check that a message type has these fields.

    Args:
        cls: The message class.
        fields: Their paths.
        where: Beginning of the error message.

    Raises:
        ValueError: It has not.
    """
    for path in fields:
        value, owner = cls(), cls
        for part in path.split('.'):
            if not is_message_type(type(value)) or part not in value.get_fields_and_field_types():
                names = ', '.join(owner.get_fields_and_field_types())
                raise ValueError(f'{where}.fields: {path!r} is not a field: {owner.__name__} has {names}')
            value = getattr(value, part)
            owner = type(value) if is_message_type(type(value)) else owner


def _value(value: Any) -> Any:
    if is_message_type(type(value)):
        return to_data(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return float(f'{value:.{_DIGITS}g}') if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        return value if len(value) <= _CHARACTERS else value[:_CHARACTERS] + '...'
    if isinstance(value, bytes) and len(value) == 1:  # the type `byte`
        return value[0]
    if hasattr(value, 'tolist') and not isinstance(value, Sequence):  # NumPy: only what is shown
        items, count = value.reshape(-1)[:_ITEMS].tolist(), value.size
    else:
        items, count = list(value[:_ITEMS]), len(value)
    shown = [_value(item) for item in items]
    return shown if count <= _ITEMS else [*shown, f'... {count} items']
