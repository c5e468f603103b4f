"""`Tool`: what a model may call. Its name, what it does, a JSON Schema of its arguments, and a function."""

from __future__ import annotations

import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, get_origin

from ros2_nanochat.answer.dataclass_schema import convert_value, type_schema
from ros2_nanochat.answer.schema_check import check_value, closed
from ros2_nanochat.errors import one_line, shorten

_NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_-]{0,63}')
_SECTION = re.compile(
    r'(args|arguments|parameters|returns?|raises|yields|examples?|notes?|attributes):', re.IGNORECASE
)
_NOTHING: Mapping[str, Any] = types.MappingProxyType({'type': 'object', 'properties': {}})


@dataclass(frozen=True)
class Tool:
    """What a model may call.

    A model can write only calls whose arguments follow `parameters`: unknown names and values out of range
    cannot be produced, and are refused if a server produces them. So put limits into the schema (`minimum`,
    `maximum`, `enum`, `maxLength`).

    Attributes:
        name: A letter or underscore, then up to 63 letters, digits, `_` and `-`.
        description: What it does, for the model. One short sentence is best for a small model.
        parameters: JSON Schema of the arguments: an object. Properties that are not `required` may be left
            out. An object takes no other properties unless it sets `additionalProperties`.
        function: Called with the arguments by name, for `FunctionRunner`. None if another runner runs it.
        timeout: Seconds that one call may take; None uses the runner's limit.

    Raises:
        ValueError: The name or the schema is not valid. The message is one line.
    """

    name: str
    description: str = ''
    parameters: Mapping[str, Any] = field(default_factory=lambda: dict(_NOTHING))
    function: Callable[..., Any] | None = field(default=None, repr=False)
    timeout: float | None = None
    schema: Mapping[str, Any] = field(init=False, repr=False, compare=False)
    """The schema that calls follow: `parameters`, with objects that take no further properties."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f'the name of a tool, {shorten(repr(self.name))}, is not valid: a letter or underscore, then'
                ' up to 63 letters, digits, _ and -'
            )
        if not isinstance(self.description, str):
            raise ValueError(f'tool {self.name}: the description has to be a string')
        schema = self.parameters
        if not isinstance(schema, Mapping) or schema.get('type', 'object') != 'object':
            raise ValueError(
                f'tool {self.name}: parameters has to be the JSON Schema of an object, not'
                f' {shorten(repr(schema))}'
            )
        if not isinstance(schema.get('properties', {}), Mapping):
            raise ValueError(f'tool {self.name}: properties of the parameters has to be a dict')
        try:
            plain = json.loads(json.dumps({**schema}, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f'tool {self.name}: JSON cannot represent the parameters ({one_line(error)})'
            ) from None
        object.__setattr__(self, 'parameters', {'type': 'object', 'properties': {}, **plain})
        object.__setattr__(self, 'schema', closed(self.parameters))
        if self.timeout is not None and not (isinstance(self.timeout, (int, float)) and self.timeout > 0):
            raise ValueError(f'tool {self.name}: timeout={self.timeout!r} is not valid: seconds above 0')

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Any],
        name: str | None = None,
        description: str | None = None,
        timeout: float | None = None,
    ) -> Tool:
        """Make a tool from a function, by its type hints and its docstring.

        The text before `Args:` is the description, and `Args:` (Google style, or `:param name:`) describes
        the arguments. A parameter with a default may be left out. Limits go into the type:
        `Literal['red', 'blue']`, an Enum, or `Annotated[float, {'minimum': 0, 'maximum': 0.3}]`.

        Args:
            function: The function. It may be a coroutine function or a method.
            name: Its name for the model; None uses the function's.
            description: What it does; None uses the docstring.
            timeout: Seconds that one call may take.

        Raises:
            ValueError: A parameter has no type, or a type without a JSON Schema; the message names it.
        """
        called = name or str(getattr(function, '__name__', type(function).__name__))
        summary, details = _read_docstring(inspect.getdoc(function) or '')
        try:
            signature = inspect.signature(function)
            target = function if inspect.isroutine(function) else type(function).__call__
            hints = typing.get_type_hints(target, include_extras=True)
        except (TypeError, ValueError, NameError) as error:
            raise ValueError(f'tool {called}: its parameters cannot be read: {one_line(error)}') from error
        properties: dict[str, Any] = {}
        required = []
        for parameter in signature.parameters.values():
            where = f'parameter {parameter.name} of tool {called}'
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise ValueError(f'{where} cannot be passed by name')
            if parameter.name not in hints:
                raise ValueError(f'{where} has no type: write, for example, {parameter.name}: float')
            schema = type_schema(hints[parameter.name], where)
            if parameter.name in details and 'description' not in schema:
                schema = {**schema, 'description': details[parameter.name]}
            properties[parameter.name] = schema
            if parameter.default is parameter.empty:
                required.append(parameter.name)
        parameters = {'type': 'object', 'properties': properties, 'required': required}
        made = _converting(function, {key: hints[key] for key in properties})
        text = summary if description is None else description
        return cls(called, text, parameters, made, timeout)

    def check(self, arguments: Any) -> None:
        """Check that arguments follow the schema.

        Raises:
            ValueError: They do not; the message says which one, for the model to read.
        """
        try:
            check_value(self.schema, arguments)
        except ValueError as error:
            raise ValueError(f'wrong arguments for {self.name}: {error}') from None

    def as_openai(self) -> dict[str, Any]:
        """Return the tool in OpenAI's form, as transformers passes it to chat templates."""
        return {
            'type': 'function',
            'function': {
                'name': self.name,
                'description': self.description,
                'parameters': dict(self.parameters),
            },
        }


