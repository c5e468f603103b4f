"""Reads a tools file: YAML that lists what the model of a robot may use. Nothing else can be called.

Checks names, keys and values; each error is one line with the file and the key. Knows no ROS types.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import Any

from ros2_nanochat.config import options_of
from ros2_nanochat.errors import one_line, shown
from ros2_nanochat.files import decode_text, open_regular
from ros2_nanochat.robot.tool_entries import NO_UNDOING, Example, ServerEntry, ToolEntry, ToolsFile
from ros2_nanochat.robot.tool_policy import ToolKind, ToolLimits, ToolPolicy
from ros2_nanochat.robot.yaml_text import load_yaml

_MOST_BYTES = 1_000_000
_NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_-]{0,63}\Z')
_KEYS = {
    ToolKind.SERVICE: ('type', 'arguments', 'on_cancel', 'background'),
    ToolKind.ACTION: ('type', 'arguments', 'on_cancel', 'background'),
    ToolKind.PUBLISH: ('type', 'arguments', 'on_cancel'),
    ToolKind.READ: ('type', 'fields', 'max_age'),
    ToolKind.PARAMETER: ('name', 'set'),
    ToolKind.OBSERVATIONS: (),
}
_COMMON = ('description', 'confirm', 'timeout', 'rate', 'calls_per_turn', 'on_interrupt', 'dry_run')
_ALL = tuple(dict.fromkeys([*_KEYS, *(key for keys in _KEYS.values() for key in keys), *_COMMON]))
_SCALARS = ('boolean', 'integer', 'number', 'string')
_SETTABLE = ('type', 'minimum', 'maximum', 'enum', 'minLength', 'maxLength', 'pattern', 'description')
_SERVER_KEYS = ('command', 'url', 'env', 'tools')


def read_tools_file(path: str | os.PathLike, robot: str = '') -> ToolsFile:
    """Read a tools file.

    Args:
        path: The file.
        robot: The robot's name, which replaces `{robot}` in the names of services, actions, topics and nodes.

    Raises:
        ValueError: It cannot be read, or something in it is not valid. One line with the file and the key.
    """
    path = os.path.expanduser(os.fspath(path))
    try:
        with open_regular(path) as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f'it has more than {_MOST_BYTES} bytes')
        content = load_yaml(decode_text(data))
    except OSError as error:
        raise ValueError(f'tools_file={path} cannot be read: {error.strerror or error}') from error
    except ValueError as error:
        raise ValueError(f'tools_file={path} is not valid: {one_line(error)}') from error
    return _Reader(path, robot).file(content)


class _Reader:
    """Reads the content of one file for one robot."""

    def __init__(self, path: str, robot: str):
        self._path, self._robot = path, robot

    def file(self, content: Any) -> ToolsFile:
        top = self._mapping(
            content if content is not None else {}, '', ('tools', 'limits', 'mcp', 'examples')
        )
        tools = self._mapping(top.get('tools') or {}, 'tools')
        servers = self._mapping(top.get('mcp') or {}, 'mcp')
        limits = self._mapping(top.get('limits') or {}, 'limits', [o.name for o in options_of(ToolLimits)])
        return ToolsFile(
            self._path,
            tuple(self._tool(name, value) for name, value in tools.items()),
            tuple(self._server(name, value) for name, value in servers.items()),
            self._options(ToolLimits, limits, 'limits'),
            self._examples(top.get('examples') or [], None if servers else tools),
        )

    def _examples(self, value: Any, tools: dict | None) -> tuple[Example, ...]:
        """Read the examples. `tools`: the tools that they may call, None if a server may have others."""
        if not isinstance(value, list):
            raise self._error('examples', f'is not valid: a list, not {shown(value)}')
        examples = []
        for n, item in enumerate(value):
            key = f'examples[{n}]'
            self._mapping(item, key, ('say', 'call', 'arguments', 'answer', 'reply'))
            said, call = (self._text(item, name, key, empty=False) for name in ('say', 'call'))
            if tools is not None and call not in tools:
                raise self._error(f'{key}.call', f'is no tool of this file: {shown(call)}')
            arguments = self._mapping(item.get('arguments') or {}, f'{key}.arguments')
            answer, reply = self._text(item, 'answer', key), self._text(item, 'reply', key)
            examples.append(Example(said, call, arguments, answer, reply, self._where(key)))
        return tuple(examples)

    def _where(self, key: str) -> str:
        return f'tools_file={self._path}: {key}' if key else f'tools_file={self._path}'

    def _error(self, key: str, text: str) -> ValueError:
        return ValueError(f'{self._where(key)} {text}')

    def _mapping(self, value: Any, key: str, known: Any = None) -> dict:
        if not isinstance(value, dict):
            raise self._error(key, f'is not valid: a mapping, not {shown(value)}')
        for name in value if known is not None else ():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f' (did you mean {near[0]!r}?)' if near else ''
                raise self._error(f'{key}.{name}'.lstrip('.'), f'is not known{hint}: {", ".join(known)}')
        return value

    def _options(self, kind: Any, values: dict, key: str) -> Any:
        try:
            return kind(**values)
        except ValueError as error:
            raise ValueError(f'{self._where(key)}.{error}') from None

    def _text(self, values: dict, name: str, key: str, empty: bool = True) -> str:
        value = values.get(name, '')
        if name not in values and not empty:
            raise self._error(f'{key}.{name}', 'is missing')
        if not isinstance(value, str) or not (empty or value.strip()):
            raise self._error(f'{key}.{name}', f'is not valid: text, not {shown(value)}')
        return value.strip()

    def _tool(self, name: str, value: Any) -> ToolEntry:
        key = f'tools.{name}'
        if not _NAME.match(name):
            raise self._error(key, 'is not a valid name: letters, digits, _ and -, at most 64')
        self._mapping(value, key, _ALL)
        kinds = [kind for kind in _KEYS if kind in value]
        if len(kinds) != 1:
            found = 'none of them' if not kinds else ' and '.join(kinds)
            raise self._error(key, f'needs exactly one of {", ".join(_KEYS)}, and has {found}')
        kind = kinds[0]
        self._mapping(value, key, (kind, *_KEYS[kind], *_COMMON))
        watches = self._watches(value[kind], f'{key}.{kind}') if kind is ToolKind.OBSERVATIONS else None
        target = self._name(value, kind, key) if watches is None else ''
        max_age = value.get('max_age')
        if max_age is not None and (type(max_age) not in (int, float) or not 0 < max_age < 1e9):
            raise self._error(f'{key}.max_age', f'is not valid: seconds above 0, not {shown(max_age)}')
        return ToolEntry(
            name,
            kind,
            target,
            self._where(key),
            self._text(value, 'type', key),
            self._text(value, 'description', key) if 'description' in value else None,
            self._settable(value['set'], f'{key}.set')
            if 'set' in value
            else self._arguments(value.get('arguments'), f'{key}.arguments'),
            self._fields(value.get('fields'), f'{key}.fields'),
            max_age,
            self._text(value, 'name', key, empty=kind is not ToolKind.PARAMETER),
            self._on_cancel(value, key, kind),
            self._policy(value, key, kind),
            watches or (),
        )

    def _name(self, values: dict, key_of: str, key: str) -> str:
        """A name of the graph, with the robot's name filled in."""
        name = self._text(values, key_of, key, empty=False)
        return name.replace('{robot}', self._robot).replace('//', '/')

    def _watches(self, value: Any, key: str) -> tuple[str, ...]:
        if value == 'all':
            return ()
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise self._error(key, f'is not valid: all, or a list of standing questions; not {shown(value)}')
        return tuple(value)

    def _settable(self, value: Any, key: str) -> dict:
        """The schema of what a parameter may be set to."""
        self._mapping(value, key, _SETTABLE)
        kind = value.get('type')
        if kind not in _SCALARS:
            raise self._error(f'{key}.type', f'is not valid: {", ".join(_SCALARS)}; not {shown(kind)}')
        for name in ('minimum', 'maximum', 'minLength', 'maxLength'):
            if name in value and type(value[name]) not in (int, float):
                raise self._error(f'{key}.{name}', f'is not valid: a number, not {shown(value[name])}')
        return {'value': value}

    def _arguments(self, value: Any, key: str) -> dict:
        for path, limits in self._mapping({} if value is None else value, key).items():
            self._mapping(limits, f'{key}.{path}')
        return value or {}

    def _fields(self, value: Any, key: str) -> tuple[str, ...]:
        value = [] if value is None else value
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise self._error(key, f'is not valid: a list of field names, not {shown(value)}')
        return tuple(value)

    def _on_cancel(self, value: dict, key: str, kind: ToolKind) -> Any:
        if 'on_cancel' not in value:
            return None
        given = value['on_cancel']
        if given != NO_UNDOING and not isinstance(given, dict):
            raise self._error(
                f'{key}.on_cancel',
                f'is not valid: a message ({{}} for zeros), or {NO_UNDOING}; not {shown(given)}',
            )
        elsewhere = isinstance(given, dict) and ({'publish', 'service'} & given.keys())
        if elsewhere:
            self._mapping(given, f'{key}.on_cancel', ('publish', 'service', 'type', 'values'))
            given = dict(given)
            for name in elsewhere:
                given[name] = self._name(given, name, f'{key}.on_cancel')
            self._text(given, 'type', f'{key}.on_cancel')
            self._mapping(given.get('values') or {}, f'{key}.on_cancel.values')
            if len(elsewhere) > 1:
                raise self._error(f'{key}.on_cancel', 'has publish and service: one of them')
        elif kind is ToolKind.ACTION and given != NO_UNDOING:
            raise self._error(
                f'{key}.on_cancel',
                'needs publish or service: an action is cancelled anyway, this is called in addition',
            )
        return given

    def _policy(self, value: dict, key: str, kind: ToolKind) -> ToolPolicy:
        given = {option.name: value[option.name] for option in options_of(ToolPolicy) if option.name in value}
        confirm = kind.confirms or 'set' in value
        return self._options(ToolPolicy, {'confirm': confirm, 'timeout': kind.timeout, **given}, key)

    def _server(self, name: str, value: Any) -> ServerEntry:
        key = f'mcp.{name}'
        if not _NAME.match(name):
            raise self._error(key, 'is not a valid name: letters, digits, _ and -, at most 64')
        self._mapping(value, key, _SERVER_KEYS)
        if ('command' in value) == ('url' in value):
            raise self._error(key, 'needs command or url, and not both')
        command = value.get('command', [])
        command = [command] if isinstance(command, str) else command
        if not isinstance(command, list) or not all(isinstance(item, str) and item for item in command):
            raise self._error(
                f'{key}.command', f'is not valid: a program and its arguments, not {shown(command)}'
            )
        url = self._text(value, 'url', key, empty='command' in value)
        if 'url' in value and not url.startswith(('http://', 'https://')):
            raise self._error(
                f'{key}.url', f'is not valid: it begins with http:// or https://, not {shown(url)}'
            )
        if 'command' in value and not command:
            raise self._error(f'{key}.command', 'is empty: a program and its arguments')
        env = self._mapping(value.get('env') or {}, f'{key}.env')
        if not all(isinstance(text, str) for text in env.values()):
            raise self._error(f'{key}.env', f'is not valid: texts, not {shown(env)}')
        return ServerEntry(
            name, self._where(key), tuple(command), url, env, self._server_tools(value.get('tools'), key)
        )

    def _server_tools(self, value: Any, key: str) -> dict[str, ToolPolicy] | None:
        if value is None:
            return None
        if isinstance(value, list) and all(isinstance(item, str) and item for item in value):
            value = {name: {} for name in value}
        elif not isinstance(value, dict):
            raise self._error(
                f'{key}.tools', f'is not valid: a list of names, or a mapping; not {shown(value)}'
            )
        policies = {}
        for name, keys in value.items():
            place = f'{key}.tools.{name}'
            keys = self._mapping({} if keys is None else keys, place, (*_COMMON[1:], 'background'))
            policies[name] = self._policy(keys, place, ToolKind.MCP)
        return policies
