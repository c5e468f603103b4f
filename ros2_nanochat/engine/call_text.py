"""Finds where calls begin in the text of a reply. From there on to its end, the text belongs to the calls.

Knows no model and no grammar.
"""

from __future__ import annotations

from collections.abc import Mapping

from ros2_nanochat.answer.call_form import CallForm


class CallText:
    """Looks for the opening of calls in a text that arrives in pieces.

    Holds back an end that may be the beginning of the opening, so that no part of a call is given out as
    text.

    Args:
        form: What the reply may look like.
        special: Ids of the special tokens of the model, by their texts.
    """

    def __init__(self, form: CallForm, special: Mapping[str, int]):
        self.special = form.special_ids(special)
        """Texts of the special tokens that calls contain, by their ids."""
        self.opening_id = form.opening_id(special)
        self._opening = form.format.opening
        self._only_at_start = form.format.only_at_start
        self._looking = self.opening_id is None and form.choice != 'none'
        self.opened = form.begins_with_call
        """Whether the calls have begun. Set it when the token of the opening comes."""
        self.pending = ''
        """Text that is held back."""

    def split(self, text: str) -> tuple[str, str]:
        """Return `(final text, text of the calls)` of the next piece of text."""
        if self.opened:
            return '', text
        if not self._looking:
            return text, ''
        text, self.pending = self.pending + text, ''
        if self._only_at_start:
            return self._split_start(text)
        at = text.find(self._opening)
        if at >= 0:
            self.opened = True
            return text[:at], text[at:]
        for n in range(min(len(self._opening) - 1, len(text)), 0, -1):
            if self._opening.startswith(text[-n:]):
                self.pending = text[-n:]
                return text[:-n], ''
        return text, ''

    def _split_start(self, text: str) -> tuple[str, str]:
        rest = text.lstrip(' \t\r\n')
        if rest.startswith(self._opening):
            self.opened = True
            return text[: len(text) - len(rest)], rest
        if self._opening.startswith(rest):
            self.pending = rest
            return text[: len(text) - len(rest)], ''
        self._looking = False
        return text, ''

    def in_header(self, header: str) -> str:
        """Return the text of the calls in the header of a message (gpt-oss), '' if none has begun."""
        at = -1 if self.opening_id is not None or self.opened else header.find(self._opening)
        if at < 0 or not self._looking:
            return ''
        self.opened = True
        return header[at:]

    def flush(self) -> str:
        """End the text; what was held back is final."""
        text, self.pending = self.pending, ''
        return text
