"""Applies a form to one reply: masks the logits, forces ids, and tells when the reply is complete.

Reasoning before the answer is free. Runs on the engine's thread; knows nothing of backends.
"""

from __future__ import annotations

import numpy as np

from ros2_nanochat.answer.matcher import AnswerMatcher
from ros2_nanochat.answer.response_format import ResponseFormat
from ros2_nanochat.engine.reply_text import ReplyText

_MOST_SPACE = 2  # white-space ids that may come between the reasoning and the answer


class AnswerForm:
    """Makes one reply follow a form.

    Args:
        response_format: The form.
        matcher: Follows the answer; must be at its start.
        text: The text of the reply, which knows where its reasoning ends.
        end_ids: Ids that end the reply.
        space_ids: Ids whose text is only white space.
        max_forced: Maximum number of ids that are forced at once.
    """

    def __init__(
        self,
        response_format: ResponseFormat,
        matcher: AnswerMatcher,
        text: ReplyText,
        end_ids: frozenset[int],
        space_ids: np.ndarray,
        max_forced: int = 64,
    ):
        self.response_format = response_format
        self._matcher = matcher
        self._text = text
        self._end_ids = np.fromiter(sorted(end_ids), np.int64)
        self._space_ids = space_ids
        self._max_forced = max_forced
        self._begun = False  # whether the answer has begun
        self._num_space = 0

    free = False
    """Whether the next id is chosen as without a form."""

    def allows(self, token_id: int) -> bool:
        """Return True: ids are chosen with the mask."""
        return True

    def allowed(self, size: int) -> np.ndarray:
        """Return which ids may come next, [size] bool.

        Raises:
            ValueError: Following the form takes too much work.
        """
        if not self._text.in_answer:
            free = np.ones(size, bool)
            free[self._end_ids] = False
            return free
        known = self._matcher.allowed()[:size]
        ids = np.zeros(size, bool)
        ids[: len(known)] = known
        if not self._begun:
            if (start := self._text.reasoning_start_id) is not None:
                ids[start] = True
            if self._text.num_reasoning and self._num_space < _MOST_SPACE:
                ids[self._space_ids] = True
        return ids

    def mask(self, logits: np.ndarray, strict: bool = False) -> np.ndarray:
        """Return a copy of logits [v] in which ids that the form does not allow are minus infinity.

        Always `strict`.

        Raises:
            ValueError: Following the form takes too much work.
        """
        masked = np.full(len(logits), -np.inf, np.float32)
        np.copyto(masked, logits, where=self.allowed(len(logits)))
        return masked

    def accept(self, token_id: int) -> None:
        """Advance by one id. Call this before the text of the reply takes it.

        Raises:
            ValueError: The form does not allow the id, or following it takes too much work.
        """
        if not self._text.in_answer or (not self._begun and token_id == self._text.reasoning_start_id):
            return
        if not self._begun and token_id in self._space_ids and not self._matcher.allowed()[token_id]:
            self._num_space += 1
            return
        self._begun = True
        self._matcher.accept(token_id)

    def begins_with(self, token_id: int) -> bool:
        """Return whether an id would be the first of the answer."""
        return not self._begun and self._text.in_answer and bool(self._matcher.allowed()[token_id])

    def forced(self) -> list[int]:
        """Return the ids that must come next, whatever the model prefers; often none."""
        if not self._text.in_answer or not self._begun or self._matcher.finished:
            return []
        return self._matcher.forced()[: self._max_forced]

    def matches(self, answer: str) -> bool:
        """Return whether a complete text follows the form. Any thread, while the reply does not run."""
        return self._matcher.matches(answer)

    @property
    def whole(self) -> bool:
        """Whether the reply may end here."""
        return self._text.in_answer and self._matcher.whole

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return self._begun and self._matcher.finished and self._matcher.whole
