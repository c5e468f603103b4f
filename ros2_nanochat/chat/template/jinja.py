"""Chat templates written in Jinja, rendered as transformers renders them: in its sandbox, with its settings
and helpers.

Gives text alone. What is markup in it and what content, and how both become ids, is the business of
`templates`.
"""

from __future__ import annotations

import datetime
import functools
import json
import os
from collections.abc import Sequence

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ros2_nanochat.reasoning import is_marked

_P1, _P2 = '\U0010fff0', '\U0010fff1'  # stand for contents where a template is asked what it does
IMAGE_PART = {'type': 'image'}


def reasoning_part(text: str) -> dict:
    """The part of a content for reasoning."""
    return {'type': 'thinking', 'thinking': text}


class TemplateRefusal(ValueError):
    """A conversation that the template does not accept, in its own words."""


class _Generation(Extension):
    """`{% generation %}`, which marks what the model wrote for training, lets its body through."""

    tags = {'generation'}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """Jinja's, without names that begin with an underscore: these would lead out of the sandbox."""

    def __init__(*args, **kwargs):
        self, args = args[0], args[1:]
        names = dict(*args, **kwargs)
        for name in names:
            _refuse_private(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name, value):
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name):
    if str(name).startswith('_'):
        raise jinja2.exceptions.SecurityError(f'a chat template may not set {name!r}')


def _raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.lru_cache(maxsize=64)
def compile_jinja(source: str) -> jinja2.Template:
    """Compile a template; a jinja2.TemplateSyntaxError carries the line of a mistake."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, 'jinja2.ext.loopcontrols']
    )
    environment.filters['tojson'] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception,
        namespace=_Namespace,
        strftime_now=lambda form: datetime.datetime.now().strftime(form),
    )
    return environment.from_string(source)


class JinjaMarkup:
    """One Jinja template, and what it does with conversations that not every template takes, found out by
    asking it.

    variables: `bos_token`, `eos_token` and others that it may refer to, as texts.
    """

    writes_bos = True  # the template puts the begin-of-text token itself, or means that there is none
    system_prompt = None
    stop = None

    def __init__(
        self,
        source: str,
        variables: dict[str, str] | None = None,
        name: str = 'jinja',
        where: str | None = None,
    ):
        try:
            self._template = compile_jinja(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(
                f'{where or f"chat template {name}"}, line {error.lineno}: {error.message}'
            ) from error
        self.source = source
        self.name = name
        self._variables = variables or {}

    def render(self, messages: Sequence[dict], add_generation_prompt: bool = False) -> str:
        """Render messages, dicts as transformers takes them. `TemplateRefusal` where the template raises."""
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except jinja2.TemplateError as error:
            raise TemplateRefusal(
                f'chat template {self.name} refuses this conversation:'
                f' {error.message or type(error).__name__}'
            ) from error
        except (TypeError, ValueError, KeyError, ArithmeticError, OverflowError) as error:
            raise TemplateRefusal(
                f'chat template {self.name} cannot render this conversation: {error}'
            ) from error

    def _try(self, *messages: tuple, add_generation_prompt: bool = False) -> str | None:
        try:
            return self.render(
                [
                    {'role': role, 'content': content if isinstance(content, list) else self._wrap(content)}
                    for role, content in messages
                ],
                add_generation_prompt,
            )
        except TemplateRefusal:
            return None

    def _wrap(self, text: str):
        return text if self.takes_text else [{'type': 'text', 'text': text}]

    @functools.cached_property
    def takes_text(self) -> bool:
        """Whether a content may be a string; otherwise it has to be a list of parts."""
        try:
            return _P1 in self.render([{'role': 'user', 'content': _P1}])
        except TemplateRefusal:
            return False

    @functools.cached_property
    def takes_system(self) -> bool:
        """Whether a system prompt has a place: some templates raise, some drop it without a word."""
        text = self._try(('system', _P1), ('user', _P2))
        return text is not None and _P1 in text

    @functools.cached_property
    def takes_tool(self) -> bool:
        """Whether the answer of a tool has a place."""
        text = self._try(('user', 'a'), ('assistant', 'b'), ('tool', _P1))
        return text is not None and _P1 in text

    @functools.cached_property
    def alternates(self) -> bool:
        """Whether two messages of one role in a row are refused."""
        return self._try(('user', _P1), ('user', _P2)) is None

    @functools.cached_property
    def generation_prompt(self) -> str:
        """What is written behind a conversation for the model to begin its reply."""
        without, with_ = self._try(('user', _P1)), self._try(('user', _P1), add_generation_prompt=True)
        if without is None or with_ is None:
            return ''
        if not with_.startswith(
            without
        ):  # some write the end of the text behind a conversation that does not go on (Phi 3)
            without = without.removesuffix(self._variables.get('eos_token', ''))
        return with_[len(without) :] if with_.startswith(without) else ''

    @functools.cached_property
    def before_reply(self) -> str:
        """What stands between the user's last words and where the model begins its reply."""
        text = self._try(('user', _P1), add_generation_prompt=True) or ''
        return text.partition(_P1)[2]

    @functools.cached_property
    def end_of_turn(self) -> str:
        """What stands behind a reply; where that is nothing, what the user's next turn begins with (GLM
        4).
        """
        asked = ('user', _P1), ('assistant', _P2)
        end = (self._try(*asked) or '').partition(_P2)[2]
        return (
            end
            if end.strip()
            else (self._try(*asked, ('user', _P1)) or '').partition(_P2)[2].partition(_P1)[0]
        )

    @functools.cached_property
    def image_markers(self) -> list[str]:
        """What the template writes for an image among the parts of a content, none where it does not take
        parts. Where what stands in front of it ends as it ends, or what stands behind begins as it begins, it
        might begin at several places: with the last one first.
        """
        part = {'type': 'text', 'text': _P1}
        with_, without = self._try(('user', [IMAGE_PART, part])), self._try(('user', [part]))
        if (
            with_ is None
            or without is None
            or with_.count(_P1) != 1
            or without.count(_P1) != 1
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
        """Whether the template reads the reasoning of a message from a field of its own."""
        return (
            'reasoning_content' in self.source or '.thinking' in self.source or "['thinking']" in self.source
        )

    @functools.cached_property
    def takes_reasoning_part(self) -> bool:
        """Whether the template reads the reasoning of a message from a part of its content (Magistral,
        Ministral 3).
        """
        text = self._try(('user', _P1), ('assistant', [reasoning_part(_P2), {'type': 'text', 'text': _P1}]))
        return text is not None and is_marked(_P2, text)
