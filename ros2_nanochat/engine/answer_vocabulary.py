"""The vocabulary of an opened model as answer forms need it. Read when the first form is requested."""

from __future__ import annotations

import functools
import threading

from ros2_nanochat.answer.response_format import ResponseFormat
from ros2_nanochat.answer.vocabulary import AnswerVocabulary
from ros2_nanochat.backends.base import Backend
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.choice_scores import MAX_ALTERNATIVES, ChoiceScores
from ros2_nanochat.prompt import Preceding


class ModelVocabulary:
    """What answer forms need of one model. Thread-safe."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self._info = backend.info
        self._special_ids = {token.text: token.id for token in self._info.special_tokens}
        self._lock = threading.Lock()
        self._known: AnswerVocabulary | None = None

    def scores(self, config: GenerationConfig, form: ResponseFormat | None) -> ChoiceScores | None:
        """Return what computes the probabilities of a choice; None if they were not requested.

        Raises:
            ValueError: The form is not a choice, or has too many alternatives.
        """
        if not config.probabilities:
            return None
        if form is None or not form.alternatives:
            raise ValueError('probabilities=True needs a response_format that is a choice, such as yes | no')
        if len(form.alternatives) > MAX_ALTERNATIVES:
            raise ValueError(
                f'probabilities=True is possible for up to {MAX_ALTERNATIVES} alternatives, not'
                f' {len(form.alternatives)}'
            )
        tokenize, end = self.vocabulary().tokenize, self._end_of_turn()
        return ChoiceScores({text: [*tokenize(text), end] for text in form.alternatives})

    def _end_of_turn(self) -> int:
        """The token that ends a reply; if there are several, the one that the model names."""
        named = self._special_ids.get(self._info.named_tokens.get('eos_token', ''))
        return named if named in self._info.eos_token_ids else min(self._info.eos_token_ids)

    def vocabulary(self) -> AnswerVocabulary:
        """Return the vocabulary as answer forms need it; the first call reads it."""
        with self._lock:
            if self._known is None:
                detokenizer = self._backend.detokenizer()
                token_bytes = [detokenizer.token_bytes(i) for i in range(self._info.vocab_size)]
                special = [token.id for token in self._info.special_tokens]
                tokenize = functools.partial(self._backend.tokenize, preceding=Preceding.TEXT)
                ends = self._info.eos_token_ids
                self._known = AnswerVocabulary(token_bytes, special, ends, tokenize)
            return self._known
