"""Function calling as in NanoLLM: the model writes `NAME(arguments)`, and what the function returns goes into
the reply.

Arguments are literals. NanoLLM ran the text of the model as Python; here nothing but the registered function
is called. New programs should use `ChatHistory(tools=[...])` and `ros2_nanochat.tools.chat`, which constrain
the calls.
"""

from __future__ import annotations

import ast
import functools
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ros2_nanochat.answer.tool import Tool
from ros2_nanochat.errors import one_line, shorten, shown

_log = logging.getLogger(__name__)
_PROLOGUE = {
    'python': 'You can call these Python functions. What they return is added to the chat:\n\n',
    'openai': 'You can call these tools: <tools> ',
}
_EPILOGUE = {
    'python': '\n\nFor example, if the user asks for the temperature, call the WEATHER() function.',
    'openai': ' </tools> To call one, write\n<tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>',
}
_TOOL_CALL = r'<tool_call>(.*?)</tool_call>'
_AFTER = 2  # characters that a token may hold after the call


def bot_function(
    func: Callable | None = None, name: str | None = None, docs: str | None = 'pydoc', enabled: bool = True
) -> Callable:
    """Decorator: let the model call a function; see `BotFunctions.register`."""
    if func is None:
        return functools.partial(bot_function, name=name, docs=docs, enabled=enabled)
    return BotFunctions.register(func, name=name, docs=docs, enabled=enabled)


class BotFunction:
    """A registered function, for `generate(functions=...)`: takes the text so far, and returns what the
    function returned if the text ends with a call of it, else None.

    Attributes:
        name: The name that the model writes.
        docs: What the prompt says about it.
        style: `python` or `openai`: how the model calls it.
        enabled: Whether the model may call it.
        function: The function.
    """

    def __init__(self, function: Callable, name: str, docs: str | None, enabled: bool):
        self.__name__ = self.name = name
        self.function = function
        self.enabled = enabled
        self.style = 'openai' if docs is None or docs.startswith('openai') else 'python'
        text = (function.__doc__ or '').strip()
        if self.style == 'openai':
            self.docs = json.dumps(Tool.from_function(function, name).as_openai(), ensure_ascii=False)
        elif docs in ('pydoc', 'python'):
            self.docs = f'`{name}()` - {text}' if text else f'{name}() '
        elif docs in ('nosig', 'pydoc_nosig'):
            self.docs = text
        else:
            self.docs = docs or ''
        self._begin = re.compile(rf'(?<!\w){re.escape(name)}\(')

    def __call__(self, text: str) -> str | None:
        call = self._call_at_the_end(text)
        if call is None:
            return None
        arguments, named = call
        try:
            value = self.function(*arguments, **named)
        except Exception as error:  # the model goes on without the answer
            _log.error('%s failed: %s', self.name, one_line(repr(error)))
            return None
        return value if value is None else str(value)

    def _call_at_the_end(self, text: str) -> tuple[list, dict] | None:
        """The arguments of a call of this function with which the text ends."""
        if ')' not in text[-_AFTER - 1 :]:
            return None
        stop = text.rindex(')') + 1
        for match in reversed(list(self._begin.finditer(text))):
            try:
                return self._arguments(text[match.start() : stop])
            except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
                _log.debug('%s is no call: %s', shorten(text[match.start() : stop]), one_line(error))
        return None

    def _arguments(self, code: str) -> tuple[list, dict]:
        call = ast.parse(code, mode='eval').body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != self.name:
            raise ValueError(f'it is no call of {self.name}')
        if any(keyword.arg is None for keyword in call.keywords):
            raise ValueError('** is not taken')
        arguments = [ast.literal_eval(value) for value in call.args]
        return arguments, {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}


