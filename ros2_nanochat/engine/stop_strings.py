"""Stop strings, including those that contain special tokens: each of these is its text or its id, which gives
no text.

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
        self._mixed = [_Mixed(string, tokens) for string, tokens in special.items()]
        self.special_ids = frozenset(token_id for tokens in special.values() for token_id in tokens)
        """Ids of the special tokens in the strings."""

    def __bool__(self) -> bool:
        return bool(self._needles or self._mixed)

    def _forget(self) -> None:
        self.pending = ''
        for mixed in self._mixed:
            mixed.forget()

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
        kept = max([len(self.pending), *(mixed.longest() for mixed in self._mixed if mixed.begun)])
        self.pending = text[len(text) - kept :]
        return text[: len(text) - kept], False, ''

    def take(self, token_id: int) -> tuple[str, bool]:
        """Take a special token; return `(text that became final, whether a stop string follows it)`."""
        lengths = [mixed.take(token_id) for mixed in self._mixed]
        complete = [length for length in lengths if length is not None]
        if not complete:
            return '', False
        text = self.pending[: len(self.pending) - max(complete)]
        self._forget()
        return text, True

    def flush(self, text: str = '') -> str:
        """See `HeldBack.flush`."""
        text = super().flush(text)
        self._forget()
        return text

    def _add_letter(self, letter: str) -> int | None:
        """Take a letter; return the length of the longest stop string that ends with it, or None."""
        lengths = [mixed.add(letter) for mixed in self._mixed if mixed.begun or letter == mixed.first]
        return max([length for length in lengths if length is not None], default=None)


class _Mixed:
    """A stop string that contains special tokens, and which of its beginnings have just come.

    Beginnings are the bits of one number (the Shift-And algorithm): a letter moves all of them at once, so
    that its cost does not grow with their number. Bit n of a number stands for the first n + 1 letters.

    Args:
        string: The stop string.
        tokens: The texts of its special tokens, by their ids.
    """

    def __init__(self, string: str, tokens: Mapping[int, str]):
        self.first = string[0]
        self.begun = False
        """Whether a beginning has come."""
        self._plain = 0  # the beginnings that came as text
        # those with special tokens that came as ids, which gave no text: by the letters that the text lacks
        self._silent: dict[int, int] = {}
        self._length = len(string)
        self._places: dict[str, int] = {}  # of each letter
        for n, letter in enumerate(string):
            self._places[letter] = self._places.get(letter, 0) | 1 << n
        self._ends: dict[int, tuple[int, int]] = {}  # of each special token: its length, where its text ends
        for token_id, word in tokens.items():
            begins = [n for n in range(len(string)) if string.startswith(word, n)]
            self._ends[token_id] = len(word), sum(1 << n + len(word) - 1 for n in begins)

    def forget(self) -> None:
        """Forget all that came."""
        self.begun, self._plain, self._silent = False, 0, {}

    def add(self, letter: str) -> int | None:
        """Take a letter; return how many letters of text the string is if it is complete now, or None."""
        places = self._places.get(letter, 0)
        self._plain = (self._plain << 1 | 1) & places
        if self._silent:
            moved = {lacks: begun << 1 & places for lacks, begun in self._silent.items()}
            self._silent = {lacks: begun for lacks, begun in moved.items() if begun}
        self.begun = bool(self._plain or self._silent)
        return self._complete()

    def take(self, token_id: int) -> int | None:
        """Take a special token; return the same as `add`."""
        if token_id not in self._ends:
            return None
        length, ends = self._ends[token_id]
        moved = {lacks + length: begun << length & ends for lacks, begun in self._silent.items()}
        moved[length] = (self._plain << length | 1 << length - 1) & ends
        for lacks, begun in moved.items():
            if begun:
                self._silent[lacks] = self._silent.get(lacks, 0) | begun
        self.begun = bool(self._plain or self._silent)
        return self._complete()

    def longest(self) -> int:
        """How many letters of text the longest beginning is."""
        silent = [begun.bit_length() - lacks for lacks, begun in self._silent.items()]
        return max(self._plain.bit_length(), *silent) if silent else self._plain.bit_length()

    def _complete(self) -> int | None:
        if self._plain >> self._length - 1:
            return self._length
        lacking = [lacks for lacks, begun in self._silent.items() if begun >> self._length - 1]
        return self._length - min(lacking) if lacking else None
