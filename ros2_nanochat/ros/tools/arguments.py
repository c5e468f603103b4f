"""The arguments of a ROS tool: their JSON Schema from the interface, narrowed by the tools file, and the
message that a call's arguments make.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ros2_nanochat.errors import shown
from ros2_nanochat.robot.tool_entries import ToolEntry
from ros2_nanochat.robot.tool_policy import ToolKind
from ros2_nanochat.ros.field_limits import narrow
from ros2_nanochat.ros.message_schema import message_schema, to_message
from ros2_nanochat.ros.tools.comments import comments_of

_OWN = ('description',)  # keys of an argument that are no limits


@dataclass
class Arguments:
    """The arguments of one tool.

    Attributes:
        cls: The message class that they fill.
        schema: The JSON Schema of what the model writes.
        fixed: Values that the file sets with `const`: by their path.
        unlimited: Paths of numbers that the file does not limit.
        about: What the interface file says about the type.
    """

    cls: Any
    schema: dict
    fixed: dict[str, Any] = field(default_factory=dict)
    unlimited: list[str] = field(default_factory=list)
    about: str = ''

    def message(self, arguments: Mapping[str, Any]) -> Any:
        """Return the message of a call."""
        message = to_message(self.cls, arguments)
        for path, value in self.fixed.items():
            *outer, name = path.split('.')
            owner = message
            for part in outer:
                owner = getattr(owner, part)
            current = getattr(owner, name)
            setattr(owner, name, float(value) if isinstance(current, float) else value)
        return message


def arguments_of(entry: ToolEntry, cls: Any) -> Arguments:
    """Return the arguments of a tool.

    Args:
        entry: The tool.
        cls: The message class that they fill.

    Raises:
        ValueError: The file names a field or limit that is not valid for the type.
    """
    where = f'{entry.where}.arguments'
    try:
        schema = message_schema(cls)
    except ValueError as error:
        raise ValueError(f'{entry.where}: {_reason(error)}') from None
    made = Arguments(cls, schema)
    limited = set()
    for path, given in entry.arguments.items():
        limits = {key: value for key, value in given.items() if key not in _OWN}
        try:
            narrow(schema, cls, path, limits)
        except ValueError as error:
            raise ValueError(f'{where}.{path}: {_reason(error)}') from None
        node = _at(schema, path)
        if 'description' in given:
            if not isinstance(given['description'], str):
                raise ValueError(f'{where}.{path}.description: text, not {shown(given["description"])}')
            node['description'] = given['description']
        if {'minimum', 'maximum'} <= limits.keys():
            limited.add(path)
        if 'const' in limits and '[]' not in path:
            made.fixed[path] = limits['const']
    if entry.kind is ToolKind.PUBLISH and entry.arguments:
        _keep(schema, [path for path in entry.arguments if path not in made.fixed])
    for path in made.fixed:
        _drop(schema, path)
    _describe(schema, entry, cls, made)
    made.unlimited = [path for path in numbers_of(schema) if path not in limited]
    return made


def _reason(error: Exception) -> str:
    """The text of an error about a form, without its beginning."""
    text = str(error).removeprefix('response_format: ')
    return re.sub(r"""^fields\[(['"]).*?\1\]:? ?""", '', text)


def _parts(path: str) -> list[str]:
    return path.replace('[]', '.[]').split('.')


def _at(schema: dict, path: str) -> dict:
    for part in _parts(path):
        schema = schema['items'] if part == '[]' else schema['properties'][part]
    return schema


def _keep(schema: dict, paths: list[str]) -> None:
    """Remove all fields but these from a schema: they keep their defaults."""
    firsts = {path.split('.')[0].removesuffix('[]') for path in paths}
    for name in [name for name in schema.get('properties', {}) if name not in firsts]:
        _remove(schema, name)
    for name in firsts:
        rest = [path.partition('.')[2] for path in paths if path.split('.')[0] == name]
        if rest and all(rest) and schema['properties'][name].get('type') == 'object':
            _keep(schema['properties'][name], rest)


def _drop(schema: dict, path: str) -> None:
    """Remove one field from a schema, and the objects that are empty then."""
    owners, parts = [schema], path.split('.')
    for part in parts[:-1]:
        owner = owners[-1].get('properties', {}).get(part)
        if owner is None:
            return
        owners.append(owner)
    for owner, part in zip(reversed(owners), reversed(parts)):
        _remove(owner, part)
        if owner['properties']:
            return


def _remove(schema: dict, name: str) -> None:
    schema['properties'].pop(name, None)
    schema['required'] = [other for other in schema['required'] if other != name]


def _describe(schema: dict, entry: ToolEntry, cls: Any, made: Arguments) -> None:
    """Add what the interface file says, unless the tools file says something."""
    package, _, rest = cls.__module__.partition('.')
    folder = rest.split('.')[0]
    name = cls.__name__.removesuffix('_Request').removesuffix('_Goal') if folder != 'msg' else cls.__name__
    made.about, fields = comments_of(package, folder, name)
    for field_name, text in fields.items():
        if field_name in schema['properties']:
            schema['properties'][field_name].setdefault('description', text)


def numbers_of(schema: dict, path: str = '') -> Iterator[str]:
    """The paths of all numbers of a schema that are not listed one by one."""
    if 'properties' in schema:
        for name, node in schema['properties'].items():
            yield from numbers_of(node, f'{path}.{name}'.lstrip('.'))
    elif 'items' in schema:
        yield from numbers_of(schema['items'], f'{path}[]')
    elif schema.get('type') in ('number', 'integer'):
        yield path