class BotFunctions:
    """The registered functions. `BotFunctions()` is the list of those that are enabled."""

    functions: list[BotFunction] = []
    builtins: list[BotFunction] = []
    """NanoLLM's own functions (weather, location) are not offered."""

    def __new__(cls, all: bool = False, load: bool = True, test: bool = True) -> Any:
        """Return the list of enabled functions; with `all`, of all. `load` and `test` have no effect."""
        return cls.list(all=all)

    def __class_getitem__(cls, index: Any) -> Any:
        return cls.functions[index]

    @classmethod
    def len(cls) -> int:
        """Return the number of registered functions."""
        return len(cls.functions)

    @classmethod
    def list(cls, all: bool = False) -> list[BotFunction]:
        """Return the enabled functions; with `all`, all functions."""
        return [each for each in cls.functions if all or each.enabled]

    @classmethod
    def filter(cls, filters: Iterable[str], mode: str = 'enable') -> Any:
        """Enable or disable (`mode='disable'`) functions by name. Return those that are enabled."""
        for name in filters:
            for function in cls.functions:
                if function.name.lower() == name.lower():
                    function.enabled = mode.startswith('enable')
        return cls.list()

    @classmethod
    def find(cls, name: str, functions: Any = None) -> BotFunction | None:
        """Return one of the given functions by name, None if there is none."""
        return next((each for each in cls._given(functions, True) if each.name == name), None)

    @classmethod
    def _given(cls, functions: Any, all: bool = False) -> Any:
        if functions is None:
            return cls.list(all)
        return functions.values() if isinstance(functions, dict) else functions

    @classmethod
    def run(cls, text: str, template: Any = None, functions: Any = None) -> str | None:
        """Run the calls in a reply and return their results, None if there are none.

        Args:
            text: The reply: with `<tool_call>` and JSON in it, or a call `NAME(arguments)` at its end.
            template: A dict with another pattern of a call as `tool_call`; any other is ignored.
            functions: The functions; None for those that are enabled.

        Returns:
            The result with a space before it, or one JSON object for each call, also of those that fail.
        """
        given = cls._given(functions)
        pattern = template.get('tool_call') if isinstance(template, Mapping) else None
        calls = [match[1] for match in re.finditer(pattern or _TOOL_CALL, text or '', re.DOTALL)]
        if calls:
            answers = [cls._answer(call, given) for call in calls]
            return '\n'.join(answer for answer in answers if answer is not None) or None
        results = [result for each in given if (result := each(text or '')) is not None]
        return ' ' + results[-1] if results else None

    @classmethod
    def _answer(cls, call: str, functions: Any) -> str | None:
        """What a call in JSON returns, as JSON; None if it returns nothing."""
        try:
            asked = json.loads(call)
            name, arguments = asked['name'], asked.get('arguments') or {}
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            return f'Error: {shorten(call)} is no call in JSON ({one_line(error)})'
        function = cls.find(name, functions)
        if function is None or not function.enabled:
            return f'Error: there is no tool named {shown(name)}'
        try:
            value = function.function(**arguments)
        except Exception as error:
            return f'Error: {function.name} failed: {one_line(repr(error))}'
        if value is None:
            return None
        return json.dumps({'name': function.name, 'content': value}, ensure_ascii=False, default=str)

    @classmethod
    def generate_docs(
        cls,
        prologue: Any = True,
        epilogue: Any = True,
        style: str = 'python',
        spec: str | None = None,
        functions: Any = None,
    ) -> str:
        """Return what the system prompt says about functions.

        Args:
            prologue: The text before them; True for the usual one, a false value for none.
            epilogue: The text after them, likewise.
            style: `python`, or `openai` for JSON.
            spec: Another name of `style`.
            functions: The functions; None for those that are enabled.

        Raises:
            ValueError: The style is unknown.
        """
        style, given = spec or style, cls._given(functions)
        if style not in _PROLOGUE:
            raise ValueError(f'style={shorten(repr(style))} is not valid: python or openai')
        before = _PROLOGUE[style] if prologue is True else prologue or ''
        after = _EPILOGUE[style] if epilogue is True else epilogue or ''
        if style == 'python':
            docs = '\n'.join('* ' + each.docs for each in given)
        else:
            docs = '[' + ', '.join(each.docs for each in given if each.style == 'openai') + ']'
        return f'{before}{docs}{after}'

    @classmethod
    def register(
        cls, func: Callable, name: str | None = None, docs: str | None = 'pydoc', enabled: bool = True
    ) -> Callable:
        """Let the model call a function, and return the function.

        Args:
            func: The function. Its docstring tells the model what it does.
            name: The name that the model writes; None uses the function's.
            docs: `pydoc`: the docstring with the name; `nosig`: the docstring; `openai` or None: JSON;
                another text is used as it is.
            enabled: Whether the model may call it.
        """
        made = BotFunction(func, name or func.__name__, docs, enabled)
        cls.functions = [each for each in cls.functions if each.name != made.name] + [made]
        return func

    @classmethod
    def load(cls, test: bool = True) -> Any:
        """Return the registered functions: there are none to load."""
        return cls.functions

    @classmethod
    def test(cls, disable_on_error: bool = True) -> bool:
        """Run each enabled function without arguments. Return whether one failed.

        Args:
            disable_on_error: Disable those that fail.
        """
        failed = False
        for each in cls.list():
            try:
                each.function()
            except Exception as error:
                _log.error('%s failed: %s', each.name, one_line(repr(error)))
                each.enabled, failed = not disable_on_error, True
        return failed
