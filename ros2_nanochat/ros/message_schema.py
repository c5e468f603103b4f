"""ROS types as forms of answers: the JSON Schema of a message type, and messages made of JSON that obeys it.

Any installed type will do; there is no list of types. A std_msgs/Header may be left out, and its stamp is set
by whoever publishes the message.
"""

from __future__ import annotations

import copy
import importlib
import json
import re
from collections.abc import Mapping
from typing import Any

from ament_index_python import has_resource
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

from ros2_nanochat.answer.response_format import ResponseFormat, read_response_format, schema_format
from ros2_nanochat.errors import shorten

MAX_EXACT = 2**53
"""Integers of 64 bits are held to what every reader of JSON knows exactly (RFC 7493, section 2.2)."""

MAX_FLOAT = 1e15
"""Size of floating-point numbers, which keeps them finite in each width and short when written out."""

_TYPE_NAME = re.compile(r'([a-z]\w*)/(?:(msg|srv|action)/)?([A-Z]\w*)')
_UNSIGNED = {'uint8': 8, 'uint16': 16, 'uint32': 32, 'char': 8, 'octet': 8}
_SIGNED = {'int8': 8, 'int16': 16, 'int32': 32}
_HEADER, _TIMES = 'std_msgs/Header', ('builtin_interfaces/Time', 'builtin_interfaces/Duration')
_NARROWING = (
    'minimum',
    'maximum',
    'enum',
    'const',
    'minLength',
    'maxLength',
    'pattern',
    'minItems',
    'maxItems',
)


def read_format(value: Any, files: bool = False) -> ResponseFormat | None:
    """Read a form as `answer.read_response_format` does, and ROS types as well.

    Args:
        value: Also the name of a message type, a message class, or a dict
            `{'ros_type': ..., 'fields': {'linear.x': {'minimum': -0.3, 'maximum': 0.3}}}`, or that as JSON.
        files: Whether a text may name a file.

    Raises:
        ValueError: The form or type is unknown or malformed; one line.
    """
    fields: Any = None
    if isinstance(value, str) and value.lstrip().startswith('{') and '"ros_type"' in value:
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f'response_format is no JSON: {error}') from error
    if isinstance(value, Mapping) and 'ros_type' in value:
        unknown = set(value) - {'ros_type', 'fields'}
        if unknown:
            raise ValueError(f'response_format has no {min(unknown)!r} beside "ros_type": only "fields"')
        value, fields = value['ros_type'], value.get('fields')
    if is_message_type(value):
        return message_format(value, fields)
    if isinstance(value, str) and _TYPE_NAME.fullmatch(value.strip()):
        return message_format(message_type(value.strip()), fields)
    if fields is not None:
        raise ValueError(f'response_format: ros_type={shorten(repr(value))} is no message type')
    return read_response_format(value, files)


def is_message_type(value: Any) -> bool:
    """Whether a value is the Python class of a ROS message type."""
    return isinstance(value, type) and isinstance(getattr(value, 'SLOT_TYPES', None), tuple)


def message_type(name: str) -> Any:
    """The class of `package/msg/Type` or `package/Type`. ValueError if it is not installed."""
    match = _TYPE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f'{shorten(name)!r} is no ROS type: package/msg/Type')
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


