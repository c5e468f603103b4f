"""JSON Schemas of Python types, above all dataclasses, and values of these types made from parsed JSON."""

from __future__ import annotations

import enum
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ros2_nanochat.errors import one_line

_PLAIN = {bool: 'boolean', int: 'integer', float: 'number', str: 'string', type(None): 'null'}


def pydantic_schema(cls: type) -> tuple[dict, Callable[[Any], Any]] | None:
    """Return the JSON Schema of a pydantic model or dataclass, and what makes an instance of parsed JSON.

    Returns:
        Both, or None for other classes.

    Raises:
        ValueError: A field has no JSON Schema.
    """
    pydantic = sys.modules.get('pydantic')  # such a class exists only if this was imported
    if pydantic is None:
        return None
    is_model = issubclass(cls, pydantic.BaseModel)
    if not is_model and not pydantic.dataclasses.is_pydantic_dataclass(cls):
        return None
    try:
        adapter = pydantic.TypeAdapter(cls)
        return adapter.json_schema(), adapter.validate_python
    except Exception as error:  # pydantic has its own errors for fields without a schema
        raise ValueError(f'response_format={cls.__name__} is not valid: {one_line(error)}') from error


def dataclass_schema(cls: type) -> dict:
    """Return the JSON Schema of a dataclass.

    Fields without a default are required. Supported types: bool, int, float, str, None, lists, tuples, dicts
    with text keys, Literal, Enum, unions of these, and other dataclasses (not recursive ones).

    Raises:
        ValueError: A field has a type without a schema; the message names it.
    """
    return _of_dataclass(cls, ())


def type_schema(hint: Any, where: str) -> dict:
    """Return the JSON Schema of a type.

    Types are those of `dataclass_schema`. In `Annotated[type, ...]`, a dict is added to the schema, a text is
    its description, and limits in the style of `annotated_types` and pydantic (`ge`, `gt`, `le`, `lt`,
    `min_length`, `max_length`, `multiple_of`) are its limits.

    Args:
        hint: The type.
        where: What has this type, for the message.

    Raises:
        ValueError: The type has no schema; the message names it.
    """
    return _of_type(hint, where, ())


def convert_value(hint: Any, value: Any) -> Any:
    """Make a value of a type from parsed JSON that conforms to its schema."""
    return _value(hint, value)


def _of_dataclass(cls: type, outer: tuple[type, ...]) -> dict:
    if cls in outer:
        raise ValueError(f'response_format={outer[0].__name__} is not valid: {cls.__name__} holds itself')
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except Exception as error:  # a name that is known only where the class was defined, for example
        raise ValueError(
            f'response_format={cls.__name__} is not valid: its types cannot be read: {one_line(error)}'
        ) from error
    properties = {}
    for field in fields(cls):
        if field.init:
            properties[field.name] = _of_type(
                hints[field.name], f'{cls.__name__}.{field.name}', (*outer, cls)
            )
    required = [
        field.name
        for field in fields(cls)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    ]
    for name, parameter in inspect.signature(cls).parameters.items():
        if name not in properties and parameter.default is inspect.Parameter.empty:
            raise ValueError(f'response_format: {cls.__name__}.{name} is no field and has no default')
    return {'type': 'object', 'properties': properties, 'required': required, 'additionalProperties': False}


def _of_type(hint: Any, where: str, outer: tuple[type, ...]) -> dict:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _of_annotated(arguments[0], hint.__metadata__, where, outer)
    if hint in _PLAIN:
        return {'type': _PLAIN[hint]}
    if origin is Literal:
        return {'enum': list(arguments)}
    if origin in (Union, types.UnionType):
        return {'anyOf': [_of_type(argument, where, outer) for argument in arguments]}
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        items = [_of_type(argument, where, outer) for argument in arguments]
        return {'type': 'array', 'prefixItems': items, 'items': False, 'minItems': len(items)}
    if hint == tuple[()]:
        return {'type': 'array', 'maxItems': 0}
    if origin in (list, tuple, Sequence) and arguments:
        return {'type': 'array', 'items': _of_type(arguments[0], where, outer)}
    if origin in (dict, Mapping) and arguments[:1] == (str,):
        return {'type': 'object', 'additionalProperties': _of_type(arguments[1], where, outer)}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return {'enum': [member.value for member in hint]}
    if is_dataclass(hint) and isinstance(hint, type):
        return _of_dataclass(hint, outer)
    raise ValueError(f'response_format: {where} has the type {hint}, which has no JSON Schema here')


_LIMITS = {
    'ge': 'minimum',
    'gt': 'exclusiveMinimum',
    'le': 'maximum',
    'lt': 'exclusiveMaximum',
    'multiple_of': 'multipleOf',
}
_LENGTHS = {'min_length': ('minLength', 'minItems'), 'max_length': ('maxLength', 'maxItems')}


def _of_annotated(hint: Any, metadata: Sequence[Any], where: str, outer: tuple[type, ...]) -> dict:
    schema = _of_type(hint, where, outer)
    for item in metadata:
        if isinstance(item, Mapping):
            schema.update(item)
        elif isinstance(item, str):
            schema['description'] = item
        else:
            # pydantic's Field keeps its limits in a list of its own
            for limit in (item, *(getattr(item, 'metadata', None) or ())):
                _add_limits(schema, limit)
            if isinstance(text := getattr(item, 'description', None), str):
                schema['description'] = text
    return schema


def _add_limits(schema: dict, limit: Any) -> None:
    for name, keyword in _LIMITS.items():
        if (value := getattr(limit, name, None)) is not None:
            schema[keyword] = value
    for name, (of_text, of_list) in _LENGTHS.items():
        if (value := getattr(limit, name, None)) is not None:
            schema[of_list if schema.get('type') == 'array' else of_text] = value


def make_dataclass(cls: type, data: Any) -> Any:
    """Make an instance of a dataclass from parsed JSON that conforms to its schema."""
    hints = typing.get_type_hints(cls)
    return cls(**{name: _value(hints[name], value) for name, value in data.items()})


def _value(hint: Any, value: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _value(arguments[0], value)
    if origin in (Union, types.UnionType):
        return _value(
            next((argument for argument in arguments if _fits(argument, value)), type(value)), value
        )
    if hint is float and isinstance(value, int):
        return float(value)
    if origin is tuple:
        kinds = arguments if arguments[-1:] != (Ellipsis,) else [arguments[0]] * len(value)
        return tuple(_value(kind, item) for kind, item in zip(kinds, value))
    if origin in (list, Sequence):
        return [_value(arguments[0], item) for item in value]
    if origin in (dict, Mapping):
        return {key: _value(arguments[1], item) for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if is_dataclass(hint) and isinstance(hint, type):
        return make_dataclass(hint, value)
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a parsed value matches one type of a union."""
    if get_origin(hint) is Annotated:
        return _fits(get_args(hint)[0], value)
    if hint in _PLAIN:
        return type(value) is hint or (hint is float and type(value) is int)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    if is_dataclass(hint) and isinstance(hint, type):
        names = {field.name for field in fields(hint)}
        needed = {f.name for f in fields(hint) if f.default is MISSING and f.default_factory is MISSING}
        return isinstance(value, dict) and needed <= set(value) <= names
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    return isinstance(value, dict if get_origin(hint) in (dict, Mapping) else list)
