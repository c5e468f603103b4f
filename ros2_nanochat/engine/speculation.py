"""Guesses the next ids of a reply from the context: what followed an earlier occurrence of its last few ids
may follow again.

The model verifies several guesses in one forward, so the reply does not change. (Prompt lookup decoding: A.
Saxena, github.com/apoorvumang/prompt-lookup-decoding.) Knows costs only through a function.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_MATCH = 3  # ids that must match before a guess is made
_LONG_MATCH = 8  # matches of this length are counted separately: their guesses are mostly right
_MAX_DRAFT = 24
_GAIN = 1.05  # expected speed-up below which a draft is not worth its risk
_PRIOR = {
    False: 0.5,
    True: 0.9,
}  # initial estimate of the chance that a guess is right, by whether the match is long
_MEMORY = 0.85  # weight that the past keeps at each new result
_RECOVERY = 0.01  # per step without a draft, so that text which starts to repeat is noticed


class NGramDraft:
    """Guesses for one reply, and their success rate."""

    def __init__(self):
        self._last: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._chance = dict(_PRIOR)
        self._long = False

    def propose(
        self, entries: np.ndarray, most: int, rows: int, seconds: Callable[[int], float | None]
    ) -> list[int]:
        """Return ids that may follow `entries`; none if guessing would not pay.

        Args:
            entries: [n]: the entries so far.
            most: Maximum number of ids.
            rows: Sequences that decode in this step.
            seconds: Returns the cost of a step by the number of entries in its batch.
        """
        at = self._find(entries)
        if at is None:
            return []
        self._long = self._match_length(entries, at) >= _LONG_MATCH
        count = self._worthwhile(min(most, _MAX_DRAFT), rows, seconds)
        draft = entries[at : at + count].tolist()
        if -1 in np.sign(draft):
            draft = draft[: next(i for i, entry in enumerate(draft) if entry < 0)]
        if not draft:
            chance = self._chance[self._long]
            self._chance[self._long] = chance + _RECOVERY * max(0.0, _PRIOR[self._long] - chance)
        return draft

    def record(self, drafted: int, accepted: int) -> None:
        """Record how many ids of the last draft were right."""
        chance = self._chance[self._long]
        for held in [1.0] * accepted + [0.0] * (accepted < drafted):
            chance = _MEMORY * chance + (1 - _MEMORY) * held
        self._chance[self._long] = chance

    def _find(self, entries: np.ndarray) -> int | None:
        """Index after the last earlier occurrence of the context's last ids."""
        if len(entries) <= _MATCH:
            return None
        recent = entries[max(0, self._indexed - _MATCH) :].tolist()
        offset = max(0, self._indexed - _MATCH)
        # every run except the last one, which is the one to look for
        for end in range(max(self._indexed, _MATCH), len(entries)):
            self._last[tuple(recent[end - _MATCH - offset : end - offset])] = end
        self._indexed = len(entries)
        return self._last.get(tuple(recent[-_MATCH:]))

    @staticmethod
    def _match_length(entries: np.ndarray, at: int) -> int:
        n = min(at, _LONG_MATCH)
        same = entries[at - n : at] == entries[len(entries) - n :]
        return n if same.all() else n - 1 - int(np.flatnonzero(~same)[-1])

    def _worthwhile(self, most: int, rows: int, seconds: Callable[[int], float | None]) -> int:
        alone = seconds(rows)
        if alone is None or most <= 0:
            return 0
        chance, expected, best, best_rate = self._chance[self._long], 0.0, 0, _GAIN * rows / alone
        for count in range(1, most + 1):
            expected += chance**count
            cost = seconds(rows + count)
            if cost is None:
                break
            rate = (rows + expected) / cost
            if rate > best_rate:
                best, best_rate = count, rate
        return best
