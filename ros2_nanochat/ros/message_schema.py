"""ROS types as forms of answers: the JSON Schema of a message type, and messages from JSON that conforms to
it.

Any installed type works. A std_msgs/Header may be omitted; whoever publishes the message sets its stamp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rosidl_parser.definition import (
    AbstractSequence,
    AbstractString,
    AbstractWString,
    Array,
    BasicType,
    BoundedSequence,
    BoundedString,
    BoundedWString,
    NamespacedType,
)

from ros2_nanochat.answer.response_format import (
    ResponseFormat,
    check_size,
    parse_json,
    read_response_format,
    schema_format,
)
from ros2_nanochat.errors import shorten
from ros2_nanochat.ros.field_limits import narrow
from ros2_nanochat.ros.message_types import TYPE_NAME, class_of, is_message_type, message_type, type_name

MAX_EXACT = 2**53
"""Limit of 64-bit integers, which every JSON reader represents exactly (RFC 7493, section 2.2)."""

MAX_FLOAT = 1e15
"""Limit of floating-point numbers: finite in each width, and short in decimal notation."""

_UNSIGNED = {'uint8': 8, 'uint16': 16, 'uint32': 32, 'char': 8, 'octet': 8}
_SIGNED = {'int8': 8, 'int16': 16, 'int32': 32}
_HEADER, _TIMES = 'std_msgs/Header', ('builtin_interfaces/Time', 'builtin_interfaces/Duration')


def read_format(value: Any, files: bool = False) -> ResponseFormat | None:
    """Read a form like `answer.read_response_format`, and also ROS types.

    Args:
        value: Also the name of a message type, a message class, or a dict
            `{'ros_type': ..., 'fields': {'linear.x': {'minimum': -0.3, 'maximum': 0.3}}}`, or that as JSON.
        files: A text may name a file.

    Returns:
        The form, None for free text.

    Raises:
        ValueError: The form or type is unknown or malformed.
    """
    fields: Any = None
    if isinstance(value, str):
        check_size(value)
    if isinstance(value, str) and value.lstrip().startswith('{') and '"ros_type"' in value:
        value = parse_json(value, 'response_format')
    if isinstance(value, Mapping) and 'ros_type' in value:
        unknown = set(value) - {'ros_type', 'fields'}
        if unknown:
            raise ValueError(f'response_format has no {min(unknown)!r} beside "ros_type": only "fields"')
        value, fields = value['ros_type'], value.get('fields')
    if is_message_type(value):
        return message_format(value, fields)
    if isinstance(value, str) and TYPE_NAME.fullmatch(value.strip()):
        return message_format(message_type(value.strip()), fields)
    if fields is not None:
        raise ValueError(f'response_format: ros_type={shorten(repr(value))} is no message type')
    return read_response_format(value, files)


def message_format(cls: Any, fields: Any = None) -> ResponseFormat:
    """Return the form of answers that become messages of a type.

    Args:
        cls: The message class.
        fields: Restrictions of single fields: from a path such as `linear.x` to keywords of JSON Schema
            (minimum, maximum, enum, const, minLength, maxLength, pattern, minItems, maxItems), or to
            `{'constants': True}` for the values of the constants that the type declares for this field.

    Raises:
        ValueError: A path or keyword is unknown, or a limit is wider than the type.
    """
    schema = message_schema(cls)
    if fields is not None:
        if not isinstance(fields, Mapping):
            raise ValueError(
                f'response_format: fields={shorten(repr(fields))} is not valid: an object of paths'
            )
        for path, limits in fields.items():
            narrow(schema, cls, str(path), limits)
    return schema_format(schema, lambda data: to_message(cls, data), cls)


def message_schema(cls: Any, outer: tuple[type, ...] = ()) -> dict:
    """Return the JSON Schema (draft 2020-12) of a message type. Fields without a default are required."""
    defaults, properties, required = cls(), {}, []
    for name, slot in zip(cls.get_fields_and_field_types(), cls.SLOT_TYPES):
        if name == 'structure_needs_at_least_one_member':
            continue
        default = getattr(defaults, name)
        properties[name] = _of_slot(slot, f'{cls.__name__}.{name}')
        has_default = isinstance(default, (bool, int, float, str)) and bool(default)
        if not has_default and not _is_header(slot):
            required.append(name)
    if type_name(cls) in _TIMES:
        properties['nanosec'] = {'type': 'integer', 'minimum': 0, 'maximum': 999_999_999}
    if type_name(cls) == _HEADER:
        properties, required = {'frame_id': properties['frame_id']}, []
    return {'type': 'object', 'properties': properties, 'required': required, 'additionalProperties': False}


def _is_header(slot: Any) -> bool:
    return isinstance(slot, NamespacedType) and '/'.join((slot.namespaces[0], slot.name)) == _HEADER


def _of_slot(slot: Any, where: str) -> dict:
    if isinstance(slot, BasicType):
        return _of_basic(slot.typename, where)
    if isinstance(slot, (BoundedString, BoundedWString)):
        return {'type': 'string', 'maxLength': slot.maximum_size}
    if isinstance(slot, (AbstractString, AbstractWString)):
        return {'type': 'string'}
    if isinstance(slot, NamespacedType):
        return message_schema(class_of(slot))
    if isinstance(slot, Array):
        return {
            'type': 'array',
            'items': _of_slot(slot.value_type, where),
            'minItems': slot.size,
            'maxItems': slot.size,
        }
    if isinstance(slot, BoundedSequence):
        return {'type': 'array', 'items': _of_slot(slot.value_type, where), 'maxItems': slot.maximum_size}
    if isinstance(slot, AbstractSequence):
        return {'type': 'array', 'items': _of_slot(slot.value_type, where)}
    raise ValueError(f'response_format: {where} has a type that is not supported: {type(slot).__name__}')


def _of_basic(name: str, where: str) -> dict:
    if name == 'boolean':
        return {'type': 'boolean'}
    if name in ('float', 'double'):
        return {'type': 'number', 'minimum': -MAX_FLOAT, 'maximum': MAX_FLOAT}
    if name in _UNSIGNED:
        return {'type': 'integer', 'minimum': 0, 'maximum': 2 ** _UNSIGNED[name] - 1}
    if name in _SIGNED:
        half = 2 ** (_SIGNED[name] - 1)
        return {'type': 'integer', 'minimum': -half, 'maximum': half - 1}
    if name in ('int64', 'uint64'):
        return {'type': 'integer', 'minimum': -MAX_EXACT if name == 'int64' else 0, 'maximum': MAX_EXACT}
    raise ValueError(f'response_format: {where} has a type that is not supported: {name}')


def to_message(cls: Any, data: Mapping) -> Any:
    """Convert parsed JSON that conforms to the type's schema to a message.

    Missing fields keep their defaults.
    """
    message = cls()
    slots = dict(zip(cls.get_fields_and_field_types(), cls.SLOT_TYPES))
    for name, value in data.items():
        setattr(message, name, _to_value(slots[name], value))
    return message


def _to_value(slot: Any, value: Any) -> Any:
    if isinstance(slot, NamespacedType):
        return to_message(class_of(slot), value)
    if isinstance(slot, (Array, AbstractSequence)):
        return [_to_value(slot.value_type, item) for item in value]
    if isinstance(slot, BasicType):
        if slot.typename in ('float', 'double'):
            return float(value)
        if slot.typename == 'octet':
            return bytes([value])
    return value
