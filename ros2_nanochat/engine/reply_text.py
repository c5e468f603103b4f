"""From ids to final text: detokenizes, tells reasoning from the answer, and cuts exactly at a stop string.

Knows nothing of threads or models; one `ReplyText` serves one reply.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

from ros2_nanochat.backends.base import Detokenizer
from ros2_nanochat.engine.call_text import CallText
from ros2_nanochat.engine.held_back import HeldBack
from ros2_nanochat.engine.stop_strings import StopStrings
from ros2_nanochat.engine.text_delta import TextDelta
from ros2_nanochat.reasoning import ReasoningMarks


class ReplyText:
    """Takes the ids of a reply and gives its text piece by piece.

    Args:
        detokenizer: Turns the ids into text.
        stop_strings: End the answer where one begins.
        marks: The model's reasoning marks, or None.
        reasoning: Whether the prompt ended inside the reasoning.
        may_stop: Tells whether an answer may end as it stands; None if always. A stop string after an answer
            that may not end belongs to it.
        calls: Finds calls of tools; None if there are none.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stop_strings: Sequence[str] | StopStrings = (),
        marks: ReasoningMarks | None = None,
        reasoning: bool = False,
        may_stop: Callable[[str], bool] | None = None,
        calls: CallText | None = None,
    ):
        self._calls = calls
        self.detokenizer = detokenizer
        self.marks = marks
        self._reasoning = reasoning
        self._label = self._label_held = ''  # of the reasoning: what is expected, and what of it has arrived
        # of the next message, while it arrives
        self._header: str | None = '' if calls is not None and marks and marks.header_ids else None
        self._trim = False  # white space between the reasoning and the answer belongs to neither
        self._stops = stop_strings if isinstance(stop_strings, StopStrings) else StopStrings(stop_strings)
        self._may_stop = may_stop
        self._seen_header = False
        self._switches = {
            inside: HeldBack([marks.end if inside else marks.start] if marks and not marks.header_ids else [])
            for inside in (False, True)
        }
        self._answer: list[str] = []
        self._last: TextDelta | None = None
        self._ends: list[int] = []  # after each id: number of characters spelled so far
        self._whole: list[bool] = []  # after each id: whether the text ends with a whole character
        self._begun = False  # whether the answer has begun; a mark spelled out in it belongs to it
        self.mixed = False  # whether the ids spell more than the text: reasoning within it, half a character
        self.stopped = False
        """Whether a stop string was found; the reply ends before it."""
        self.num_reasoning = 0
        """Ids up to the end of the reasoning, including its marks."""
        self.num_partial = 0
        """At the end: number of the last ids that spell only a part of a character."""

    def add(self, token_id: int) -> list[TextDelta]:
        """Take one id; return the text that became final."""
        begins_header = self.marks is not None and token_id in self.marks.header_ids
        may_stop = token_id in self._stops.special_ids
        mark = self._mark_of_calls(token_id)
        is_mark = self.marks is not None and token_id == (
            self.marks.end_id if self._reasoning else self.marks.start_id
        )
        if is_mark or begins_header or mark is not None:
            text, partial = self.detokenizer.flush_whole()
            self.mixed = self.mixed or partial != 0  # the ids spell half a character more than the text has
        else:
            text = self.detokenizer.whole_characters() if may_stop else ''
            text += self.detokenizer.add(token_id)
        text += mark or ''
        self._ends.append((self._ends[-1] if self._ends else 0) + len(text))
        self._whole.append(not self.detokenizer.pending)
        deltas: list[TextDelta] = []
        if may_stop and mark is None and not self._reasoning:
            before, text = (text, '') if self._header is None else ('', text)
            self._stop_at(token_id, before, deltas)
            if self.stopped:
                return deltas
        if mark is not None:
            self._add_mark(text, mark, deltas)
        elif begins_header or self._header is not None:
            self._add_to_header(token_id, text, deltas)
        elif is_mark:
            self._emit(self._switches[self._reasoning].flush(text), 0, deltas)
            self._switch(0, deltas)
        else:
            self._emit_marked(text, deltas)
        return deltas

    def flush(self, end_id: int | None = None) -> list[TextDelta]:
        """End the reply; return the text that was held back, without half a character and its ids.

        Args:
            end_id: The id with which it ended, if it was not added.
        """
        deltas: list[TextDelta] = []
        if not self.stopped:
            rest, partial = self.detokenizer.flush_whole()
            if self._ends:
                self._end_at_a_whole_character(len(rest), partial)
            self._stop_at(end_id, rest, deltas)
            if not self.stopped and (rest := self._stops.flush()):
                deltas.append(self._delta(rest, 0))
        return deltas

    def _end_at_a_whole_character(self, num_characters: int, partial: int | None) -> None:
        """Note that the ids spell `num_characters` more, and that the last `partial` ids do not."""
        kept = num_ids = len(self._ends)
        if partial is None:
            while kept and not self._whole[kept - 1]:
                kept -= 1
        else:
            kept -= partial
        end = self._ends[-1] + num_characters
        if partial is not None and kept:
            self._ends[kept - 1 :] = [end] * (num_ids - kept + 1)
            self._whole[kept - 1] = True
        self._ends[-1] = end
        self.num_partial = num_ids - kept

    @property
    def in_answer(self) -> bool:
        """Whether the next id belongs to the answer, not to reasoning or a header."""
        if self.marks is not None and self.marks.header_ids:
            return self._seen_header and self._header is None and not self._reasoning
        return not self._reasoning

    @property
    def may_call(self) -> bool:
        """Whether the next id may belong to a call, or to the text before it."""
        if self.marks is not None and self.marks.header_ids:
            return self.in_answer or self.in_call or self._header is not None
        return not self._reasoning

    @property
    def in_call(self) -> bool:
        """Whether calls have begun."""
        return self._calls is not None and self._calls.opened and not self._reasoning

    @property
    def reasoning_start_id(self) -> int | None:
        """The id with which the model may still begin to reason; None if it cannot."""
        if self.marks is None or self.marks.header_ids or self._reasoning or self.num_reasoning:
            return None
        return self.marks.start_id

    @property
    def answer(self) -> str:
        """The answer so far."""
        return ''.join(self._answer)

    def given(self, num_tokens: int) -> tuple[int, bool]:
        """Return, for the end of a reply of `num_tokens` ids, `(ids whose text was given, whether they spell
        exactly that)`.
        """
        if not self.stopped:
            kept = num_tokens - self.num_partial
            spelled = self._ends[kept - 1] if kept else 0
            whole = not self.num_partial or spelled == self._ends[-1]
            return kept, whole and not self.mixed
        return (self._last.num_tokens, self._last.exact) if self._last else (0, True)

    def _add_to_header(self, token_id: int, text: str, deltas: list[TextDelta]) -> None:
        if self._header is None:
            self._emit(text, 0, deltas)
            self._header = ''
        elif self.marks is None or token_id != self.marks.message_id:
            self._header += text
            if self._calls is not None and (call := self._calls.in_header(self._header)):
                self._header, self._seen_header, self._reasoning = None, True, False
                self._emit(call, 0, deltas)
        else:
            if self._header.strip().endswith(self.marks.label) != self._reasoning:
                self._switch(0, deltas)
                self._label = ''
            if not self._reasoning and not self._begun:
                self.num_reasoning = len(self._ends)
            self._header, self._seen_header = None, True

    def _switch(self, behind: int, deltas: list[TextDelta]) -> None:
        """Begin or end the reasoning at a mark, after whose beginning the ids spell `behind` more
        characters.
        """
        if self._reasoning:
            self._trim = True
            self.num_reasoning = len(self._ends)
        else:
            self._label, self._label_held = self.marks.label if self.marks else '', ''
            self.mixed = self.mixed or self._begun
            if not self.stopped and (rest := self._stops.flush()):
                deltas.append(self._delta(rest, behind))
        self._reasoning = not self._reasoning

    def _emit_marked(self, text: str, deltas: list[TextDelta]) -> None:
        while text and not self.stopped:
            held = self._switches[self._reasoning]
            text = held.pending + text
            before, match, behind = held.split(text)
            if not self._reasoning and (self._begun or before.strip()):
                held.pending = ''
                self._emit(text, 0, deltas)
                return
            self._emit(before, len(text) - len(before), deltas)
            if not match:
                return
            self._switch(len(text) - len(before), deltas)
            text = behind

    def _emit(self, text: str, behind: int, deltas: list[TextDelta]) -> None:
        """Give out a text, after which the ids spell `behind` more characters."""
        if self._trim and not self._reasoning:
            text = text.lstrip()
            self._trim = not text
        if not text or self.stopped:
            return
        if self._reasoning:
            text = self._label_held + text
            if len(text) < len(self._label) and self._label.startswith(text):
                self._label_held = text
                return
            text, self._label, self._label_held = text.removeprefix(self._label), '', ''
            if text:
                deltas.append(self._delta(text, behind))
            return
        self._begun = self._begun or bool(text.strip())
        if self._calls is None:
            self._emit_answer(text, behind, deltas)
            return
        text, call = self._calls.split(text)
        if text:
            self._emit_answer(text, behind + len(self._calls.pending) + len(call), deltas)
        if call and not self.stopped:
            if rest := self._stops.flush():
                deltas.append(self._delta(rest, behind + len(call)))
            deltas.append(self._delta(call, behind, call=True))

    def _emit_answer(self, text: str, behind: int, deltas: list[TextDelta]) -> None:
        """Give out a text of the answer, as far as no stop string can begin in it."""
        text = self._stops.pending + text
        before, self.stopped, _ = self._stops.split(text)
        if self.stopped and self._may_stop is not None and not self._may_stop(self.answer + before):
            before, self.stopped = text, False
        if before:
            deltas.append(self._delta(before, behind + len(text) - len(before)))

    def _stop_at(self, token_id: int | None, text: str, deltas: list[TextDelta]) -> None:
        """Give out the text before a special token, and stop if a stop string ends with the token."""
        self._emit(self._switches[self._reasoning].flush(text), 0, deltas)
        if self._calls is not None and (held := self._calls.flush()):
            self._emit_answer(held, 0, deltas)
        if token_id is None or self.stopped or self._reasoning or self.in_call:
            return
        held = self._stops.pending
        before, self.stopped = self._stops.take(token_id)
        if self.stopped and self._may_stop is not None and not self._may_stop(self.answer + before):
            before, self.stopped = held, False
        if before:
            deltas.append(self._delta(before, len(held) - len(before)))

    def _mark_of_calls(self, token_id: int) -> str | None:
        """The text of a special token that belongs to calls; None if it is none, or means something else."""
        calls = self._calls
        if calls is None or self._reasoning or not (calls.opened or token_id == calls.opening_id):
            return None
        return calls.special.get(token_id)

    def _add_mark(self, text: str, mark: str, deltas: list[TextDelta]) -> None:
        """Take a special token of calls, and the text that it completed."""
        assert self._calls is not None
        before = self._switches[False].flush(text[: len(text) - len(mark)])
        if before:
            self._emit(before, len(mark), deltas)
        self._calls.opened = True
        self._emit(mark, 0, deltas)

    def _delta(self, text: str, behind: int, call: bool = False) -> TextDelta:
        """A delta, after which the ids spell `behind` more characters."""
        if not self._reasoning and not call:
            self._answer.append(text)
        given = self._ends[-1] - behind
        index = bisect.bisect_left(self._ends, given)
        exact = self._ends[index] == given and self._whole[index] and not self.mixed
        num_tokens = index + 1 if exact else index
        while num_tokens and not self._whole[num_tokens - 1]:
            num_tokens -= 1
        self._last = TextDelta(text, num_tokens, exact, self._reasoning, call)
        return self._last
