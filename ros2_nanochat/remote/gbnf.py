"""Regular expressions and choices as GBNF grammars, for llama.cpp, which takes no regular expressions.

GBNF: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

if sys.version_info >= (3, 11):
    from re import _constants as constants
    from re import _parser as parser
else:
    import sre_constants as constants
    import sre_parse as parser

_CATEGORIES = {
    constants.CATEGORY_DIGIT: '0-9',
    constants.CATEGORY_WORD: '0-9A-Za-z_',
    constants.CATEGORY_SPACE: ' \\t\\n\\r',
}


def from_choice(alternatives: Sequence[str]) -> str:
    """Return the grammar of a few texts."""
    return 'root ::= ' + ' | '.join(_literal(text) for text in alternatives)


def from_regex(pattern: str) -> str:
    """Return the grammar of all texts that a regular expression matches completely.

    Raises:
        ValueError: The expression uses something that has no equivalent.
    """
    try:
        tree = parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f'the regular expression is not understood: {error}') from None
    return 'root ::= ' + _sequence(tree)


def _sequence(tree: Any) -> str:
    return ' '.join(part for part in (_part(*node) for node in tree) if part) or '""'


def _part(operation: Any, value: Any) -> str:
    if operation is constants.LITERAL:
        return _literal(chr(value))
    if operation is constants.NOT_LITERAL:
        return f'[^{_in_class(value)}]'
    if operation is constants.ANY:
        return '[^\\n]'
    if operation is constants.IN:
        return _class(value)
    if operation is constants.BRANCH:
        return '(' + ' | '.join(_sequence(branch) for branch in value[1]) + ')'
    if operation is constants.SUBPATTERN:
        return f'({_sequence(value[-1])})'
    if operation in (constants.MAX_REPEAT, constants.MIN_REPEAT):
        low, high, inner = value
        upper = '' if high == constants.MAXREPEAT else str(high)
        return f'({_sequence(inner)}){{{low},{upper}}}'
    if operation is constants.AT and value in (
        constants.AT_BEGINNING,
        constants.AT_END,
        constants.AT_BEGINNING_STRING,
        constants.AT_END_STRING,
    ):
        return ''
    raise ValueError(f'the regular expression uses {str(operation).lower()}, which this server cannot follow')


def _class(items: Any) -> str:
    text, negated = '', ''
    for operation, value in items:
        if operation is constants.NEGATE:
            negated = '^'
        elif operation is constants.LITERAL:
            text += _in_class(value)
        elif operation is constants.RANGE:
            text += f'{_in_class(value[0])}-{_in_class(value[1])}'
        elif operation is constants.CATEGORY and value in _CATEGORIES:
            text += _CATEGORIES[value]
        else:
            raise ValueError(
                f'the regular expression uses {str(value).lower()}, which this server cannot follow'
            )
    return f'[{negated}{text}]'


def _in_class(code: int) -> str:
    character = chr(code)
    return f'\\{character}' if character in '\\]' else _escaped(code, '-^[')


def _literal(text: str) -> str:
    return '"' + ''.join(_escaped(ord(char), '"\\') for char in text) + '"'


def _escaped(code: int, special: str) -> str:
    character = chr(code)
    if character in special or not character.isprintable():
        return f'\\x{code:02X}' if code < 256 else f'\\u{code:04X}' if code < 1 << 16 else f'\\U{code:08X}'
    return character