def as_tools(tools: Iterable[Any] | None) -> list[Tool]:
    """Return tools as a list of `Tool`.

    Args:
        tools: `Tool`s, functions, and dicts in OpenAI's form (which have no function to run).

    Raises:
        ValueError: One of them is no tool, or two have the same name.
    """
    if isinstance(tools, (str, bytes, Mapping, Tool)) or not isinstance(tools, (Iterable, type(None))):
        raise ValueError(f'tools={shorten(repr(tools))} is not valid: a list of Tools, functions or dicts')
    made = [_as_tool(tool) for tool in tools or ()]
    names = [tool.name for tool in made]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f'two tools have the name {name}: the model could not tell them apart')
    return made


def _as_tool(tool: Any) -> Tool:
    if isinstance(tool, Tool):
        return tool
    if isinstance(tool, Mapping):
        inner = tool.get('function', tool)
        if isinstance(inner, Mapping) and 'name' in inner:
            parameters = inner.get('parameters') or dict(_NOTHING)
            return Tool(inner['name'], inner.get('description') or '', parameters)
    elif callable(tool):
        return Tool.from_function(tool)
    raise ValueError(
        f'{shorten(repr(tool))} is no tool: pass a Tool, a function, or a dict with "name", "description" and'
        ' "parameters"'
    )


def _converting(function: Callable[..., Any], hints: Mapping[str, Any]) -> Callable[..., Any]:
    """A function that takes parsed JSON: enums, dataclasses and the like are made of it."""
    if all(_is_plain(hint) for hint in hints.values()):
        return function

    @functools.wraps(function)
    def call(**arguments):
        return function(**{name: convert_value(hints[name], value) for name, value in arguments.items()})

    return call


def _is_plain(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    return hint in (bool, int, str, type(None)) or get_origin(hint) is typing.Literal


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The description in a docstring, on one line, and what it says about each parameter."""
    details: dict[str, str] = {}
    summary: list[str] = []
    section, indent, name = '', 0, ''
    for line in text.splitlines():
        stripped = line.strip()
        depth = len(line) - len(line.lstrip())
        field_of = re.match(r':param\s+(?:\S+\s+)*?(\w+):\s*(.*)', stripped)
        if field_of:
            section, name = 'args', field_of[1]
            details[name] = field_of[2]
        elif stripped.startswith(':'):
            section = 'other'
        elif _SECTION.fullmatch(stripped):
            heading = stripped[:-1].lower()
            section, indent, name = ('args' if heading in _ARGUMENTS else 'other'), 0, ''
        elif section == 'args' and stripped:
            match = re.match(r'\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)', stripped)
            indent = indent or depth
            if match and depth <= indent:
                name = match[1]
                details[name] = match[2]
            elif name:
                details[name] = f'{details[name]} {stripped}'.strip()
        elif not section:
            summary.append(stripped)
    return ' '.join(part for part in summary if part), {key: text for key, text in details.items() if text}


_ARGUMENTS = ('args', 'arguments', 'parameters')
