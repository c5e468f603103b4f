"""ROS messages as values for JSON, bounded in size. Knows no message type."""

from __future__ import annotations

import math
from typing import Any

from ros2_nanochat.files import valid_text

MAX_TEXT = 200_000
"""Characters of a text; the rest is cut off."""
MAX_ITEMS = 500
"""Items of an array; the rest is cut off."""


def to_value(message: Any) -> Any:
    """Return a message as dictionaries, lists, texts and numbers.

    Times and durations become seconds, numbers that JSON lacks become None, and a binary field becomes its
    length.

    Args:
        message: A ROS message, or the value of a field.
    """
    if isinstance(message, str):
        return _bounded(message)
    if message is None or isinstance(message, (bool, int)):
        return message
    if isinstance(message, float):
        return message if math.isfinite(message) else None
    if isinstance(message, (bytes, bytearray)):
        return int(message[0]) if len(message) == 1 else len(message)
    fields = getattr(message, 'get_fields_and_field_types', None)
    if fields is None:
        return _items(message)
    names = list(fields())
    if names in (['sec', 'nanosec'], ['sec', 'nanosec_']):
        return message.sec + message.nanosec * 1e-9
    return {name: to_value(getattr(message, name)) for name in names}


def _bounded(text: str) -> str:
    return valid_text(text[:MAX_TEXT])  # a socket cannot send surrogates


def _items(values: Any) -> Any:
    try:
        listed = list(values[:MAX_ITEMS])
    except TypeError:
        return _bounded(str(values))
    return [to_value(value.item() if hasattr(value, 'item') else value) for value in listed]
