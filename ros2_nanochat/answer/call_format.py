"""`CallFormat`: the text with which a model calls tools in its reply. Writes and reads that text.

A call is a sequence of literal texts and slots. Where the literals come from (a chat template), and what the
model may put into the slots (`call_form`), is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.files import valid_text
from ros2_nanochat.states import StrEnum


class Slot(StrEnum):
    """A part of a call that differs from call to call."""

    NAME = 'name'
    ARGUMENTS = 'arguments'
    ID = 'id'
    NUMBER = 'number'
    """The number of the call within the reply, from `CallFormat.first_number`."""


Part = str | Slot


class ArgumentSyntax(Protocol):
    """How arguments are written."""

    def write(self, arguments: Mapping[str, Any]) -> str:
        """Return the text of arguments."""
        ...

    def read(self, text: str, at: int, schema: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        """Read arguments from a text.

        Args:
            text: The text.
            at: Where they begin.
            schema: Their JSON Schema.

        Returns:
            The arguments, and where they end.

        Raises:
            ValueError: There are none, or they are incomplete.
        """
        ...

    def lark(self, rule: str, schema: Mapping[str, Any], literal: Any) -> list[str]:
        """Return the rules, in Lark's syntax, of arguments that follow a schema.

        Args:
            rule: Name of the rule to define; further rules begin with it.
            schema: The JSON Schema, closed.
            literal: Turns a text into Lark's syntax, special tokens included.
        """
        ...


@dataclass(frozen=True)
class CallFormat:
    """The text of calls in a reply.

    Attributes:
        opening: The text with which calls begin, after which only a call can follow.
        call: The parts of the first call, from its beginning (`opening` included) to its last slot.
        end: The text after the last call.
        arguments: How arguments are written.
        between: The parts from the last slot of one call to the first slot of the next; None if a reply can
            have only one call. The slots of a further call are those of the first one.
        only_at_start: Calls begin only at the beginning of a reply: `opening` is no mark, but ordinary text.
        id_pattern: Regular expression of an id that the model writes.
        first_number: The number of the first call.
        null_content: The template wants a message that only calls to have no content, instead of ''.
        text_arguments: The template wants the arguments of a call as JSON in a string.
    """

    opening: str
    call: tuple[Part, ...]
    end: str
    arguments: ArgumentSyntax
    between: tuple[Part, ...] | None = None
    only_at_start: bool = False
    id_pattern: str = '[A-Za-z0-9_-]{1,40}'
    first_number: int = 0
    null_content: bool = False
    text_arguments: bool = False

    @property
    def head(self) -> tuple[Part, ...]:
        """The parts before the first slot that differs between tools."""
        return self.call[: self._first_slot]

    @property
    def slots(self) -> tuple[Part, ...]:
        """The parts from the first such slot to the last one."""
        return self.call[self._first_slot :]

    @property
    def _first_slot(self) -> int:
        return next(n for n, part in enumerate(self.call) if part in (Slot.NAME, Slot.ARGUMENTS, Slot.ID))

    @property
    def has_ids(self) -> bool:
        """Whether the model writes the ids of its calls."""
        return Slot.ID in self.call

    def write(self, calls: Sequence[WrittenCall]) -> str:
        """Return the text of calls as the template writes them."""
        text = []
        for n, call in enumerate(calls):
            parts = self.call if n == 0 else (*(self.between or ()), *self.slots)
            for part in parts:
                if not isinstance(part, Slot):
                    text.append(part)
                elif part is Slot.NAME:
                    text.append(call.name)
                elif part is Slot.ID:
                    text.append(call.id)
                elif part is Slot.NUMBER:
                    text.append(str(self.first_number + n))
                else:
                    text.append(self.arguments.write(call.arguments))
        return ''.join([*text, self.end])

    def read(self, text: str, schemas: Mapping[str, Mapping[str, Any]]) -> tuple[WrittenCall, ...]:
        """Read the calls in a text that begins with `opening`.

        Args:
            text: The text, until the end of the reply.
            schemas: JSON Schema of the arguments, by the names of the tools.

        Raises:
            ValueError: The text is incomplete, or no call.
        """
        text = text.rstrip()
        calls: list[WrittenCall] = []
        at, parts = 0, self.call
        while True:
            call, at = self._read_call(text, at, parts, schemas)
            calls.append(call)
            if text[at:].rstrip() == self.end.rstrip():
                return tuple(calls)
            if self.between is None:
                raise ValueError(f'the call ends with {text[at : at + 40]!r}, not {self.end!r}')
            parts = (*self.between, *self.slots)

    def _read_call(
        self, text: str, at: int, parts: Sequence[Part], schemas: Mapping[str, Mapping[str, Any]]
    ) -> tuple[WrittenCall, int]:
        values: dict[Slot, Any] = {Slot.ID: '', Slot.ARGUMENTS: {}}
        later: tuple[int, int] | None = None
        for n, part in enumerate(parts):
            if not isinstance(part, Slot):
                if not text.startswith(part, at):
                    raise ValueError(f'{text[at : at + 40]!r} stands where {part!r} has to stand')
                at += len(part)
            elif part is Slot.ARGUMENTS:
                schema = schemas.get(values.get(Slot.NAME, ''), {})
                values[part], end = self.arguments.read(text, at, schema)
                later = (at, n) if Slot.NAME not in values else None
                at = end
            else:
                pattern = {Slot.NAME: r'[\w-]+', Slot.NUMBER: r'\d+'}.get(part, self.id_pattern)
                match = re.compile(pattern).match(text, at)
                if match is None:
                    raise ValueError(f'the {part} of the call is missing')
                if values.get(part) not in (None, '', match[0]):
                    raise ValueError(f'the {part} of the call is {values[part]!r} and {match[0]!r}')
                values[part], at = match[0], match.end()
        name = values.get(Slot.NAME)
        if name is None or name not in schemas:
            raise ValueError(f'there is no tool {name!r}')
        if later is not None:
            values[Slot.ARGUMENTS] = self.arguments.read(text, later[0], schemas[name])[0]
        try:
            arguments = _valid(values[Slot.ARGUMENTS])
        except RecursionError:  # JSON is read deeper than Python calls go
            raise ValueError('the arguments are nested too deep') from None
        return WrittenCall(name, arguments, values[Slot.ID]), at


def _valid(value: Any) -> Any:
    """Parsed JSON without halves of surrogate pairs, which JSON can spell and no encoder takes."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {valid_text(key): _valid(each) for key, each in value.items()}
    return [_valid(each) for each in value] if isinstance(value, list) else value
