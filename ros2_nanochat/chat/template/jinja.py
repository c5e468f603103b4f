"""Chat templates written in Jinja, rendered as transformers renders them: in its sandbox, with its settings
and helpers.

Returns only text. `chat_template` separates markup from content and turns both into ids.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ros2_nanochat.chat.template.bounded_rendering import Mistake, renderer
from ros2_nanochat.chat.template.builtin import BUILTIN
from ros2_nanochat.chat.template.jinja_environment import Refused, compile_jinja
from ros2_nanochat.chat.template.jinja_environment import render as render_here
from ros2_nanochat.chat.template.roles import P0, P1, P2, WRITTEN_OUT, Roles
from ros2_nanochat.errors import printable
from ros2_nanochat.reasoning import is_marked

IMAGE_PART = {'type': 'image'}
_KNOWN = frozenset(
    {
        '872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788',  # of the embedded model
        '9fe579a2c222698c7ba22d46e26466362fbe951569a89096c366267f9b82ab92',  # of the fake backend
        '5b01638592909ec9b41cecc0ba01364a8c792853782af2fd38f92e89fb06fbd5',  # of messages to servers
    }
)
"""SHA-256 digests of templates that are safe to render in this process; the built-in ones are, too."""


def reasoning_part(text: str) -> dict:
    """Return the part of a message's content that holds its reasoning."""
    return {'type': 'thinking', 'thinking': text}


class TemplateRefusal(ValueError):
    """A conversation that the template does not accept. The text is the template's own."""


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode('utf-8', 'replace')).hexdigest()


class _Frame(NamedTuple):
    """What a template needs around a message.

    Attributes:
        before: Messages that have to come first.
        generation: The template renders only with a generation prompt.
        takes_text: A content may be a string.
    """

    before: tuple[tuple[str, str], ...]
    generation: bool
    takes_text: bool


