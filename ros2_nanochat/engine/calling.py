"""Applies the form of calls to one reply: talk is free, and a call is constrained while it is written.

While the model talks, each id is chosen as without tools and then only checked; the mask over the vocabulary
is computed once a call has begun. Runs on the engine's thread; knows nothing of backends.
"""

from __future__ import annotations

import numpy as np

from ros2_nanochat.answer.matcher import AnswerMatcher
from ros2_nanochat.engine.reply_text import ReplyText

_MOST_SPACE = 2  # white-space ids that may come between the reasoning and a call
_MOST_FORCED = 64


class CallingForm:
    """Makes the calls in one reply valid.

    Args:
        matcher: Follows the reply; must be at its start.
        text: The text of the reply, which knows where its reasoning ends and whether a call has begun.
        end_ids: Ids that end the reply.
        space_ids: Ids whose text is only white space.
        required: The reply has to be a call.
    """

    def __init__(
        self,
        matcher: AnswerMatcher,
        text: ReplyText,
        end_ids: frozenset[int],
        space_ids: np.ndarray,
        required: bool,
    ):
        self._matcher = matcher
        self._text = text
        self._end_ids = np.fromiter(sorted(end_ids), np.int64)
        self._space_ids = space_ids
        self._required = required
        self._num_space = 0
        self._begun = False

    response_format = None

    @property
    def free(self) -> bool:
        """Whether the next id is chosen as without a form, and only checked with `allows`."""
        return not self._required and not self._text.in_call

    def allowed(self, size: int) -> np.ndarray:
        """Return which ids may come next, [size] bool, also while the model may talk.

        Raises:
            ValueError: Following the form takes too much work.
        """
        if not self._text.may_call:
            free = np.ones(size, bool)
            free[self._end_ids] = False
            return free
        known = self._matcher.allowed()[:size]
        ids = np.zeros(size, bool)
        ids[: len(known)] = known
        if self._required and not self._begun:
            if (start := self._text.reasoning_start_id) is not None:
                ids[start] = True
            if self._text.num_reasoning and self._num_space < _MOST_SPACE:
                ids[self._space_ids] = True
        return ids

    def mask(self, logits: np.ndarray, strict: bool = False) -> np.ndarray:
        """Return logits [v] in which ids that are not allowed are minus infinity; the logits themselves while
        the model may talk, unless `strict`.

        Raises:
            ValueError: Following the form takes too much work.
        """
        if self.free and not strict:
            return logits
        masked = np.full(len(logits), -np.inf, np.float32)
        np.copyto(masked, logits, where=self.allowed(len(logits)))
        return masked

    def allows(self, token_id: int) -> bool:
        """Return whether an id that was chosen without a mask may come next."""
        return not self.free or not self._counts(token_id) or self._matcher.allows(token_id)

    def _counts(self, token_id: int) -> bool:
        """Whether an id is part of the text that the matcher follows."""
        if not self._text.may_call or self._matcher.ignores(token_id):
            return False
        return self._begun or token_id != self._text.reasoning_start_id

    def accept(self, token_id: int) -> None:
        """Advance by one id. Call this before the text of the reply takes it.

        Raises:
            ValueError: The form does not allow the id, or following it takes too much work.
        """
        if not self._counts(token_id):
            return
        before = self._required and not self._begun and token_id in self._space_ids
        if before and not self._matcher.allowed()[token_id]:
            self._num_space += 1
            return
        self._begun = True
        self._matcher.accept(token_id)

    def begins_with(self, token_id: int) -> bool:
        """Return False: probabilities of a choice go with another form."""
        return False

    def forced(self) -> list[int]:
        """Return the ids that must come next, whatever the model prefers; often none."""
        if self.free or not self._text.may_call or not self._begun or self._matcher.finished:
            return []
        return self._matcher.forced()[:_MOST_FORCED]

    def matches(self, answer: str) -> bool:
        """Return False: an answer has no form here."""
        return False

    @property
    def whole(self) -> bool:
        """Whether the reply may end here."""
        return (self.free and not self._text.in_call) or (self._text.may_call and self._matcher.whole)

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""
        return self._begun and self._matcher.finished and self._matcher.whole
