"""How servers are told the form of an answer, and the check of the answer that comes back.

Each style is a way to write a form into a request. The probes find which style a server follows; some ignore
what they do not know.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ros2_nanochat.answer.call_form import CallForm
from ros2_nanochat.answer.matcher import AnswerMatcher
from ros2_nanochat.answer.response_format import ResponseFormat, read_response_format
from ros2_nanochat.answer.vocabulary import AnswerVocabulary
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.answer_form import AnswerForm
from ros2_nanochat.engine.answer_vocabulary import choice_scores
from ros2_nanochat.engine.call_text import CallText
from ros2_nanochat.engine.choice_scores import ChoiceScores
from ros2_nanochat.engine.reply_text import ReplyText
from ros2_nanochat.prompt import Preceding
from ros2_nanochat.remote import gbnf
from ros2_nanochat.remote.capabilities import Capabilities
from ros2_nanochat.remote.text import RemoteText

_STRING_OR_SPACE = re.compile(r'"(?:[^"\\]|\\.)*"|[ \t\r\n]+', re.DOTALL)

KINDS = ('choice', 'regex', 'json', 'schema', 'grammar')
"""Kinds of forms; see `ResponseFormat.kind`."""


def _structured_outputs(form: ResponseFormat) -> dict | None:
    if form.kind == 'choice':
        return {'structured_outputs': {'choice': list(form.alternatives)}}
    if form.schema is not None:
        return {'structured_outputs': {'json': form.schema}}
    language, text = form.source
    return {'structured_outputs': {'regex' if language == 'regex' else 'grammar': text}}


def _llama_cpp(form: ResponseFormat) -> dict | None:
    if form.kind == 'choice':
        return {'grammar': gbnf.from_choice(form.alternatives)}
    if form.schema is not None:
        return {'json_schema': form.schema}
    language, text = form.source
    if language == 'regex':
        return {'grammar': gbnf.from_regex(text)}
    return {'grammar': text} if language == 'gbnf' else None


def _openai(form: ResponseFormat) -> dict | None:
    if form.kind == 'json':
        return {'response_format': {'type': 'json_object'}}
    if form.schema is None:
        return None
    schema = {'name': 'answer', 'schema': form.schema, 'strict': True}
    return {'response_format': {'type': 'json_schema', 'json_schema': schema}}


def _sglang(form: ResponseFormat) -> dict | None:
    if form.kind == 'choice':
        return {'ebnf': gbnf.from_choice(form.alternatives)}
    if form.schema is not None:
        return {'json_schema': json.dumps(form.schema)}
    language, text = form.source
    return {'regex': text} if language == 'regex' else {'ebnf': text} if language == 'gbnf' else None


STYLES: dict[str, Callable[[ResponseFormat], dict | None]] = {
    'structured_outputs': _structured_outputs,
    'grammar': _llama_cpp,
    'response_format': _openai,
    'ebnf': _sglang,
}
"""The styles by name: of vLLM, llama.cpp, OpenAI and SGLang. None: the style cannot express the form."""


def probe_form(kind: str) -> ResponseFormat:
    """Return a form that no model would follow by chance, to probe a server with."""
    word = 'zq7x'
    forms: dict[str, Any] = {
        'choice': [word, f'{word}y'],
        'regex': f'/{word}[0-9]/',
        'json': 'json',
        'schema': {
            'type': 'object',
            'properties': {word: {'type': 'boolean'}},
            'required': [word],
            'additionalProperties': False,
        },
    }
    if kind == 'grammar':
        return ResponseFormat('grammar', '', source=('gbnf', f'root ::= "{word}" [0-9]'))
    form = read_response_format(forms[kind])
    assert form is not None
    return form


def follows(kind: str, text: str) -> bool:
    """Return whether the answer to a probe is in its form."""
    text = text.strip()
    if kind == 'json':  # cut at any point, it begins like an object
        return text.startswith('{')
    if kind == 'schema':  # with white space, it may be cut before the colon
        return ''.join(text.split())[:7] == '{"zq7x"'
    return text.startswith('zq7x')


class TextVocabulary:
    """Checks answers by their text, for servers that hold an answer to a form themselves. Has the surface of
    `ModelVocabulary`, as far as `NanoLLM` uses it.

    Args:
        text: The text side of the model.
        can: What the servers can do.
    """

    def __init__(self, text: RemoteText, can: Capabilities):
        self._can = can
        self._info = text.info
        self._special_ids = {token.text: token.id for token in text.info.special_tokens}
        self._tokenize = functools.partial(text.tokenize, preceding=Preceding.TEXT)
        self._lock = threading.Lock()
        self._known: AnswerVocabulary | None = None

    def scores(self, config: GenerationConfig, form: ResponseFormat | None) -> ChoiceScores | None:
        """See `ModelVocabulary.scores`."""
        if not config.probabilities:
            return None
        if not self._can.probabilities:
            raise ValueError(self._can.no_probabilities)
        return choice_scores(form, self._info, self._tokenize)

    def matcher(
        self, form: ResponseFormat | None, calls: CallForm | None, end_ids: Iterable[int] = ()
    ) -> Any:
        """Return the matcher of a form, for complete texts; None without a form. Calls of tools are checked
        when they are read.

        Raises:
            ValueError: Both were given.
        """
        if form is not None and calls is not None:
            raise ValueError('response_format and tools cannot go together: leave one of them out')
        if form is None:
            return None
        with self._lock:
            if self._known is None:
                byte_tokens = [bytes([number]) for number in range(256)]
                self._known = AnswerVocabulary([*byte_tokens, b''], [256], [256], lambda t: list(t.encode()))
        return _TextMatcher(self._known.matcher(form.grammar))

    def call_text(self, calls: CallForm | None) -> CallText | None:
        """Return what finds calls in the text of a reply; None if there can be none."""
        return None if calls is None else CallText(calls, self._special_ids)

    def held_to(self, form, calls, matcher: Any, text: ReplyText, end_ids: frozenset[int]) -> Any:
        """Return what checks a reply with this text; None without a form."""
        none = np.empty(0, np.int64)
        return None if matcher is None else AnswerForm(form, matcher, text, end_ids, none)


class _TextMatcher:
    """Accepts JSON with white space, which servers write, as well as without, which our forms ask for."""

    def __init__(self, matcher: AnswerMatcher):
        self._matcher = matcher

    def matches(self, text: str) -> bool:
        """Return whether a complete text follows the form."""
        if self._matcher.matches(text):
            return True
        if text.lstrip()[:1] not in ('{', '['):
            return False
        return self._matcher.matches(_STRING_OR_SPACE.sub(lambda match: match[0].strip(' \t\r\n'), text))
