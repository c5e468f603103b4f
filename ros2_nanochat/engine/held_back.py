"""Text that is held back because it may be the beginning of a string that is looked for."""

from __future__ import annotations

from collections.abc import Sequence


class HeldBack:
    """Looks for strings in a text that arrives in deltas; holds back an end that may be the beginning of
    one.
    """

    def __init__(self, needles: Sequence[str]):
        self._needles = tuple(needles)
        self._beginnings = {needle[:n] for needle in needles for n in range(1, len(needle))}
        self._longest = max(map(len, needles), default=1) - 1
        self.pending = ''

    def split(self, text: str) -> tuple[str, bool, str]:
        """`(final text, whether a needle follows it, text after the needle)` of a text that starts with what
        was pending.
        """
        if not self._needles:
            return text, False, ''
        self.pending = ''
        found = [(at + len(needle), at) for needle in self._needles if (at := text.find(needle)) >= 0]
        if found:  # the one that is complete first, as if the text came letter by letter
            end, start = min(found)
            return text[:start], True, text[end:]
        for n in range(min(self._longest, len(text)), 0, -1):
            if text[-n:] in self._beginnings:
                self.pending = text[-n:]
                return text[:-n], False, ''
        return text, False, ''

    def flush(self, text: str = '') -> str:
        """End the text; all that was held back is final."""
        text, self.pending = self.pending + text, ''
        return text
