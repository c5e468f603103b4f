"""Arguments of a call written one by one, not as a JSON object: `<parameter=x>1</parameter>`, `x=1, y=2`.

Texts stand as they are between their marks; other values are JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ros2_nanochat.answer.grammars import regex_literal
from ros2_nanochat.answer.json_arguments import JsonArguments

_KEY = re.compile(r'[\w.-]+')
_WORDS = (('true', 'false', 'null'), ('True', 'False', 'None'))


@dataclass(frozen=True)
class KeyedArguments:
    """Arguments one by one. Without arguments, nothing is written.

    Attributes:
        open: The text before the first name.
        colon: The text between a name and its value.
        between: The text between a value and the next name.
        close: The text after the last value.
        text_open: The text before a value that is a text.
        text_close: The text after it.
        is_json_text: A text is written as JSON.
        words: How true, false and nothing are written.
        nested: How lists and objects are written.
    """

    open: str
    colon: str
    between: str
    close: str
    text_open: str = ''
    text_close: str = ''
    is_json_text: bool = False
    words: tuple[str, str, str] = _WORDS[0]
    nested: JsonArguments = JsonArguments()

    @property
    def literals(self) -> tuple[str, ...]:
        """All texts around names and values."""
        return self.open, self.colon, self.between, self.close, self.text_open, self.text_close

    @property
    def _shared(self) -> str:
        """What follows a value in any case."""
        return os.path.commonprefix([self.between, self.close])

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""
        items = [f'{key}{self.colon}{self._value(value)}' for key, value in arguments.items()]
        return f'{self.open}{self.between.join(items)}{self.close}' if items else ''

    def _value(self, value: Any) -> str:
        if isinstance(value, str):
            inner = json.dumps(value, ensure_ascii=False) if self.is_json_text else value
            return f'{self.text_open}{inner}{self.text_close}'
        if value is None or isinstance(value, bool):
            return self.words[2 if value is None else int(not value)]
        return json.dumps(
            value, ensure_ascii=self.nested.ascii, separators=(self.nested.between, self.nested.colon)
        )

    # --- reading ---

    def read(self, text: str, at: int, schema: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Read arguments; see `ArgumentSyntax`."""
        kinds = schema.get('properties', {})
        found: dict[str, Any] = {}
        if not text.startswith(self.open, at) or not self._key_at(text, at + len(self.open), kinds):
            return found, at
        at += len(self.open)
        while True:
            key = self._key_at(text, at, kinds)
            if not key:
                raise ValueError(f'{text[at : at + 40]!r} stands where an argument has to stand')
            found[key], at = self._read_value(text, at + len(key + self.colon), kinds.get(key, {}))
            if text.startswith(self.between, at) and self._key_at(text, at + len(self.between), kinds):
                at += len(self.between)
            elif text.startswith(self.close, at):
                return found, at + len(self.close)
            else:
                raise ValueError(f'{text[at : at + 40]!r} stands after an argument')

    def _key_at(self, text: str, at: int, kinds: Mapping[str, Any]) -> str:
        """The name of the argument at a place, '' if there is none."""
        known = next((key for key in kinds if text.startswith(key + self.colon, at)), '')
        match = _KEY.match(text, at)
        unknown = match[0] if match is not None and text.startswith(self.colon, match.end()) else ''
        return known or unknown

    def _read_value(self, text: str, at: int, schema: Mapping[str, Any]) -> tuple[Any, int]:
        as_text = _is_text(schema) if not self.text_open or self.is_json_text else False
        if not self.is_json_text and (as_text or (self.text_open and text.startswith(self.text_open, at))):
            start = at + len(self.text_open)
            end = text.find(self.text_close + self._shared, start)
            if end < 0:
                raise ValueError('the end of a text is missing')
            return text[start:end], end + len(self.text_close)
        for word, value in zip(self.words, (True, False, None)):
            if text.startswith(word, at):
                return value, at + len(word)
        if self.text_open and text.startswith(self.text_open, at):
            at += len(self.text_open)
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except RecursionError:
            raise ValueError('the arguments are nested too deep') from None
        return value, end + (len(self.text_close) if isinstance(value, str) else 0)

    # --- grammar ---

    def lark(self, rule: str, schema: Mapping[str, Any], literal: Any) -> list[str]:
        """Return the rules of arguments; see `ArgumentSyntax`."""
        properties = list(schema.get('properties', {}).items())
        needed = [name in schema.get('required', ()) for name, _ in properties]
        definitions = {key: schema[key] for key in ('$defs', 'definitions') if key in schema}
        between, close = (text[len(self._shared) :] for text in (self.between, self.close))
        lines: list[str] = []

        def ways(first: int, before: str, last: str) -> str:
            """What may come from a property on; `before` stands before each item."""
            options = []
            for n in range(first, len(properties)):
                options.append(f'{literal(before)} {rule}_i{n} {rule}_r{n + 1}')
                if needed[n]:
                    return ' | '.join(options)
            return ' | '.join([*options, last])

        lines.append(f'{rule}: {ways(0, self.open, literal(""))}')
        for n, (name, kind) in enumerate(properties):
            lines.append(f'{rule}_r{n + 1}: {ways(n + 1, between, literal(close))}')
            lines += self._item(f'{rule}_i{n}', name, {**kind, **definitions}, literal)
        return lines

    def _item(self, rule: str, name: str, schema: Mapping[str, Any], literal: Any) -> list[str]:
        """The rules of one argument, with what follows its value in any case."""
        begin, after = literal(name + self.colon), self._shared
        if not _is_text(schema):
            value = self.nested.lark_json(schema)
            if schema.get('type') == 'boolean' and self.words != _WORDS[0]:
                value = f'("{self.words[0]}" | "{self.words[1]}" | "true" | "false")'
            return [f'{rule}: {begin} {rule}v {literal(after)}', f'{rule}v: {value}']
        begin = literal(name + self.colon + self.text_open)
        if self.is_json_text:
            end = literal(self.text_close + after)
            return [f'{rule}: {begin} {rule}v {end}', f'{rule}v: {self.nested.lark_json(schema)}']
        end = self.text_close + after
        options = schema.get('enum') or ([schema['const']] if 'const' in schema else None)
        if options:
            listed = ' | '.join(literal(option) for option in options)
            return [f'{rule}: {begin} ({listed}) {literal(end)}']
        pattern = _text_pattern(schema)
        closing = literal(end)
        if closing.startswith('<['):  # a special token: no text can contain it
            return [f'{rule}: {begin} {rule}v {closing}', f'{rule}v: /{pattern}/']
        first, rest = _first_literal(closing)
        lazy = f'{rule}v[lazy]: /{pattern}{regex_literal(first)}/'
        return [f'{rule}: {begin} {rule}v {rest}'.rstrip(), lazy]


