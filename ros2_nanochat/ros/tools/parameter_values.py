"""Values of parameters of other nodes, as JSON and back."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue

from ros2_nanochat.ros.tools.values import to_data

_FIELDS = {
    ParameterType.PARAMETER_BOOL: 'bool_value',
    ParameterType.PARAMETER_INTEGER: 'integer_value',
    ParameterType.PARAMETER_DOUBLE: 'double_value',
    ParameterType.PARAMETER_STRING: 'string_value',
    ParameterType.PARAMETER_BYTE_ARRAY: 'byte_array_value',
    ParameterType.PARAMETER_BOOL_ARRAY: 'bool_array_value',
    ParameterType.PARAMETER_INTEGER_ARRAY: 'integer_array_value',
    ParameterType.PARAMETER_DOUBLE_ARRAY: 'double_array_value',
    ParameterType.PARAMETER_STRING_ARRAY: 'string_array_value',
}
_KINDS: dict[str, tuple[int, type]] = {
    'boolean': (ParameterType.PARAMETER_BOOL, bool),
    'integer': (ParameterType.PARAMETER_INTEGER, int),
    'number': (ParameterType.PARAMETER_DOUBLE, float),
    'string': (ParameterType.PARAMETER_STRING, str),
}


def value_of(value: ParameterValue) -> Any:
    """Return a value as JSON gives it.

    Raises:
        KeyError: The parameter is not set.
    """
    name = _FIELDS[value.type]
    return to_data(value, [name])[name]


def parameter_of(name: str, kind: str, value: Any) -> Parameter:
    """Return the message that sets a parameter.

    Args:
        name: The parameter.
        kind: `boolean`, `integer`, `number` or `string`.
        value: Its value.
    """
    number, cls = _KINDS[kind]
    made = ParameterValue(type=number)
    setattr(made, _FIELDS[number], cls(value))
    return Parameter(name=name, value=made)