class JinjaMarkup:
    """One Jinja template. Finds out how it treats conversations by rendering small examples.

    Args:
        source: The template.
        variables: Texts that it may refer to, such as `bos_token` and `eos_token`.
        name: Its name in messages.
        where: The file or option it comes from, for errors.
        options: Further variables, with values that JSON can represent.

    Raises:
        ValueError: It does not compile.
    """

    writes_bos = True  # the template decides whether there is a begin-of-text token
    system_prompt = None
    stop = None

    def __init__(
        self,
        source: str,
        variables: dict[str, str] | None = None,
        name: str = 'jinja',
        where: str | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        self.options = dict(options or {})
        self.source = source
        self.name = name
        self._variables = variables or {}
        self._is_known = source in BUILTIN.values() or _digest(source) in _KNOWN
        where = where or f'chat template {name}'
        try:
            if self._is_known:
                compile_jinja(source)
            else:
                renderer.check(source)
        except Mistake as error:
            raise ValueError(f'{where}, line {error.line}: {printable(error)}') from error
        except Refused as error:
            raise ValueError(f'{where} {printable(error)}') from error

    def render(
        self,
        messages: Sequence[dict],
        add_generation_prompt: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Render messages.

        Args:
            messages: Dicts in the form of transformers.
            add_generation_prompt: Let the model begin a reply.
            options: Variables to use instead of the template's own options.

        Raises:
            TemplateRefusal: The template raises an error.
        """
        context = {
            **self._variables,
            'tools': None,
            'documents': None,
            **(self.options if options is None else options),
            'messages': list(messages),
            'add_generation_prompt': add_generation_prompt,
        }
        try:
            return (
                render_here(self.source, context) if self._is_known else renderer.render(self.source, context)
            )
        except Refused as error:
            raise TemplateRefusal(f'chat template {self.name} {printable(error)}') from error

    # --- what it does with conversations ---

    @functools.cached_property
    def _found(self) -> _Frame | None:
        """What the template needs around a message of the user; None if nothing helps."""
        for system in ([], [('system', P0)]):
            for generation in (False, True):
                for takes_text in (True, False):
                    frame = _Frame(tuple(system), generation, takes_text)
                    text = self._render_within(frame, [('user', P1)], False)
                    if text is not None and P1 in text and not any(mark in text for mark in WRITTEN_OUT):
                        return frame
        return None

    @property
    def _frame(self) -> _Frame:
        return self._found or _Frame((), False, False)

    @property
    def is_understood(self) -> bool:
        """Whether `takes_text` is known."""
        return self._found is not None

    def _render_within(self, frame: _Frame, messages: list[tuple], generation: bool) -> str | None:
        if not messages or messages[0][0] != 'system':
            messages = [*frame.before, *messages]
        try:
            return self.render(
                [
                    {
                        'role': role,
                        'content': content
                        if isinstance(content, list) or frame.takes_text
                        else [{'type': 'text', 'text': content}],
                    }
                    for role, content in messages
                ],
                generation or frame.generation,
            )
        except TemplateRefusal:
            return None

    def _try(self, *messages: tuple, add_generation_prompt: bool = False) -> str | None:
        return self._render_within(self._frame, list(messages), add_generation_prompt)

    @property
    def takes_text(self) -> bool:
        """Whether a content may be a string; otherwise it has to be a list of parts."""
        return self._frame.takes_text

    @functools.cached_property
    def takes_system(self) -> bool:
        """Whether the template writes a system prompt.

        Some templates raise an error, some silently drop it.
        """
        text = self._try(('system', P1), ('user', P2))
        return text is not None and P1 in text

    @functools.cached_property
    def roles(self) -> Roles:
        """How the template treats the roles of messages."""
        frame = self._frame
        return Roles(lambda messages: self.render(messages, frame.generation), self._try, frame.takes_text)

    @functools.cached_property
    def reads_first_as_system(self) -> bool:
        """Whether the first message is treated as the system prompt, whatever its role."""
        return not self._frame.before and not self.goes_by_places and self.roles.first_is_system()

    @functools.cached_property
    def goes_by_places(self) -> bool:
        """Whether the template goes by the places of messages, not by their roles."""
        return self.roles.goes_by_places()

    @functools.cached_property
    def takes_tool(self) -> bool:
        """Whether the template writes the answer of a tool."""
        text = self._try(('user', 'a'), ('assistant', 'b'), ('tool', P1))
        return text is not None and P1 in text

    @functools.cached_property
    def alternates(self) -> bool:
        """Whether the template rejects two messages of one role in a row."""
        return self._try(('user', P1), ('user', P2)) is None

    @functools.cached_property
    def generation_prompt(self) -> str:
        """The text after a conversation that lets the model begin its reply."""
        without, with_ = self._try(('user', P1)), self._try(('user', P1), add_generation_prompt=True)
        if without is None or with_ is None:
            return ''
        if not with_.startswith(
            without
        ):  # some end the text after a conversation that does not continue (Phi 3)
            without = without.removesuffix(self._variables.get('eos_token', ''))
        return with_[len(without) :] if with_.startswith(without) else ''

    @functools.cached_property
    def before_reply(self) -> str:
        """The text between the user's last words and the beginning of the reply."""
        text = self._try(('user', P1), add_generation_prompt=True) or ''
        return text.partition(P1)[2]

    @functools.cached_property
    def end_of_turn(self) -> str:
        """The text after a reply. If that is empty, the text before the next message of the user (GLM 4)."""
        asked = ('user', P1), ('assistant', P2)
        end = (self._try(*asked) or '').partition(P2)[2]
        return (
            end if end.strip() else (self._try(*asked, ('user', P1)) or '').partition(P2)[2].partition(P1)[0]
        )

    @functools.cached_property
    def image_markers(self) -> list[str]:
        """Texts that the template may write for an image in a list of parts; empty if it takes no such list.

        If the text around the marker repeats its beginning or end, the marker could begin at several
        positions: all are returned, the last one first.
        """
        part = {'type': 'text', 'text': P1}
        without, with_, two = (self._try(('user', [IMAGE_PART] * n + [part])) for n in range(3))
        if without and with_ and two and len(two) - len(with_) != len(with_) - len(without):
            without, with_ = with_, two  # SmolVLM's writes other white space before the first image
        if (
            with_ is None
            or without is None
            or with_.count(P1) != 1
            or without.count(P1) != 1
            or len(with_) <= len(without)
        ):
            return []
        length, start = len(with_) - len(without), len(os.path.commonprefix([with_, without]))
        markers = [
            with_[at : at + length]
            for at in range(start, -1, -1)
            if at == start or with_[at + length :] == without[at:]
        ]
        return [] if '"type"' in markers[0] else markers  # some write the parts out as JSON

    @property
    def takes_reasoning(self) -> bool:
        """Whether the template reads a message's reasoning from a field of its own."""
        return (
            'reasoning_content' in self.source or '.thinking' in self.source or "['thinking']" in self.source
        )

    @functools.cached_property
    def takes_reasoning_part(self) -> bool:
        """Whether the template reads reasoning from a part of the content (Magistral, Ministral 3)."""
        text = self._try(('user', P1), ('assistant', [reasoning_part(P2), {'type': 'text', 'text': P1}]))
        return text is not None and is_marked(P2, text)