def _is_text(schema: Mapping[str, Any]) -> bool:
    options = schema.get('enum') or ([schema['const']] if 'const' in schema else [])
    return schema.get('type') == 'string' or bool(options and all(isinstance(o, str) for o in options))


def _text_pattern(schema: Mapping[str, Any]) -> str:
    if 'pattern' in schema:
        pattern = schema['pattern'].replace('/', r'\/')
        before = '' if pattern.startswith('^') else '(?s:.*)'
        after = '' if pattern.endswith('$') else '(?s:.*)'
        return f'{before}({pattern.removeprefix("^").removesuffix("$")}){after}'
    low, high = schema.get('minLength', 0), schema.get('maxLength', '')
    return f'(?s:.{{{low},{high}}})' if low or high != '' else '(?s:.*)'


def _first_literal(closing: str) -> tuple[str, str]:
    """The text of the first literal of a sequence in Lark's syntax, and the rest of the sequence."""
    text, end = json.JSONDecoder().raw_decode(closing)
    return text, closing[end:].strip()


def learn_keyed_arguments(
    render: Callable[[Mapping[str, Any]], str], name: str, keys: Sequence[str], values: Sequence[str]
) -> tuple[KeyedArguments, int, int] | None:
    """Return how a template writes arguments one by one.

    Args:
        render: Returns the text of a call of one tool with these arguments.
        name: The name of the tool.
        keys: Two names of arguments.
        values: Two texts.

    Returns:
        The syntax, and from where to where it stands in the text of the call with the first argument; None if
        the template does not write arguments like this.
    """
    one, two = render({keys[0]: values[0]}), render({keys[0]: values[0], keys[1]: values[1]})
    none, number = render({}), render({keys[0]: 7351})
    pieces = _around(one, name, keys[0], values[0])
    plain = _around(number, name, keys[0], '7351')
    if pieces is None or plain is None or keys[1] not in two or values[0] not in two or name not in none:
        return None
    start, opening, middle, rest = pieces
    _, _, colon, after = plain
    if not middle.startswith(colon) or not rest.endswith(after):
        return None
    text_open, text_close = middle[len(colon) :], rest[: len(rest) - len(after)]
    between = two[two.index(values[0]) + len(values[0]) : two.rindex(keys[1])]
    if not between.startswith(text_close):
        return None
    between = between[len(text_close) :]
    empty = none[none.index(name) + len(name) :]
    shared = len(os.path.commonprefix([opening, empty]))
    while shared >= 0 and not (after.endswith(empty[shared:]) and _ends_outside_tags(opening[:shared])):
        shared -= 1
    if shared < 0:
        return None
    close = after[: len(after) - len(empty[shared:])]
    at = start + shared
    is_json = text_open[-1:] == text_close[:1] == '"'  # some templates do not escape what they write there
    if is_json:
        text_open, text_close = text_open[:-1], text_close[1:]
    elif not (text_close or os.path.commonprefix([between, close])):
        return None  # nothing tells where a text ends
    true = _around(render({keys[0]: True}), name, keys[0], '')
    words = next((words for words in _WORDS if true is not None and words[0] in true[3]), _WORDS[0])
    nested = _nested(render({keys[0]: [1, {'x': 'y'}]}))
    syntax = KeyedArguments(
        opening[shared:], colon, between, close, text_open, text_close, is_json, words, nested
    )
    return syntax, at, at + len(syntax.write({keys[0]: values[0]}))


def _ends_outside_tags(text: str) -> bool:
    """Whether a text ends inside no `<...>`, which may be a single token."""
    return text.rfind('<') <= text.rfind('>')


def _around(text: str, name: str, key: str, value: str) -> tuple[int, str, str, str] | None:
    """Where the name ends, and the texts between name and key, key and value, and after the value."""
    start = text.find(name)
    at = text.find(key, start + len(name))
    to = text.find(value, at + len(key))
    if start < 0 or at < 0 or to < 0:
        return None
    start += len(name)
    return start, text[start:at], text[at + len(key) : to], text[to + len(value) :]


def _nested(text: str) -> JsonArguments:
    for between, colon in ((', ', ': '), (',', ':'), (', ', ':'), (',', ': ')):
        if json.dumps([1, {'x': 'y'}], separators=(between, colon)) in text:
            return JsonArguments(between, colon)
    return JsonArguments()
