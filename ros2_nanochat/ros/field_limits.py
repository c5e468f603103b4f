"""Limits on single fields of a requested message: narrower than the type, never wider."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from rosidl_parser.definition import AbstractSequence, Array, NamespacedType

from ros2_nanochat.errors import shorten
from ros2_nanochat.ros.message_types import class_of

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


def narrow(schema: dict, cls: Any, path: str, limits: Any) -> None:
    """Restrict the field at a path of a schema.

    Args:
        schema: The JSON Schema of the message; changed in place.
        cls: The message class.
        path: Names of fields, joined by dots. `[]` after a name means the items of an array.
        limits: Keywords of JSON Schema, or `{'constants': True}`.

    Raises:
        ValueError: The path or a keyword is unknown, or a limit is wider than the type.
    """
    where, node, owner = f'response_format: fields[{path!r}]', schema, cls
    parent, last = schema['properties'], ''
    for part in path.split('.'):
        name = part.removesuffix('[]')
        properties = node.get('properties', {})
        if name not in properties:
            raise ValueError(
                f'{where} is not a field: {owner.__name__} has {", ".join(properties) or "none"}'
            )
        slot = dict(zip(owner.get_fields_and_field_types(), owner.SLOT_TYPES))[name]
        properties[name] = node = copy.deepcopy(properties[name])
        parent, last, declared_in = properties, name, owner
        if part.endswith('[]'):
            if 'items' not in node:
                raise ValueError(f'{where}: {name} is no array')
            parent, last, node, slot = node, 'items', node['items'], slot.value_type
        elif isinstance(slot, (Array, AbstractSequence)):
            slot = None
        owner = class_of(slot) if isinstance(slot, NamespacedType) else owner
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
        for least, most in (('minimum', 'maximum'), ('minLength', 'maxLength'), ('minItems', 'maxItems')):
            if least in node and most in node and node[least] > node[most]:
                raise ValueError(f'{where}: {least}={node[least]} is greater than {most}={node[most]}')
    parent[last] = node


def _is_wider(node: dict, keyword: str, value: Any, where: str) -> bool:
    """Whether a limit allows values that the type does not."""
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
    """Return the values of the constants that a type declares for one of its fields.

    A constant belongs to the field whose name it begins with, in capital letters; without such a name, to the
    only field of its kind.

    Args:
        cls: The message class.
        field: Name of the field.
        where: Beginning of the error message.

    Raises:
        ValueError: There are none.
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
