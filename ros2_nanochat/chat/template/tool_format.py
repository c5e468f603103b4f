"""Learns from a Jinja template how its model writes calls: renders a call whose name and arguments are
placeholders, and takes what stands around them.

A format is used only if it gives exactly what the template renders for other calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ros2_nanochat.answer.call_format import ArgumentSyntax, CallFormat, Part, Slot
from ros2_nanochat.answer.json_arguments import JsonArguments
from ros2_nanochat.answer.keyed_arguments import learn_keyed_arguments
from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.chat.template.jinja import JinjaMarkup
from ros2_nanochat.chat.template.markup import end_of_shared
from ros2_nanochat.reasoning import REASONING_MARKS

_ASKED, _SAID = 'Qx7asked', 'Qx7said'
_NAMES = 'probe_alpha', 'probe_beta', 'probe_gamma'
_IDS = 'pR0bEaaa1', 'pR0bEbbb2', 'pR0bEccc3'
_VALUES = 'Vfirst1', 'Vsecond2', 'Vthird3'
_KEYS = 'keyone', 'keytwo', 'keythree'
_SPACINGS = tuple(
    JsonArguments(between, colon, ascii)
    for between, colon in ((', ', ': '), (',', ':'), (', ', ':'), (',', ': '))
    for ascii in (False, True)
)
_RICH = {'keyone': 'a b', 'keytwo': [1, {'x': 'é'}], 'keythree': True, 'keyfour': -1.5}
_TAG = re.compile(r'<[^<>\s]+>|<[A-Za-z_]+=|\[[A-Z][A-Z_ ]*\]|[A-Za-z_]+[\[:(]|[a-z]+=[a-z]+\.')


class CannotCall(ValueError):
    """The template does not write calls in a form that can be learned."""


def tool_dict(name: str, keys: Iterable[str] = _KEYS) -> dict[str, Any]:
    """Return a tool in OpenAI's form, for rendering."""
    properties = {key: {'type': 'string', 'description': f'the {key}'} for key in keys}
    return {
        'type': 'function',
        'function': {
            'name': name,
            'description': f'what {name} does',
            'parameters': {'type': 'object', 'properties': properties, 'required': list(properties)},
        },
    }


def learn_call_format(markup: JinjaMarkup, variable: str, ends: Sequence[str]) -> CallFormat:
    """Return how a template writes calls.

    Args:
        markup: The template.
        variable: The variable that takes tools; '' if there is none.
        ends: Texts that end a reply: these are no part of its calls.

    Raises:
        CannotCall: It writes none, or in a form that cannot be learned.
    """
    refusal: CannotCall | None = None
    for null_content in (False, True):
        for text_arguments in (False, True):
            try:
                found = _Learner(markup, variable, ends, null_content, text_arguments).learn()
            except CannotCall as error:
                refusal = refusal or error
                continue
            return replace(found, null_content=null_content, text_arguments=text_arguments)
    assert refusal is not None
    raise refusal


