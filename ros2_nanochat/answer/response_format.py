"""`ResponseFormat`: the form that an answer must have, read from what callers write.

A form is one of

- a choice: `'yes | no | unclear'`, a list of texts, or an Enum whose values are texts;
- a regular expression between slashes: `'/[0-9]{1,3}/'`;
- `'json'`: any JSON object;
- a JSON Schema (draft 2020-12): a dict, or text that begins with `{`; OpenAI's `response_format` dicts;
- a dataclass or a pydantic model, into which the answer is converted;
- a file `*.schema.json`, `*.lark` or `*.gbnf`, only if the caller allows files.
"""

from __future__ import annotations

import enum
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from ros2_nanochat.answer import grammars
from ros2_nanochat.answer.dataclass_schema import dataclass_schema, make_dataclass, pydantic_schema
from ros2_nanochat.errors import one_line, shorten
from ros2_nanochat.files import read_text

MAX_BYTES = 1 << 20
"""Maximum size of a form."""

FORMS = "'yes | no', '/[0-9]+/', 'json', a JSON Schema"
FILES = ('.schema.json', '.lark', '.gbnf')
"""How the names of files with a form end."""

_MESSAGE_NAME = re.compile(r'[a-z]\w*/(msg/)?[A-Z]\w*')


@dataclass(frozen=True)
class ResponseFormat:
    """The form that an answer must have.

    Attributes:
        kind: `choice`, `regex`, `json`, `schema` or `grammar`.
        grammar: The form as an llguidance grammar.
        instruction: What the prompt may say about it, in one or two sentences.
        alternatives: The texts of a choice.
        schema: The JSON Schema of the answer, if it is JSON.
        convert: Turns the parsed JSON into what the caller asked for.
        target: The class that `convert` makes, if the caller gave one.
        source: The language (`regex`, `lark` or `gbnf`) and the text of an expression or grammar.
    """

    kind: str
    grammar: str = field(repr=False)
    instruction: str = ''
    alternatives: tuple[str, ...] = ()
    schema: dict | None = field(default=None, repr=False)
    convert: Callable[[Any], Any] | None = field(default=None, repr=False)
    target: type | None = None
    source: tuple[str, str] = field(default=('', ''), repr=False)

    def parse(self, text: str) -> Any:
        """Turn a complete answer into a value.

        Returns:
            The parsed JSON, or what `convert` makes of it; the text itself for the other kinds.

        Raises:
            ValueError: The text is not JSON, or `convert` does not accept it.
        """
        if self.kind not in ('json', 'schema'):
            return text
        value = json.loads(text)
        try:
            return self.convert(value) if self.convert else value
        except ValueError:
            raise
        except Exception as error:  # whatever the code of a caller's class raises
            name = 'the class' if self.target is None else self.target.__name__
            raise ValueError(f'{name} does not accept the answer: {one_line(error)}') from error


def read_response_format(value: Any, files: bool = False) -> ResponseFormat | None:
    """Read a form from what a caller wrote; see the module.

    Args:
        value: The form, or None or '' for none.
        files: Whether a text may name a file to read the form from.

    Returns:
        The form, or None for free text.

    Raises:
        ValueError: The form is unknown or malformed, or nothing satisfies it. The message is one line.
    """
    if value is None or (isinstance(value, str) and value == ''):
        return None
    if isinstance(value, ResponseFormat):
        return value
    if isinstance(value, str):
        check_size(value)
        return _from_text(value.strip(), files)
    if isinstance(value, Mapping):
        return _from_dict(dict(value))
    if isinstance(value, type):
        return _from_class(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return _choice(list(value))
    raise ValueError(
        f'response_format={shorten(repr(value))} is not valid: {FORMS}, a dataclass or a pydantic model'
    )


def check_size(text: str) -> None:
    """Check a form that was written as text before it is read.

    Raises:
        ValueError: It is too long, or holds half of a surrogate pair, which no text in UTF-8 has.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f'response_format is not valid: {len(text):,} characters, at most {MAX_BYTES:,}')
    _check_characters(text)


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f'response_format is not valid: the character {text[error.start]!r} in'
            f' {shorten(repr(text[max(0, error.start - 20) :]))} is half of a surrogate pair'
        ) from None


def _from_text(text: str, files: bool) -> ResponseFormat | None:
    if text in ('', 'text'):
        return None
    if text == 'json':
        return _any_object()
    if text.startswith('{'):
        return _from_dict(parse_json(text, 'response_format'))
    if len(text) > 2 and text[0] == text[-1] == '/':
        return _regex(text[1:-1])
    if ' | ' in text:
        return _choice([part.strip() for part in f' {text} '.split(' | ')])
    if text.endswith(FILES):
        if not files:
            raise ValueError(
                f'response_format={shorten(repr(text))} is not valid here: a file can be named only as a '
                'parameter or on the command line'
            )
        return _from_file(os.path.expanduser(text))
    if _MESSAGE_NAME.fullmatch(text):
        raise ValueError(f'response_format={text!r} names a ROS type, which needs a sourced ROS 2 workspace')
    raise ValueError(
        f'response_format={shorten(repr(text))} is not valid: {FORMS}, or a file {", ".join(FILES)}'
    )


def _from_file(path: str) -> ResponseFormat | None:
    try:
        if not os.path.isfile(path):
            raise ValueError(f'response_format={shorten(path)!r} is no file')
        if os.path.getsize(path) > MAX_BYTES:
            raise ValueError(f'response_format={shorten(path)!r} is larger than {MAX_BYTES:,} bytes')
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'response_format={shorten(path)!r} cannot be read: {error}') from error
    if path.endswith('.schema.json'):
        return _from_dict(parse_json(text, path))
    name = os.path.basename(path)
    grammar = grammars.from_gbnf(text, name) if path.endswith('.gbnf') else grammars.from_lark(text, name)
    return ResponseFormat('grammar', grammar, source=('gbnf' if path.endswith('.gbnf') else 'lark', text))


def parse_json(text: str, where: str) -> dict:
    """Return the JSON object of a text.

    Args:
        text: The text.
        where: What errors call it.

    Raises:
        ValueError: It is no JSON object. The message is one line.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f'{where} is no JSON: {error.msg} at line {error.lineno}, column {error.colno}'
        ) from error
    except RecursionError:
        raise ValueError(f'{where} is nested too deep') from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f'{where} is not valid: {one_line(error)}') from error
    if not isinstance(data, dict):
        raise ValueError(f'{where} is not valid: a JSON Schema is an object, not {shorten(text)}')
    return data


