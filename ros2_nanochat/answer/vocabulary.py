"""A model's vocabulary in the form that llguidance needs: the bytes of each token, and how to tokenize a
text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ros2_nanochat.answer.cache import BoundedCache
from ros2_nanochat.answer.grammars import library, limits
from ros2_nanochat.answer.matcher import AnswerMatcher

_MOST_KEPT, _MOST_BYTES = 64, 1 << 20  # compiled grammars, and the sum of their sizes as text


class AnswerVocabulary:
    """Makes the matchers of one model. Thread-safe. Create it only once: reading 50,000 tokens takes 0.3 s.

    Args:
        token_bytes: The bytes of each id inside a text; empty if it gives no text.
        special_ids: Ids that never occur in an answer, including the end tokens.
        end_ids: Ids that end a reply, at least one.
        tokenize: Turns a text that follows other text into ids, without looking for special tokens.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        special_ids: Iterable[int],
        end_ids: Iterable[int],
        tokenize: Callable[[str], list[int]],
    ):
        self.size = len(token_bytes)
        self.end_ids = frozenset(end_ids)
        self.special_ids = frozenset(special_ids) | self.end_ids
        self.tokenize = tokenize
        llguidance = library()
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Tokens(self, token_bytes)), eos_token=min(self.end_ids)
        )
        never = np.zeros(self.size, bool)
        never[list(self.special_ids)] = True
        never[[i for i, data in enumerate(token_bytes) if not data]] = True
        self.space_ids = np.array([i for i, data in enumerate(token_bytes) if data and not data.strip()])
        """Ids whose text is only white space."""
        self.never = never
        """[v] bool: ids that no form allows, unless they end the reply."""
        self._compiled: BoundedCache = BoundedCache(_MOST_KEPT, _MOST_BYTES)

    def matcher(self, grammar: str, end_ids: Iterable[int] = (), marks: Iterable[int] = ()) -> AnswerMatcher:
        """Make a matcher at the start of an answer.

        Args:
            grammar: The `grammar` of a `ResponseFormat`.
            end_ids: Further ids that end this reply.
            marks: Special tokens that the grammar contains.

        Raises:
            ValueError: The grammar takes more work than is allowed, or nothing satisfies it.
        """
        raw = self._compiled.get(grammar, len(grammar), lambda: self._compile(grammar))
        matcher = AnswerMatcher(raw.deep_copy(), self, self.end_ids | frozenset(end_ids), marks)
        matcher.check()
        return matcher

    def _compile(self, grammar: str) -> Any:
        return library().LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits())


class _Tokens:
    """The tokenizer interface that llguidance expects."""

    bos_token_id = None

    def __init__(self, vocabulary: AnswerVocabulary, token_bytes: Sequence[bytes]):
        self._vocabulary = vocabulary
        self.eos_token_id = min(vocabulary.end_ids)
        self.special_token_ids = sorted(vocabulary.special_ids)
        special = vocabulary.special_ids
        self.tokens = [b'' if i in special else data for i, data in enumerate(token_bytes)]

    def __call__(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text)
