"""Makes the calls in one reply valid: talk is free, and a call is constrained while it is written.

While the model talks, each id is chosen as without tools and then only checked; the mask over the vocabulary
is computed once a call has begun.
"""

from __future__ import annotations

from ros2_nanochat.engine.held_form import HeldForm


class CallingForm(HeldForm):
    """The form of calls. With `required`, the reply has to be a call."""

    @property
    def _applies(self) -> bool:
        return self._text.may_call

    @property
    def free(self) -> bool:
        return not self._required and not self._text.in_call

    def allows(self, token_id: int) -> bool:
        if self.free and not self._counts(token_id):
            return True  # the model may stop talking, for example
        return super().allows(token_id)

    def _counts(self, token_id: int) -> bool:
        marks = self._text.marks
        if self.free and marks is not None and marks.in_header(token_id):
            return False  # around what is said (gpt-oss), also if a call holds the same mark
        return super()._counts(token_id) and not self._matcher.ignores(token_id)

    @property
    def whole(self) -> bool:
        return self.free or super().whole