def _from_dict(data: dict) -> ResponseFormat | None:
    kind = data.get('type')
    if 'ros_type' in data:
        raise ValueError('response_format with "ros_type" needs a sourced ROS 2 workspace')
    if kind == 'text' and len(data) == 1:
        return None
    if kind == 'json_object' and len(data) == 1:
        return _any_object()
    if kind in ('json_object', 'json_schema'):
        # json_object with a schema is llama.cpp's way, and OpenAI's newer API has no inner object
        inner = data.get('json_schema', data)
        schema = inner.get('schema') if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping):
            raise ValueError(
                f'response_format={shorten(repr(data))} has no schema:'
                ' {"type": "json_schema", "json_schema": {"schema": {...}}}, or only {"type": "json_object"}'
            )
        return schema_format(dict(schema))
    return schema_format(data)


def _from_class(value: Any) -> ResponseFormat:
    if issubclass(value, enum.Enum):
        return _choice([member.value for member in value])
    if (found := pydantic_schema(value)) is not None:
        return schema_format(*found, value)
    if is_dataclass(value):
        kind: Any = value
        return schema_format(dataclass_schema(kind), lambda data: make_dataclass(kind, data), kind)
    raise ValueError(
        f'response_format={value.__name__} is not valid: a dataclass, a pydantic model or an Enum of texts'
    )


def schema_format(
    schema: dict, convert: Callable[[Any], Any] | None = None, target: type | None = None
) -> ResponseFormat:
    """Return the form of JSON that conforms to a schema, without white space between its tokens.

    Args:
        schema: The JSON Schema.
        convert: Turns the parsed JSON into what the caller asked for.
        target: The class that `convert` makes.

    Raises:
        ValueError: The schema is malformed, uses a keyword that is not supported, or nothing satisfies it.
    """
    try:
        text = json.dumps(schema, ensure_ascii=False, separators=(',', ':'), allow_nan=False)
    except RecursionError:
        raise ValueError('response_format: the schema is nested too deep') from None
    except (TypeError, ValueError) as error:
        raise ValueError(f'response_format: the schema is no JSON: {error}') from error
    _check_characters(text)
    if len(text) > MAX_BYTES:
        raise ValueError(
            f'response_format is not valid: a schema of {len(text):,} characters, at most {MAX_BYTES:,}'
        )
    instruction = f'Answer only with JSON that follows this JSON Schema: {text}' if len(text) <= 4000 else ''
    return ResponseFormat(
        'schema', grammars.from_schema(text), instruction, schema=schema, convert=convert, target=target
    )


def _any_object() -> ResponseFormat:
    schema = {'type': 'object'}
    grammar = grammars.from_schema(json.dumps(schema))
    return ResponseFormat('json', grammar, 'Answer only with a JSON object.', schema=schema)


def _regex(pattern: str) -> ResponseFormat:
    instruction = f'Answer only with text that matches the regular expression {pattern}'
    instruction = instruction if len(pattern) <= 400 else ''
    return ResponseFormat('regex', grammars.from_regex(pattern), instruction, source=('regex', pattern))


def _choice(texts: list) -> ResponseFormat:
    for text in texts:
        if not isinstance(text, str) or not text.strip() or text != text.strip():
            raise ValueError(
                f'response_format: {shorten(repr(text))} is not valid as one of a choice: a text that '
                'is not empty, without space around it'
            )
    if len(texts) < 2:
        raise ValueError(
            f'response_format={shorten(repr(texts))} is not valid: a choice has at least two alternatives'
        )
    if len(set(texts)) < len(texts):
        twice = Counter(texts).most_common(1)[0][0]
        raise ValueError(f'response_format: {shorten(repr(twice))} stands twice in the choice')
    listed = ', '.join(texts)
    _check_characters(listed)
    if len(listed) > MAX_BYTES:
        raise ValueError(
            f'response_format is not valid: a choice of {len(listed):,} characters, at most {MAX_BYTES:,}'
        )
    instruction = f'Answer only with one of: {listed}' if len(listed) <= 1000 else ''
    return ResponseFormat('choice', grammars.from_choice(texts), instruction, tuple(texts))
