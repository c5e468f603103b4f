"""Rows of logits as every backend returns them, on the host or on the device that computed them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np


class Logits(ABC):
    """k rows of v logits. Valid until the next forward."""

    shape: tuple[int, int]
    """(k, v)."""

    can_sample: bool = False
    """Whether `sample` works: ids can be drawn on the device."""

    can_mask: bool = False
    """Whether `mask` works: ids can be ruled out on the device."""

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        rows = self.numpy()
        return np.array(rows, dtype=dtype) if copy else np.asarray(rows, dtype=dtype)

    @abstractmethod
    def numpy(self) -> np.ndarray:
        """Return all rows on the host, [k, v] float32."""

    @abstractmethod
    def argmax(self) -> np.ndarray:
        """Return the id of the largest logit of each row, [k]; negative if that logit is known not to be
        finite.
        """

    def sample(
        self,
        rows: Sequence[int],
        temperature: Sequence[float],
        top_p: Sequence[float],
        uniform: Sequence[float],
    ) -> np.ndarray:
        """Draw ids [n] of n rows on their device. Requires `can_sample`.

        Args:
            rows: Which rows, [n].
            temperature: Temperature of each, [n].
            top_p: Top-p of each, [n].
            uniform: A random number of each, [n], from 0 to 1. It selects the id at which the cumulative
                probability passes it (in the order of ids at top-p 1, else from the likeliest on).
        """
        raise NotImplementedError('these logits are drawn from on the host')

    def mask(self, rows: Sequence[int], allowed: np.ndarray) -> None:
        """Rule out ids of n rows, in place: their logits become so small that they are never chosen. Requires
        `can_mask`.

        Args:
            rows: Which rows, [n].
            allowed: Which ids may be chosen, [n, v] bool.
        """
        raise NotImplementedError('these logits are masked on the host')


class HostLogits(Logits):
    """Logits in host memory.

    Args:
        rows: [k, v] float32.
        order: Index in `rows` of each row, [k]; None if they are in order.
    """

    def __init__(self, rows: np.ndarray, order: np.ndarray | None = None):
        self._rows, self._order = rows, order
        self.shape = (rows.shape[0], rows.shape[1])

    def numpy(self) -> np.ndarray:
        if self._order is not None:  # copied once, and only if needed
            self._rows, self._order = self._rows[self._order], None
        return self._rows

    def argmax(self) -> np.ndarray:
        best = self._rows.argmax(axis=1)  # a NaN counts as the largest
        for row, token_id in enumerate(best.tolist()):
            if not math.isfinite(self._rows.item(row, token_id)):
                best[row] = -1
        return best if self._order is None else best[self._order]
