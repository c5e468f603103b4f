"""Finds the most likely alternative of a choice with as few forwards as possible.

The alternatives are a tree of ids. What all of them begin with needs no model, nor does what follows once one
is left: only where they part does the model decide. If the first such id tells them apart, one forward is
enough. If not, the likeliest branch is followed first, and another one only if it could still win. Knows no
model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

_Ids = tuple[int, ...]
_MOST = 8  # forwards, if an alternative is found by then: many that are alike must not hold up the others


class Choice:
    """The search for one answer.

    Args:
        alternatives: The ids of each text, the end token last; at least two that differ.

    Attributes:
        shares: How likely each alternative is that was reached, among the ids of alternatives at each step.
        beginning: The ids after which the model is to be asked next.
    """

    def __init__(self, alternatives: Mapping[str, Sequence[int]]):
        self.shares: dict[str, float] = {}
        self._ids = {text: tuple(ids) for text, ids in alternatives.items()}
        self._open: dict[_Ids, float] = {}  # beginnings that several alternatives share, and how likely
        self._asked = 0
        self._reach((), 1.0)
        self.beginning = self._likeliest

    def note(self, logits: np.ndarray) -> bool:
        """Take note of what the model gives after `beginning`.

        Args:
            logits: [v].

        Returns:
            Whether the answer is found, or none can be: a logit is not finite.
        """
        beginning, share = self.beginning, self._open.pop(self.beginning)
        following = sorted({ids[len(beginning)] for ids in self._after(beginning).values()})
        scores = logits[following].astype(np.float64)
        if not np.isfinite(scores).all():
            self.shares.clear()
            return True
        self._asked += 1
        weights = np.exp(scores - scores.max())
        for token_id, weight in zip(following, (weights / weights.sum()).tolist()):
            self._reach((*beginning, token_id), share * weight)
        best = max(self.shares.values(), default=0.0)
        if not self._open or best >= max(self._open.values()) or (self.shares and self._asked >= _MOST):
            return True
        self.beginning = self._likeliest
        return False

    def _reach(self, beginning: _Ids, share: float) -> None:
        """Go on from a beginning to where alternatives part, or to the only one."""
        after = self._after(beginning)
        if len(set(after.values())) == 1:  # two texts may have the same ids
            self.shares[next(iter(after))] = share
        else:
            self._open[tuple(os.path.commonprefix(list(after.values())))] = share

    def _after(self, beginning: _Ids) -> dict[str, _Ids]:
        return {text: ids for text, ids in self._ids.items() if ids[: len(beginning)] == beginning}

    @property
    def _likeliest(self) -> _Ids:
        return max(self._open, key=self._open.__getitem__, default=())
