"""The state of one answer while it is written: which tokens may come next, which must, and whether it is
complete.

Knows token ids and bytes; nothing of logits or models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ros2_nanochat.errors import shorten

if TYPE_CHECKING:
    from ros2_nanochat.answer.vocabulary import AnswerVocabulary


class AnswerMatcher:
    """Follows one answer through its form. Not thread-safe.

    Args:
        raw: The `LLMatcher` of llguidance.
        vocabulary: The vocabulary that made it.
        end_ids: Ids that end the reply.
        marks: Special tokens that the form contains.
    """

    def __init__(
        self,
        raw: Any,
        vocabulary: AnswerVocabulary,
        end_ids: frozenset[int],
        marks: Iterable[int] = (),
    ):
        self._raw = raw
        self._vocabulary = vocabulary
        self._ends = end_ids
        self._end_ids = np.array(sorted(end_ids))
        self._never = vocabulary.never
        if marks := list(marks):
            self._never = self._never.copy()
            self._never[marks] = False
        self._may_come = np.packbits(~self._never, bitorder='little')
        # of the current state, once computed
        self._mask: np.ndarray | None = None
        self._forced: list[int] | None = None

    def check(self) -> None:
        """Check that the form can be satisfied.

        Raises:
            ValueError: Nothing satisfies the form, or following it takes too much work.
        """
        self._check_work()
        if not self._raw.is_stopped() and self.allowed().any():
            return
        raise ValueError('response_format is not valid: no text satisfies it')

    def allowed(self) -> np.ndarray:
        """Return the ids that may come next, [v] bool; the end tokens are among them if the answer is
        complete.

        If only one text can follow, this is the first of its `forced` ids. Do not change the array.

        Raises:
            ValueError: Finding them takes more work than is allowed.
        """
        if self._mask is None:
            bits = np.frombuffer(self._raw.compute_bitmask(), np.uint8)
            self._check_work()
            bits = bits[: len(self._may_come)] & self._may_come
            mask = np.unpackbits(bits, count=self._vocabulary.size, bitorder='little').view(bool)
            if self.whole:
                mask[self._end_ids] = True
            self._mask = mask
        return self._mask

    def _check_work(self, detail: str = '') -> None:
        if self._raw.is_error():
            error = self._raw.get_error().replace('<non-verbose/>', '').partition('<backtrace>')[0]
            reason = shorten(error.strip())
            if reason.startswith('NoExtension'):
                raise ValueError('response_format is not valid: no text satisfies it')
            raise ValueError(f'response_format cannot be followed: {detail}{reason}')

    def forced(self) -> list[int]:
        """Return the ids that must come next, whatever the model prefers; often none."""
        if self._forced is None:
            ids = self._raw.compute_ff_tokens()
            self._forced = [] if any(self._never[i] for i in ids) else ids
        return self._forced

    def ignores(self, token_id: int) -> bool:
        """Return whether an id has no text that the form could see, and is none of its marks."""
        return token_id >= len(self._never) or bool(self._never[token_id])

    def allows(self, token_id: int) -> bool:
        """Return whether an id is among those that are `allowed`, without computing all of them.

        Raises:
            ValueError: Finding that out takes more work than is allowed.
        """
        if self._mask is not None or self.forced():
            return not token_id >= self._vocabulary.size and bool(self.allowed()[token_id])
        if token_id in self._ends and self.whole:
            return True
        if self.ignores(token_id):
            return False
        allowed = bool(self._raw.validate_tokens([int(token_id)]))
        if not allowed:
            self._check_work()
        return allowed

    def accept(self, token_id: int) -> None:
        """Advance by one id that `allowed` contains.

        Raises:
            ValueError: The id is not allowed, or following it takes more work than is allowed.
        """
        self._mask = self._forced = None
        if not self._raw.consume_token(int(token_id)):
            self._check_work(f'token id {token_id} is not allowed: ')

    @property
    def whole(self) -> bool:
        """Whether the answer may end here."""
        return self._raw.is_accepting()

    @property
    def finished(self) -> bool:
        """Whether the answer can only end here."""
        return self._raw.is_stopped()

    def matches(self, text: str) -> bool:
        """Return whether a complete text is an answer in this form. Does not change the state."""
        fresh = self._raw.deep_copy()
        fresh.reset()
        ids = self._vocabulary.tokenize(text)
        return fresh.try_consume_tokens(ids) == len(ids) and fresh.is_accepting()
