"""`CallForm`: what the model may write when it may call tools, as a grammar.

Text is free until the opening of a call. From there on, the name is one of the tools and the arguments follow
its schema, in the format of the model. Knows no vocabulary and no template.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ros2_nanochat.answer import grammars
from ros2_nanochat.answer.call_format import CallFormat, Part, Slot
from ros2_nanochat.answer.schema_check import check_value
from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.errors import shorten

CHOICES = ('auto', 'required', 'none')
"""Values of `tool_choice`, apart from the name of a tool."""
MOST_CALLS = 8
"""Calls that one reply may have."""


class CallableTool(Protocol):
    """What a form needs of a tool; see `answer.tool.Tool`."""

    @property
    def name(self) -> str: ...

    @property
    def schema(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class CallForm:
    """What a reply may look like with tools.

    Attributes:
        format: How the model writes calls.
        schemas: The closed JSON Schema of the arguments, by the names of the tools.
        choice: `auto`; `required`: the reply is a call; `none`: there is no call; or the name of the tool
            that the reply calls, once.
    """

    format: CallFormat
    schemas: Mapping[str, Mapping[str, Any]] = field(repr=False)
    choice: str = 'auto'

    @classmethod
    def of(cls, call_format: CallFormat, tools: Iterable[CallableTool], choice: str = 'auto') -> CallForm:
        """Return the form of replies with these tools.

        Raises:
            ValueError: The choice is unknown.
        """
        schemas = {tool.name: tool.schema for tool in tools}
        if not isinstance(choice, str) or (choice not in CHOICES and choice not in schemas):
            raise ValueError(
                f'tool_choice={shorten(repr(choice))} is not valid: {", ".join(CHOICES)}, or one of the tools'
                f' {", ".join(schemas) or "(there are none)"}'
            )
        if choice in ('required', *schemas) and not schemas:
            raise ValueError(f'tool_choice={choice} needs tools, and there are none')
        return cls(call_format, schemas, choice)

    @property
    def begins_with_call(self) -> bool:
        """Whether the reply is a call from its beginning."""
        return self.choice not in ('auto', 'none')

    def read(self, text: str) -> tuple[WrittenCall, ...]:
        """Read the calls in a text that begins with the opening.

        Raises:
            ValueError: The text is incomplete, or a call is not allowed.
        """
        calls = self.format.read(text, self.schemas)
        for call in calls:
            if self.choice == 'none' or self.choice in self.schemas and call.name != self.choice:
                raise ValueError(f'{call.name} may not be called here')
            check_value(self.schemas[call.name], call.arguments)
        return calls

    def special_ids(self, special: Mapping[str, int]) -> dict[int, str]:
        """Return the special tokens that the format contains, as texts by their ids.

        Args:
            special: Ids of the special tokens of the model, by their texts.
        """
        texts = [part for part in _parts(self.format) if not isinstance(part, Slot)]
        texts += getattr(self.format.arguments, 'literals', ())
        found = {}
        for text in texts:
            for piece in _split(text, special):
                if isinstance(piece, int):
                    found[piece] = next(name for name, token in special.items() if token == piece)
        return found

    def opening_id(self, special: Mapping[str, int]) -> int | None:
        """Return the id of the opening if it is a special token; else None."""
        return special.get(self.format.opening)

    def grammar(self, special: Mapping[str, int]) -> str:
        """Return the grammar of a reply, for llguidance.

        Args:
            special: Ids of the special tokens of the model, by their texts. Marks among them are written as
                these tokens, never as text.

        Raises:
            ValueError: A schema is not supported; the message names the tool.
        """
        key = json.dumps(self.schemas, ensure_ascii=False), tuple(sorted(special.items()))
        return _grammar(self.format, self.choice, *key)


def _parts(call_format: CallFormat) -> Sequence[Part]:
    return (*call_format.call, *(call_format.between or ()), call_format.end)


@functools.lru_cache(maxsize=64)
def _grammar(
    call_format: CallFormat, choice: str, schemas_text: str, special_items: tuple[tuple[str, int], ...]
) -> str:
    schemas: dict[str, dict] = json.loads(schemas_text)
    special = dict(special_items)
    if choice in schemas:
        schemas = {choice: schemas[choice]}
    literal = functools.partial(_literal, special=special)
    lines = _start(call_format, choice, special.get(call_format.opening), literal)
    if choice == 'none' or not schemas:
        return '\n'.join(lines)
    lines += _calls(call_format, literal, special, choice in schemas)
    lines.append('call: ' + ' | '.join(f'call_{n}' for n in range(len(schemas))))
    for n, (name, schema) in enumerate(schemas.items()):
        grammars.check_schema(schema, f'the parameters of tool {name}')
        lines.append(f'call_{n}: {_sequence(call_format, call_format.slots, literal, name, f"args_{n}")}')
        lines += call_format.arguments.lark(f'args_{n}', schema, literal)
    return grammars.check_lark('\n'.join(lines), 'the calls of the tools')


def _start(call_format: CallFormat, choice: str, opening_id: int | None, literal: Any) -> list[str]:
    """The rules for free text, and for where calls begin in it. The calls follow their opening."""
    if choice not in ('auto', 'none'):
        return [f'start: {literal(call_format.opening)} calls']
    if opening_id is not None:
        after = '' if choice == 'none' else f' (<[{opening_id}]> calls)?'
        return [f'start: FREE{after}', r'FREE: /(?s:.*)/']
    opening = grammars.regex_literal(call_format.opening)
    if call_format.only_at_start:
        free = rf'FREE: /(?s:.*)/ & ~/[ \t\r\n]*{opening}(?s:.*)/'
        return [
            f'start: FREE | {literal(call_format.opening)} calls' if choice == 'auto' else 'start: FREE',
            free,
        ]
    free = rf'FREE: /(?s:.*)/ & ~/(?s:.*){opening}(?s:.*)/'
    if choice == 'none':
        return ['start: FREE', free]
    return ['start: FREE | opened calls', free, rf'opened[lazy]: /(?s:.*){opening}/']


def _calls(call_format: CallFormat, literal: Any, special: Mapping[str, int], only_one: bool) -> list[str]:
    """The rules for one or more calls, without the opening."""
    head = (call_format.head[0].removeprefix(call_format.opening), *call_format.head[1:])
    sequence = functools.partial(_sequence, call_format, literal=literal)
    if call_format.between is None or only_one:
        return [f'calls: {sequence(head)} call {sequence((call_format.end,))}']
    between, end = call_format.between, call_format.end
    shared = '' if isinstance(between[0], Slot) else _shared(end, between[0], special)
    if shared:
        between = (between[0][len(shared) :], *between[1:])
    return [
        f'calls: {sequence(head)} call closing more{{0,{MOST_CALLS - 1}}} {sequence((end[len(shared) :],))}',
        f'more: {sequence(between)} call closing',
        f'closing: {sequence((shared,)) or _EMPTY}',
    ]


def _shared(a: str, b: str, special: Mapping[str, int]) -> str:
    """The text with which two texts begin. It ends inside no special token."""
    shared = ''
    for one, other in zip(_split(a, special), _split(b, special)):
        if one == other:
            shared += a[len(shared) : len(shared) + _length(one, special)]
            continue
        if isinstance(one, str) and isinstance(other, str):
            shared += os.path.commonprefix([one, other])
        break
    return shared


def _length(piece: str | int, special: Mapping[str, int]) -> int:
    return len(piece if isinstance(piece, str) else next(t for t, i in special.items() if i == piece))


_EMPTY = '""'


def _sequence(
    call_format: CallFormat, parts: Sequence[Part], literal: Any, name: str = '', arguments: str = ''
) -> str:
    """Parts of a call in Lark's syntax."""
    found, text = [], ''
    for part in parts:
        if not isinstance(part, Slot):
            text += part
        elif part is Slot.NAME:
            text += name
        else:
            found += [literal(text)] if text else []
            text = ''
            found.append(
                arguments
                if part is Slot.ARGUMENTS
                else f'/{call_format.id_pattern}/'
                if part is Slot.ID
                else '/[0-9]{1,3}/'
            )
    return ' '.join([*found, *([literal(text)] if text else [])])


def _literal(text: str, special: Mapping[str, int]) -> str:
    """A text in Lark's syntax; special tokens in it by their ids."""
    pieces = [
        f'<[{piece}]>' if isinstance(piece, int) else json.dumps(piece, ensure_ascii=False)
        for piece in _split(text, special)
    ]
    return ' '.join(pieces) or _EMPTY


def _split(text: str, special: Mapping[str, int]) -> list[str | int]:
    """A text as pieces of text and ids of special tokens, the leftmost and longest first."""
    names = [name for name in special if name and name in text]
    if not names:
        return [text] if text else []
    pattern = '|'.join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pieces: list[str | int] = []
    at = 0
    for match in re.finditer(pattern, text):
        if match.start() > at:
            pieces.append(text[at : match.start()])
        pieces.append(special[match[0]])
        at = match.end()
    return [*pieces, text[at:]] if at < len(text) else pieces
