"""The vocabulary of an opened model as answer forms need it. Read when the first form is requested."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

from ros2_nanochat.answer.call_form import CallForm
from ros2_nanochat.answer.matcher import AnswerMatcher
from ros2_nanochat.answer.response_format import ResponseFormat
from ros2_nanochat.answer.vocabulary import AnswerVocabulary
from ros2_nanochat.backends.base import Backend
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.answer_form import AnswerForm
from ros2_nanochat.engine.call_text import CallText
from ros2_nanochat.engine.calling import CallingForm
from ros2_nanochat.engine.choice_scores import MAX_ALTERNATIVES, ChoiceScores
from ros2_nanochat.engine.held_form import HeldForm
from ros2_nanochat.engine.reply_text import ReplyText
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.prompt import Preceding


class ModelVocabulary:
    """What answer forms need of one model. Thread-safe."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self._info = backend.info
        self._special_ids = {token.text: token.id for token in self._info.special_tokens}
        self._tokenize = functools.partial(backend.tokenize, preceding=Preceding.TEXT)
        self._lock = threading.Lock()
        self._known: AnswerVocabulary | None = None

    def scores(self, config: GenerationConfig, form: ResponseFormat | None) -> ChoiceScores | None:
        """Return what computes the probabilities of a choice; None if they were not requested.

        Raises:
            ValueError: The form is not a choice, or has too many alternatives.
        """
        if not config.probabilities:
            return None
        return choice_scores(form, self._info, self._tokenize)

    def matcher(
        self, form: ResponseFormat | None, calls: CallForm | None, end_ids: frozenset[int]
    ) -> AnswerMatcher | None:
        """Return what follows a reply with a form or with calls of tools; None without either.

        Raises:
            ValueError: Both were given, or the grammar takes too much work.
        """
        if form is not None and calls is not None:
            raise ValueError('response_format and tools cannot go together: leave one of them out')
        if calls is not None:
            marks = calls.special_ids(self._special_ids)
            return self.vocabulary().matcher(calls.grammar(self._special_ids), end_ids, marks)
        return None if form is None else self.vocabulary().matcher(form.grammar, end_ids)

    def call_text(self, calls: CallForm | None) -> CallText | None:
        """Return what finds calls in the text of a reply; None if there can be none."""
        return None if calls is None else CallText(calls, self._special_ids)

    def held_to(
        self,
        form: ResponseFormat | None,
        calls: CallForm | None,
        matcher: AnswerMatcher | None,
        text: ReplyText,
        end_ids: frozenset[int],
    ) -> HeldForm | None:
        """Return what applies `matcher` to a reply with this text; None without one."""
        if matcher is None:
            return None
        space_ids = self.vocabulary().space_ids
        if form is not None:
            return AnswerForm(form, matcher, text, end_ids, space_ids)
        assert calls is not None
        return CallingForm(matcher, text, end_ids, space_ids, calls.begins_with_call)

    def vocabulary(self) -> AnswerVocabulary:
        """Return the vocabulary as answer forms need it; the first call reads it."""
        with self._lock:
            if self._known is None:
                detokenizer = self._backend.detokenizer()
                token_bytes = [detokenizer.token_bytes(i) for i in range(self._info.vocab_size)]
                special = [token.id for token in self._info.special_tokens]
                ends = self._info.eos_token_ids
                self._known = AnswerVocabulary(token_bytes, special, ends, self._tokenize)
            return self._known


def choice_scores(
    form: ResponseFormat | None, info: ModelInfo, tokenize: Callable[[str], list[int]]
) -> ChoiceScores:
    """Return what computes the probabilities of a choice.

    Args:
        form: The form of the answer.
        info: The model.
        tokenize: Turns a text that follows other text into ids.

    Raises:
        ValueError: The form is not a choice, or has too many alternatives.
    """
    if form is None or not form.alternatives:
        raise ValueError('probabilities=True needs a response_format that is a choice, such as yes | no')
    if len(form.alternatives) > MAX_ALTERNATIVES:
        raise ValueError(
            f'probabilities=True is possible for up to {MAX_ALTERNATIVES} alternatives, not'
            f' {len(form.alternatives)}'
        )
    end = end_of_turn(info)
    return ChoiceScores({text: [*tokenize(text), end] for text in form.alternatives})


def end_of_turn(info: ModelInfo) -> int:
    """Return the token that ends a reply; if there are several, the one that the model names."""
    named = info.named_tokens.get('eos_token')
    for token in info.special_tokens:
        if token.text == named and token.id in info.eos_token_ids:
            return token.id
    return min(info.eos_token_ids)