class _Learner:
    def __init__(
        self,
        markup: JinjaMarkup,
        variable: str,
        ends: Sequence[str],
        null_content: bool,
        text_arguments: bool,
    ):
        self._markup = markup
        self._content = None if null_content else ''
        self._text_arguments = text_arguments
        offered = {variable: [tool_dict(name) for name in _NAMES]} if variable else {}
        self._options = {**markup.options, **offered}
        self._ends = [end for end in ends if end]
        self._first_number = 0

    def learn(self) -> CallFormat:
        call = self._call(0, {_KEYS[0]: _VALUES[0]})
        text = self._calls_text([call])
        arguments, at, end = self._find_arguments(text, call)
        parts, rest = self._cut(text, call, arguments, at, end)
        closing = self._until_end(rest)
        opening, only_at_start = self._opening(parts[0])
        begin = self._render([self._user()], True).rpartition(_ASKED)[2]
        if not only_at_start and (opening in self._ends or opening in begin):
            raise CannotCall('a call begins like another turn')
        found = CallFormat(
            opening,
            parts,
            closing,
            arguments,
            only_at_start=only_at_start,
            id_pattern=self._id_pattern(),
            first_number=self._first_number,
        )
        self._verify(found, [[self._call(1, {_KEYS[0]: 'x y', _KEYS[1]: 'z'})], [self._call(2, {})]])
        between = self._between(found)
        return found if between is None else replace(found, between=between)

    # --- rendering ---

    @staticmethod
    def _user() -> dict:
        return {'role': 'user', 'content': _ASKED}

    @staticmethod
    def _call(n: int, arguments: Mapping[str, Any]) -> WrittenCall:
        return WrittenCall(_NAMES[n], arguments, _IDS[n])

    def _message(self, calls: Sequence[WrittenCall]) -> dict:
        written = [call.as_openai(self._text_arguments) for call in calls]
        return {'role': 'assistant', 'content': self._content, 'tool_calls': written}

    def _render(self, messages: list[dict], generation: bool = False) -> str:
        if self._markup.is_understood and not self._markup.takes_text:
            messages = [
                {**each, 'content': [{'type': 'text', 'text': each['content']}]}
                if each.get('content')
                else each
                for each in messages
            ]
        try:
            return self._markup.render(messages, generation, self._options)
        except ValueError as error:
            raise CannotCall(str(error)) from error

    def _calls_text(self, calls: Sequence[WrittenCall]) -> str:
        """What the template writes for a reply of calls, from where the model begins to write."""
        message = self._message(calls)
        whole = self._render([self._user(), message])
        before = self._render([self._user()])
        begins = [self._render([self._user()], True)]
        said = self._try([self._user(), {'role': 'assistant', 'content': _SAID}])
        if said and _SAID in said:
            begins.append(said.partition(_SAID)[0])
        known = [len(text) for text in begins if whole.startswith(text) and len(text) >= len(before)]
        start = max(known) if known else max(end_of_shared(whole, text) for text in begins)
        text = whole[start:]
        for opened, closed in REASONING_MARKS:
            match = re.match(rf'\s*(?:{re.escape(opened)}.*?)?{re.escape(closed)}', text, re.DOTALL)
            text = text[match.end() :] if match else text
        return text.lstrip()

    def _try(self, messages: list[dict]) -> str | None:
        try:
            return self._render(messages)
        except CannotCall:
            return None

    # --- cutting ---

    def _find_arguments(self, text: str, call: WrittenCall) -> tuple[ArgumentSyntax, int, int]:
        """How arguments are written, and from where to where they stand in a text with one call."""
        for at in (match.start() for match in re.finditer(r'\{', text)):
            for syntax in _SPACINGS:
                try:
                    value, end = syntax.read(text, at, {})
                except ValueError:
                    break
                if value == call.arguments and self._writes(syntax):
                    return syntax, at, end
        found = learn_keyed_arguments(
            lambda arguments: self._calls_text([self._call(0, arguments)]), _NAMES[0], _KEYS, _VALUES
        )
        if found is None:
            raise CannotCall('the arguments of a call are written in an unknown way')
        return found

    def _writes(self, syntax: JsonArguments) -> bool:
        text = self._calls_text([self._call(0, _RICH)])
        return syntax.write(_RICH) in text

    def _cut(
        self, text: str, call: WrittenCall, arguments: ArgumentSyntax, at: int, end: int
    ) -> tuple[tuple[Part, ...], str]:
        """The parts of a call until its last slot, and the text after it."""
        places = [(at, end, Slot.ARGUMENTS)]
        for value, slot in ((call.name, Slot.NAME), (call.id, Slot.ID)):
            places += [(m.start(), m.end(), slot) for m in re.finditer(re.escape(value), text)]
        if not any(slot is Slot.NAME for _, _, slot in places):
            raise CannotCall('the template does not write the name of a call')
        parts: list[Part] = []
        position = 0
        for start, stop, slot in sorted(places):
            if start < position:
                raise CannotCall('the parts of a call overlap')
            if start > position:
                parts.append(text[position:start])
            parts.append(slot)
            position = stop
        if isinstance(parts[0], Slot):
            raise CannotCall('nothing tells where a call begins')
        return self._numbered(parts), text[position:]

    def _numbered(self, parts: list[Part]) -> tuple[Part, ...]:
        """Parts in which the number of the call is a slot, if the template counts calls."""
        second = self._try_calls([self._call(0, {}), self._call(1, {})]) or ''
        for n, part in enumerate(parts):
            if isinstance(part, Slot):
                continue
            for match in re.finditer(r'(?<=["\':])\d+', part):
                before, after = part[: match.start()], part[match.end() :]
                number = int(match[0])
                if all(f'{before[-12:]}{x}{after[:6]}' in second for x in (number, number + 1)):
                    self._first_number = number
                    return (*parts[:n], before, Slot.NUMBER, after, *parts[n + 1 :])
        return tuple(parts)

    def _until_end(self, rest: str) -> str:
        """The end of the calls, without what ends the reply."""
        after = self._markup.end_of_turn
        stops = [at for end in self._ends if (at := rest.find(end)) >= 0]
        if after.strip() and rest.endswith(after):
            stops.append(len(rest) - len(after))
        return rest[: min(stops, default=len(rest))].rstrip()

    @staticmethod
    def _opening(head: Part) -> tuple[str, bool]:
        """The text with which calls begin, and whether it is no mark of its own."""
        assert not isinstance(head, Slot)
        match = _TAG.match(head)
        if match:
            return match[0], False
        if head[0] in '{[':
            return head[:2] if head[:2] in ('{"', '[{') else head[0], True
        raise CannotCall('nothing tells where a call begins')

    def _id_pattern(self) -> str:
        """What ids may look like: nine letters and digits if the template refuses others (Mistral)."""
        message = self._message([WrittenCall(_NAMES[0], {}, 'an-id-of-another-length')])
        return '[A-Za-z0-9_-]{1,40}' if self._try([self._user(), message]) else '[A-Za-z0-9]{9}'

    def _between(self, found: CallFormat) -> tuple[Part, ...] | None:
        """The parts between two calls; None if the template takes only one."""
        calls = [self._call(n, {_KEYS[0]: _VALUES[n]}) for n in range(2)]
        text = self._try_calls(calls)
        if text is None:
            return None
        first = CallFormat(found.opening, found.call, '', found.arguments, first_number=found.first_number)
        start = first.write(calls[:1])
        further = CallFormat('', ('', *found.slots), '', found.arguments, first_number=found.first_number + 1)
        slots = further.write(calls[1:])
        at = text.find(slots, len(start))
        if not text.startswith(start) or at < 0:
            return None
        literal = text[len(start) : at]
        parts: tuple[Part, ...] = (literal,)
        number = str(found.first_number + 1)
        if Slot.NUMBER in found.head and (n := literal.rfind(number)) >= 0:
            parts = (literal[:n], Slot.NUMBER, literal[n + len(number) :])
        whole = replace(found, between=parts)
        more = [*calls, self._call(2, {_KEYS[0]: _VALUES[2], _KEYS[1]: 'w'})]
        try:
            self._verify(whole, [calls, more])
        except CannotCall:
            return None
        return parts

    def _try_calls(self, calls: Sequence[WrittenCall]) -> str | None:
        try:
            return self._calls_text(calls)
        except CannotCall:
            return None

    def _verify(self, found: CallFormat, examples: list[list[WrittenCall]]) -> None:
        """Check that a format gives what the template renders."""
        for calls in examples:
            text = self._calls_text(calls)
            if not text.startswith(found.write(calls)):
                raise CannotCall('the template does not write all calls in one way')
