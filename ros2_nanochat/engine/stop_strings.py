"""Stop strings, also such that contain special tokens: each of these is its text or its id, which gives no
text.

Knows no vocabulary; `inputs.Inputs` finds the special tokens in the strings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ros2_nanochat.engine.held_back import HeldBack


class StopStrings(HeldBack):
    """Looks for stop strings in a text and the special tokens between its letters.

    A special token that is in none of the strings is as if it were not there: it gives no text.

    Args:
        strings: The stop strings.
        special: Of each string that contains special tokens, their texts by their ids.
    """

    def __init__(self, strings: Sequence[str], special: Mapping[str, Mapping[int, str]] | None = None):
        special = special or {}
        super().__init__([string for string in strings if string not in special])
        self._mixed = tuple(special.items())
        self.special_ids = frozenset(token_id for tokens in special.values() for token_id in tokens)
        """Ids of the special tokens in the strings."""
        self._forget()

    def _forget(self) -> None:
        self.pending = ''
        # of each string: how much of it has come (a number of its letters), and as how many letters of text
        self._begun: list[dict[int, int]] = [{} for _ in self._mixed]

    def split(self, text: str) -> tuple[str, bool, str]:
        """See `HeldBack.split`."""
        if not self._mixed:
            return super().split(text)
        known, self.pending = len(self.pending), ''
        before, found, behind = super().split(text)
        start, end = len(before), len(text) - len(behind)
        for at in range(known, end):
            length = self._add_letter(text[at])
            if length is not None:
                start = at + 1 - length if not found or at + 1 < end else min(start, at + 1 - length)
                found, end = True, at + 1
                break
        if found:
            self._forget()
            return text[:start], True, text[end:]
        kept = max(len(self.pending), *(max(begun.values(), default=0) for begun in self._begun))
        self.pending = text[len(text) - kept :]
        return text[: len(text) - kept], False, ''

    def take(self, token_id: int) -> tuple[str, bool]:
        """Take a special token; return `(text that became final, whether a stop string follows it)`."""
        lengths = []
        for n, (string, tokens) in enumerate(self._mixed):
            word = tokens.get(token_id)
            if word is not None:
                begun = self._begun[n]
                ways = [way for way in ((0, 0), *begun.items()) if string.startswith(word, way[0])]
                for at, length in ways:
                    begun[at + len(word)] = max(length, begun.get(at + len(word), 0))
                lengths += _complete(string, begun)
        if not lengths:
            return '', False
        text = self.pending[: len(self.pending) - max(lengths)]
        self._forget()
        return text, True

    def flush(self, text: str = '') -> str:
        """See `HeldBack.flush`."""
        text = super().flush(text)
        self._forget()
        return text

    def _add_letter(self, letter: str) -> int | None:
        """Take a letter; return the length of the longest stop string that ends with it, or None."""
        lengths: list[int] = []
        for n, (string, _) in enumerate(self._mixed):
            begun = self._begun[n]
            if begun or string[0] == letter:
                ways = [way for way in ((0, 0), *begun.items()) if string[way[0]] == letter]
                self._begun[n] = begun = {}
                for at, length in ways:
                    begun[at + 1] = max(length + 1, begun.get(at + 1, 0))
                lengths += _complete(string, begun)
        return max(lengths, default=None)


def _complete(string: str, begun: Mapping[int, int]) -> list[int]:
    return [begun[len(string)]] if len(string) in begun else []
