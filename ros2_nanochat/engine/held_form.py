"""Holds one reply to a form from some point of its text on: masks the logits, forces ids, and tells when the
reply is complete.

What comes before that point, such as reasoning, is free. Runs on the engine's thread; knows nothing of
backends.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ros2_nanochat.answer.matcher import AnswerMatcher
from ros2_nanochat.engine.reply_text import ReplyText

_MOST_SPACE = 2  # white-space ids that may come between the reasoning and the form
_MOST_FORCED = 64


class HeldForm(ABC):
    """What a reply must follow, and how far it is.

    Args:
        matcher: Follows the text that has the form; must be at its start.
        text: The text of the reply, which knows where its reasoning ends.
        end_ids: Ids that end the reply.
        space_ids: Ids whose text is only white space.
        required: Nothing but reasoning and white space may come before the form.
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
        self._end_ids = end_ids
        self._space_ids = space_ids
        self._required = required
        self._num_space = 0
        self._begun = False

    @property
    @abstractmethod
    def _applies(self) -> bool:
        """Whether the next id may be part of the form: it belongs to no reasoning."""

    @property
    @abstractmethod
    def free(self) -> bool:
        """Whether the next id is chosen as without a form, and only checked with `allows`."""

    def allowed(self, size: int) -> np.ndarray:
        """Return which ids may come next, [size] bool. Do not change the array.

        Raises:
            ValueError: Following the form takes too much work.
        """
        if not self._applies:
            ids = np.ones(size, bool)
            ids[list(self._end_ids)] = False
            return ids
        known = self._matcher.allowed()[:size]
        if len(known) == size and (self._begun or not self._required):
            return known
        ids = np.zeros(size, bool)
        ids[: len(known)] = known
        if self._required and not self._begun:
            if (start := self._text.reasoning_start_id) is not None:
                ids[start] = True
            if self._may_be_space:
                ids[self._space_ids] = True
        return ids

    def allows(self, token_id: int) -> bool:
        """Return whether an id is among those that are `allowed`, at a lower cost.

        Raises:
            ValueError: Following the form takes too much work.
        """
        if not self._applies:
            return token_id not in self._end_ids
        if self._required and not self._begun:
            if token_id == self._text.reasoning_start_id:
                return True
            if self._may_be_space and token_id in self._space_ids:
                return True
        return self._matcher.allows(token_id)

    @property
    def _may_be_space(self) -> bool:
        """Whether white space may come that is not part of the form, before it begins."""
        return self._text.num_reasoning > 0 and self._num_space < _MOST_SPACE

    def accept(self, token_id: int) -> None:
        """Advance by one id. Call this before the text of the reply takes it.

        Raises:
            ValueError: The form does not allow the id, or following it takes too much work.
        """
        if not self._counts(token_id):
            return
        before = self._required and not self._begun and token_id in self._space_ids
        if before and not self._matcher.allows(token_id):
            self._num_space += 1
            return
        self._begun = True
        self._matcher.accept(token_id)

    def _counts(self, token_id: int) -> bool:
        """Whether an id is part of the text that the matcher follows."""
        return self._applies and (self._begun or token_id != self._text.reasoning_start_id)

    def forced(self) -> list[int]:
        """Return the ids that must come next, whatever the model prefers; often none."""
        if self.free or not self._applies or not self._begun or self._matcher.finished:
            return []
        return self._matcher.forced()[:_MOST_FORCED]

    @property
    def whole(self) -> bool:
        """Whether the reply may end here."""
        return self._applies and self._matcher.whole

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""
        return self._begun and self._matcher.finished and self._matcher.whole
