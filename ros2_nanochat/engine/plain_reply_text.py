"""The text of a reply without reasoning, stop strings or calls: most replies.

The model waits while Python adds an id, so this does only what is needed.
"""

from __future__ import annotations

from collections.abc import Callable

from ros2_nanochat.backends.base import Detokenizer
from ros2_nanochat.engine.call_text import CallText
from ros2_nanochat.engine.reply_text import ReplyText
from ros2_nanochat.engine.stop_strings import StopStrings
from ros2_nanochat.engine.text_delta import TextDelta
from ros2_nanochat.reasoning import ReasoningMarks


class PlainReplyText(ReplyText):
    """A `ReplyText` whose ids spell the answer and nothing else; it is `mixed` if a server says otherwise.

    Args:
        detokenizer: Turns the ids into text.
    """

    def __init__(self, detokenizer: Detokenizer):
        super().__init__(detokenizer)

    def add(self, token_id: int) -> list[TextDelta]:
        """See `ReplyText.add`."""
        text, ends, whole = self.detokenizer.add(token_id), self._ends, self._whole
        ends.append(ends[-1] + len(text) if ends else len(text))
        whole.append(not self.detokenizer.pending)
        if not text:
            return []
        self._answer.append(text)
        exact = whole[-1] and not self.mixed
        num_tokens = len(ends) if exact else len(ends) - 1
        while num_tokens and not whole[num_tokens - 1]:
            num_tokens -= 1
        self._last = TextDelta(text, num_tokens, exact)
        return [self._last]


def reply_text(
    detokenizer: Detokenizer,
    stops: StopStrings,
    marks: ReasoningMarks | None,
    reasoning: bool,
    may_stop: Callable[[str], bool] | None,
    calls: CallText | None,
) -> ReplyText:
    """Return the simplest `ReplyText` for these arguments, which are those of `ReplyText`."""
    if stops or marks is not None or calls is not None:
        return ReplyText(detokenizer, stops, marks, reasoning, may_stop, calls)
    return PlainReplyText(detokenizer)
