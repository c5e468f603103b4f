"""Makes the answer of one reply follow a form. Reasoning before the answer is free."""

from __future__ import annotations

import numpy as np

from ros2_nanochat.answer.matcher import AnswerMatcher
from ros2_nanochat.answer.response_format import ResponseFormat
from ros2_nanochat.engine.held_form import HeldForm
from ros2_nanochat.engine.reply_text import ReplyText


class AnswerForm(HeldForm):
    """The form of an answer.

    Args:
        response_format: The form.
        matcher: Follows the answer; must be at its start.
        text: The text of the reply, which knows where its reasoning ends.
        end_ids: Ids that end the reply.
        space_ids: Ids whose text is only white space.
    """

    free = False

    def __init__(
        self,
        response_format: ResponseFormat,
        matcher: AnswerMatcher,
        text: ReplyText,
        end_ids: frozenset[int],
        space_ids: np.ndarray,
    ):
        super().__init__(matcher, text, end_ids, space_ids, required=True)
        self.response_format = response_format

    @property
    def _applies(self) -> bool:
        return self._text.in_answer

    def begins_with(self, token_id: int) -> bool:
        """Return whether an id would be the first of the answer."""
        return not self._begun and self._applies and self._matcher.allows(token_id)

    def matches(self, answer: str) -> bool:
        """Return whether a complete text follows the form. Any thread, while the reply does not run."""
        return self._matcher.matches(answer)