def message_format(cls: Any, fields: Any = None) -> ResponseFormat:
    """The form of answers that become messages of a type.

    Args:
        cls: The class of the message type.
        fields: What narrows single fields: from a path such as `linear.x` to keywords of JSON Schema
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
            _narrow(schema, cls, str(path), limits)
    return schema_format(schema, lambda data: to_message(cls, data))


def message_schema(cls: Any, outer: tuple[type, ...] = ()) -> dict:
    """The JSON Schema (draft 2020-12) of a message type: all its fields, those without a default required."""
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


def type_name(cls: Any) -> str:
    """`package/Type` of a message class."""
    return f'{cls.__module__.partition(".")[0]}/{cls.__name__}'


def _is_header(slot: Any) -> bool:
    return isinstance(slot, NamespacedType) and '/'.join((slot.namespaces[0], slot.name)) == _HEADER


def _class_of(slot: NamespacedType) -> type:
    return getattr(importlib.import_module('.'.join(slot.namespaces)), slot.name)


def _of_slot(slot: Any, where: str) -> dict:
    if isinstance(slot, BasicType):
        return _of_basic(slot.typename, where)
    if isinstance(slot, (BoundedString, BoundedWString)):
        return {'type': 'string', 'maxLength': slot.maximum_size}
    if isinstance(slot, (AbstractString, AbstractWString)):
        return {'type': 'string'}
    if isinstance(slot, NamespacedType):
        return message_schema(_class_of(slot))
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


def _narrow(schema: dict, cls: Any, path: str, limits: Any) -> None:
    """Set further limits on the field at a path; `[]` behind a name goes to the items of an array."""
    where, node, owner = f'response_format: fields[{path!r}]', schema, cls
    parent, last = schema['properties'], ''
    for part in path.split('.'):
        name = part.removesuffix('[]')
        properties = node.get('properties', {})
        if name not in properties:
            raise ValueError(f'{where} is no field: {owner.__name__} has {", ".join(properties) or "none"}')
        slot = dict(zip(owner.get_fields_and_field_types(), owner.SLOT_TYPES))[name]
        properties[name] = node = copy.deepcopy(properties[name])
        parent, last, declared_in = properties, name, owner
        if part.endswith('[]'):
            if 'items' not in node:
                raise ValueError(f'{where}: {name} is no array')
            parent, last, node, slot = node, 'items', node['items'], slot.value_type
        elif isinstance(slot, (Array, AbstractSequence)):
            slot = None
        owner = _class_of(slot) if isinstance(slot, NamespacedType) else owner
    if not isinstance(limits, Mapping):
        raise ValueError(f'{where}={shorten(repr(limits))} is not valid: an object such as {{"minimum": 0}}')
    limits = dict(limits)
    if limits.pop('constants', False):
        limits['enum'] = constants_of(declared_in, path.split('.')[-1].removesuffix('[]'), where)
    for keyword, value in limits.items():
        if keyword not in _NARROWING:
            raise ValueError(f'{where} has no {keyword!r}: one of {", ".join(_NARROWING)}, constants')
        if _is_wider(node, keyword, value, where):
            raise ValueError(
                f'{where}: {keyword}={shorten(repr(value))} is wider than the type: {_bounds(node)}'
            )
    if 'enum' in limits or 'const' in limits:
        node = {key: limits[key] for key in ('enum', 'const') if key in limits}
    else:
        node = {**node, **limits}
    parent[last] = node


def _is_wider(node: dict, keyword: str, value: Any, where: str) -> bool:
    """Whether a limit allows what the type does not hold."""
    if keyword in ('enum', 'const'):
        values = value if keyword == 'enum' and isinstance(value, (list, tuple)) else [value]
        return any(not _holds(node, item) for item in values)
    if keyword == 'pattern':
        return not isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f'{where}: {keyword}={shorten(repr(value))} is no number')
    if keyword.startswith('min'):
        return value < node.get(keyword, value)
    return value > node.get(keyword, value)


def _holds(node: dict, value: Any) -> bool:
    """Whether a field of plain type can hold a value."""
    kind = node.get('type')
    if kind == 'boolean' or isinstance(value, bool):
        return kind == 'boolean' and isinstance(value, bool)
    if kind == 'string':
        return isinstance(value, str) and len(value) <= node.get('maxLength', len(value))
    number = isinstance(value, int) or (kind == 'number' and isinstance(value, float))
    return kind in ('integer', 'number') and number and node['minimum'] <= value <= node['maximum']


def _bounds(node: dict) -> str:
    return ', '.join(f'{key} {node[key]}' for key in ('type', *_NARROWING) if key in node)


def constants_of(cls: Any, field: str, where: str = 'response_format') -> list:
    """The values of the constants that a type declares for one of its fields.

    A constant belongs to the field whose name it begins with, in capital letters; without such a name, to the
    only field of its kind.
    """
    metaclass = type(cls)
    declared = getattr(metaclass, f'_{metaclass.__name__}__constants', {})
    prefix = f'{field.upper()}_'
    values = [value for name, value in declared.items() if name.startswith(prefix)]
    if not values:
        values = [value for name, value in declared.items() if not _names_another_field(cls, name, field)]
    values = [value[0] if isinstance(value, bytes) else value for value in dict.fromkeys(values)]
    if not values:
        raise ValueError(f'{where}: {cls.__name__} declares no constants for {field!r}')
    return values


def _names_another_field(cls: Any, constant: str, field: str) -> bool:
    return any(
        name != field and constant.startswith(f'{name.upper()}_') for name in cls.get_fields_and_field_types()
    )


def to_message(cls: Any, data: Mapping) -> Any:
    """A message of parsed JSON that obeys the schema of its type; what is left out keeps its default."""
    message = cls()
    slots = dict(zip(cls.get_fields_and_field_types(), cls.SLOT_TYPES))
    for name, value in data.items():
        setattr(message, name, _to_value(slots[name], value))
    return message


def _to_value(slot: Any, value: Any) -> Any:
    if isinstance(slot, NamespacedType):
        return to_message(_class_of(slot), value)
    if isinstance(slot, (Array, AbstractSequence)):
        return [_to_value(slot.value_type, item) for item in value]
    if isinstance(slot, BasicType):
        if slot.typename in ('float', 'double'):
            return float(value)
        if slot.typename == 'octet':
            return bytes([value])
    return value
