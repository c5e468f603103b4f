"""Makes and checks llguidance grammars from regular expressions, choices, JSON Schemas, Lark and GBNF.

Knows no vocabulary. Lark syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. GBNF
syntax: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from ros2_nanochat.errors import one_line, require, shorten

_SPECIAL_IN_REGEX = frozenset('\\.+*?()|[]{}^$#&-~')
_COMPACT = {'whitespace_flexible': False}
"""No white space between the tokens of JSON, so that a small model cannot fill its reply with blanks."""


def library() -> ModuleType:
    """Import llguidance.

    Raises:
        MissingDependency: It is not installed.
    """
    return require('llguidance', 'answer')


def from_regex(pattern: str) -> str:
    """Return the grammar of all texts that a regular expression matches completely.

    Raises:
        ValueError: The expression is malformed, or uses look-around or back-references.
    """
    plain = pattern.removeprefix('^')
    body = plain.removesuffix('$')
    if (len(body) - len(body.rstrip('\\'))) % 2 == 0:  # an even number of backslashes does not escape the $
        plain = body
    if not plain:
        raise ValueError('response_format=// is not valid: the regular expression is empty')
    return _checked(
        library().LLMatcher.grammar_from_regex(plain), f'the regular expression /{shorten(pattern)}/'
    )


def from_choice(alternatives: Sequence[str]) -> str:
    """Return the grammar of a few texts."""
    escaped = '|'.join(
        ''.join('\\' + char if char in _SPECIAL_IN_REGEX else char for char in text) for text in alternatives
    )
    return _checked(library().LLMatcher.grammar_from_regex(escaped), 'the choice')


def from_schema(schema: str) -> str:
    """Return the grammar of JSON without white space that conforms to a JSON Schema.

    Args:
        schema: The schema, as JSON.

    Raises:
        ValueError: The schema is malformed, uses a keyword that is not supported, or nothing satisfies it.
    """
    try:
        grammar = library().LLMatcher.grammar_from_json_schema(schema, overrides=_COMPACT)
    except ValueError as error:  # nested too deep, or with numbers that are too large for the library
        if 'recursion limit' in str(error):
            raise ValueError('response_format: the schema is nested too deep') from None
        raise ValueError(f'response_format: the schema is not valid: {one_line(error)}') from error
    return _checked(grammar, 'the schema')


def from_lark(text: str, name: str) -> str:
    """Return the grammar of a file in Lark's syntax.

    Args:
        text: The contents of the file.
        name: The name of the file, for messages.

    Raises:
        ValueError: The grammar is malformed.
    """
    return _checked(library().LLMatcher.grammar_from_lark(text), name)


def from_gbnf(text: str, name: str) -> str:
    """Return the grammar of a file in GBNF.

    Args:
        text: The contents of the file.
        name: The name of the file, for messages.

    Raises:
        ValueError: The grammar is malformed.
    """
    convert = require('llguidance.gbnf_to_lark', 'answer').gbnf_to_lark
    try:
        lark = convert(_GBNF_PART.sub(_for_converter, text))
    except Exception as error:  # the library may raise anything for a user's file
        raise ValueError(f'response_format: {name} is not a GBNF grammar: {one_line(error)}') from error
    return from_lark(lark, name)


_GBNF_PART = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^]\\])*\]|#[^\n]*|[\w-]+', re.DOTALL)
_GBNF_CODE = re.compile(r'\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|.)', re.DOTALL)


def _for_converter(part: re.Match[str]) -> str:
    """A text, class, comment or name of a GBNF grammar as llguidance's converter takes it: it copies escapes
    that Lark does not have, and shortens others.
    """
    found = part.group()
    if found == 'start':  # the converter's own name of the first rule
        return 'rule-start'
    if found[0] in '"[':
        return _GBNF_CODE.sub(_in_text if found[0] == '"' else _in_class, found)
    return found


def _in_text(escape: re.Match[str]) -> str:
    digits = next(filter(None, escape.groups()), None)
    if digits is None:
        return escape.group() if escape.group()[1] not in '[]' else escape.group()[1]
    return json.dumps(chr(int(digits, 16)), ensure_ascii=False)[1:-1]


def _in_class(escape: re.Match[str]) -> str:
    digits = next(filter(None, escape.groups()), None)
    if digits is None:
        return escape.group()
    code = int(digits, 16)
    return f'\\x{code:02x}' if code < 128 else chr(code)


def check_schema(schema: Mapping[str, Any], what: str) -> None:
    """Check a JSON Schema.

    Args:
        schema: The schema.
        what: What the message calls it.

    Raises:
        ValueError: It is malformed, uses a keyword that is not supported, or nothing satisfies it.
    """
    grammar = library().LLMatcher.grammar_from_json_schema(
        json.dumps(schema, ensure_ascii=False), overrides=_COMPACT
    )
    try:
        _checked(grammar, 'schema')
    except ValueError as error:
        reason = str(error).partition(' is not valid: ')[2]
        raise ValueError(f'{what} are not valid: {reason}') from None


def regex_literal(text: str) -> str:
    """Return a text as part of a regular expression between slashes, in Lark's syntax."""
    named = {'\n': '\\n', '\r': '\\r', '\t': '\\t', '/': '\\/'}
    return ''.join(named.get(char) or ('\\' + char if char in _SPECIAL_IN_REGEX else char) for char in text)


def check_lark(text: str, what: str) -> str:
    """Return a grammar in Lark's syntax that this package made, for llguidance.

    Raises:
        ValueError: It is not valid, or takes too much work.
    """
    return _checked(library().LLMatcher.grammar_from_lark(text), what)


@functools.lru_cache(maxsize=256)
def _checked(grammar: str, what: str) -> str:
    failed, messages = library().LLMatcher.validate_grammar_with_warnings(grammar, limits=limits())
    if failed:
        raise ValueError(f'response_format: {what} is not valid: {_reason(messages[0])}')
    return grammar


def limits():
    """Return the limits on the work and memory of a grammar, for every use of the library."""
    return library().LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _reason(message: str) -> str:
    """The library's message on one line, without its drawing of the position."""
    lines = [line.strip() for line in message.splitlines()]
    kept = [
        line for line in lines if line and line.strip('^ ') and not line[:1].isdigit() and '|' not in line[:4]
    ]
    errors = [line.removeprefix('error: ') for line in kept if line.startswith('error: ')]
    first = lines[0].partition(': ')[2] if lines[0][:3] == 'at ' else lines[0]
    return shorten(errors[0] if errors else first)
