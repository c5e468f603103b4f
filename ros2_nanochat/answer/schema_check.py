"""Checks values against JSON Schemas, for what was not constrained while it was written, such as calls of a
model on a server.

Supports the keywords that `grammars.from_schema` accepts. A schema that uses others is refused there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ros2_nanochat.errors import shown

_DEPTH = 64
_KINDS = {
    'object': lambda value: isinstance(value, Mapping),
    'array': lambda value: isinstance(value, (list, tuple)),
    'string': lambda value: isinstance(value, str),
    'boolean': lambda value: isinstance(value, bool),
    'null': lambda value: value is None,
    'integer': lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
    'number': lambda value: _is_number(value),
}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def closed(schema: Any) -> Any:
    """Return a schema in which objects take only the properties that they name, unless they say otherwise."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ('properties', '$defs', 'definitions') and isinstance(value, Mapping):
            made[key] = {name: closed(each) for name, each in value.items()}
        elif key in ('enum', 'const', 'default', 'examples'):
            made[key] = value
        else:
            made[key] = closed(value)
    if 'properties' in made and 'additionalProperties' not in made:
        made['additionalProperties'] = False
    return made


def check_value(schema: Any, value: Any) -> None:
    """Check a value.

    Args:
        schema: The JSON Schema.
        value: Parsed JSON.

    Raises:
        ValueError: The value does not follow the schema. The message names the place and the value.
    """
    _Check(schema).run(schema, value, '', 0)


class _Check:
    def __init__(self, root: Any):
        self._root = root

    def run(self, schema: Any, value: Any, where: str, depth: int) -> None:
        if depth > _DEPTH:
            raise ValueError(f'{where or "the value"} is nested too deep')
        if schema is True or schema == {}:
            return
        if schema is False:
            raise ValueError(f'{where or "the value"} is not taken')
        if '$ref' in schema:
            self.run(self._resolve(schema['$ref']), value, where, depth + 1)
        self._check_kind(schema, value, where)
        for item in schema.get('allOf', ()):
            self.run(item, value, where, depth + 1)
        for keyword in ('anyOf', 'oneOf'):
            if keyword in schema and not any(self._fits(s, value, where, depth) for s in schema[keyword]):
                raise ValueError(f'{where or "the value"} cannot be {shown(value, 80)}')
        if _is_number(value):
            _check_number(schema, value, where)
        elif isinstance(value, str):
            _check_text(schema, value, where)
        elif isinstance(value, Mapping):
            self._check_object(schema, value, where, depth)
        elif isinstance(value, (list, tuple)):
            self._check_list(schema, value, where, depth)

    def _fits(self, schema: Any, value: Any, where: str, depth: int) -> bool:
        try:
            self.run(schema, value, where, depth + 1)
        except ValueError:
            return False
        return True

    def _resolve(self, reference: str) -> Any:
        found = self._root
        for part in reference.lstrip('#').strip('/').split('/'):
            if part:
                found = found[part.replace('~1', '/').replace('~0', '~')]
        return found

    @staticmethod
    def _check_kind(schema: Mapping, value: Any, where: str) -> None:
        kinds = schema.get('type')
        if kinds is not None:
            kinds = [kinds] if isinstance(kinds, str) else kinds
            if not any(_KINDS[kind](value) for kind in kinds):
                wanted = ' or '.join(kinds)
                raise ValueError(f'{where or "the value"} has to be {wanted}, not {shown(value, 80)}')
        if 'enum' in schema and not any(_same(value, each) for each in schema['enum']):
            listed = ', '.join(shown(each, 40) for each in schema['enum'][:20])
            raise ValueError(f'{where or "the value"} has to be one of {listed}, not {shown(value, 80)}')
        if 'const' in schema and not _same(value, schema['const']):
            raise ValueError(
                f'{where or "the value"} has to be {shown(schema["const"])}, not {shown(value, 80)}'
            )

    def _check_object(self, schema: Mapping, value: Mapping, where: str, depth: int) -> None:
        properties = schema.get('properties', {})
        for name in schema.get('required', ()):
            if name not in value:
                raise ValueError(f'{where + ": " if where else ""}{name} is missing')
        more = schema.get('additionalProperties', True)
        patterns = schema.get('patternProperties', {})
        for name, each in value.items():
            place = f'{where}.{name}' if where else str(name)
            matching = [other for pattern, other in patterns.items() if re.search(pattern, name)]
            if name in properties:
                self.run(properties[name], each, place, depth + 1)
            elif not matching:
                if more is False:
                    raise ValueError(f'there is no {shown(place, 80)}; there is: {", ".join(properties)}')
                self.run(more, each, place, depth + 1)
            for other in matching:
                self.run(other, each, place, depth + 1)
        _check_count(schema, 'Properties', len(value), where)

    def _check_list(self, schema: Mapping, value: Any, where: str, depth: int) -> None:
        first = schema.get('prefixItems', ())
        rest = schema.get('items', True)
        for n, each in enumerate(value):
            self.run(first[n] if n < len(first) else rest, each, f'{where}[{n}]', depth + 1)
        _check_count(schema, 'Items', len(value), where)


def _same(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal: true is not 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _check_number(schema: Mapping, value: float, where: str) -> None:
    place = where or 'the value'
    low, high = schema.get('minimum'), schema.get('maximum')
    above, below = schema.get('exclusiveMinimum'), schema.get('exclusiveMaximum')
    step = schema.get('multipleOf')
    if low is not None and value < low:
        raise ValueError(f'{place} has to be at least {low}, not {value}')
    if high is not None and value > high:
        raise ValueError(f'{place} has to be at most {high}, not {value}')
    if above is not None and value <= above:
        raise ValueError(f'{place} has to be above {above}, not {value}')
    if below is not None and value >= below:
        raise ValueError(f'{place} has to be below {below}, not {value}')
    if step and not _is_multiple(value, step):
        raise ValueError(f'{place} has to be a multiple of {step}, not {value}')


def _is_multiple(value: float, step: float) -> bool:
    try:
        return abs(value / step - round(value / step)) <= 1e-9
    except OverflowError:  # JSON has integers of any size
        return Fraction(value) % Fraction(str(step)) == 0


def _check_text(schema: Mapping, value: str, where: str) -> None:
    _check_count(schema, 'Length', len(value), where)
    if 'pattern' in schema and not re.search(schema['pattern'], value):
        raise ValueError(
            f'{where or "the value"} has to match {shown(schema["pattern"], 80)}, not {shown(value, 80)}'
        )


def _check_count(schema: Mapping, what: str, count: int, where: str) -> None:
    low, high = schema.get(f'min{what}'), schema.get(f'max{what}')
    unit = {'Items': 'items', 'Length': 'characters', 'Properties': 'properties'}[what]
    if low is not None and count < low:
        raise ValueError(f'{where or "the value"} has to have at least {low} {unit}, not {count}')
    if high is not None and count > high:
        raise ValueError(f'{where or "the value"} has to have at most {high} {unit}, not {count}')
