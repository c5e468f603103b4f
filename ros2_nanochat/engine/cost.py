"""The cost of a step, learned while running: seconds by number of entries in the batch."""

from __future__ import annotations

import bisect

_EDGES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
_WEIGHT = 0.15  # of the newest measurement: follows a growing context, ignores an outlier
_PREFILL_CHUNK = 64  # entries of the prefill step on which cost estimates are based


class StepCost:
    """Running means of measured steps, with linear interpolation between them. For one thread only."""

    def __init__(self):
        self._points: dict[int, list[float]] = {}  # edge -> [entries, seconds]
        self._sorted: list[tuple[float, float]] | None = []  # None: the points have changed since

    def record(self, entries: int, seconds: float) -> None:
        """Add a measured step of `entries` entries."""
        edge = bisect.bisect_right(_EDGES, entries)
        point = self._points.get(edge)
        if point is None:
            self._points[edge] = [float(entries), seconds]
        else:
            if seconds > 4 * point[1]:
                seconds = 4 * point[1]  # limits the effect of a step that another program delayed
            point[0] += _WEIGHT * (entries - point[0])
            point[1] += _WEIGHT * (seconds - point[1])
        self._sorted = None

    @property
    def _curve(self) -> list[tuple[float, float]]:
        if self._sorted is None:  # steps are recorded more often than asked for
            self._sorted = sorted((entries, seconds) for entries, seconds in self._points.values())
        return self._sorted

    def seconds(self, entries: int, least: tuple[int, float] | None = None) -> float | None:
        """Return the expected time of a step; None before the first measurement.

        Args:
            entries: Entries of the step.
            least: `(entries, seconds)` of a smaller step whose time is known from elsewhere.
        """
        curve = self._curve
        if least is not None and curve and least[0] <= entries < curve[0][0]:
            (first_n, first_t), (next_n, next_t) = least, curve[0]
            return first_t + max(0.0, next_t - first_t) * (entries - first_n) / (next_n - first_n)
        if not curve:
            return None
        at = bisect.bisect_left(curve, (entries, 0.0))
        if at == 0:
            return curve[0][1]
        if at == len(curve):
            n, t = curve[-1]
            base_n, base_t = curve[-2] if len(curve) > 1 else (0.0, 0.0)
            slope = max(0.0, (t - base_t) / max(1.0, n - base_n))
            return t + slope * (entries - n)
        (low_n, low_t), (high_n, high_t) = curve[at - 1], curve[at]
        return low_t + (high_t - low_t) * (entries - low_n) / (high_n - low_n)

    def most(
        self, base: int, budget: float, limit: int, unknown: int, least: tuple[int, float] | None = None
    ) -> int:
        """Return how many entries fit into a step of `budget` seconds in addition to `base` others.

        Args:
            base: Entries that are already in the step.
            budget: Seconds that the step may take.
            limit: The largest result.
            unknown: The result before the first measurement.
            least: See `seconds`.
        """
        if not self._curve:
            return min(unknown, limit)
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if (self.seconds(base + middle, least) or 0.0) <= budget:
                low = middle
            else:
                high = middle - 1
        return low


class StepCosts:
    """The costs of the kinds of steps on one backend.

    Args:
        max_batch: Entries of the backend's largest batch.
    """

    def __init__(self, max_batch: int):
        self.decode = StepCost()
        """Steps in which all sequences decode, one entry each."""
        self.verify = StepCost()
        """Steps in which they decode, with guessed ids after the entry."""
        self.mixed = StepCost()
        """Steps in which some sequences are being prefilled."""
        self._max_batch = max_batch

    def decode_seconds(self, rows: int, entries: int) -> float | None:
        """Return the cost of a step in which `rows` sequences decode, with `entries` entries in its batch."""
        alone = self.decode.seconds(rows)
        if alone is None or entries <= rows:
            return alone
        known = self.verify if self.verify.seconds(entries) is not None else self.mixed
        return known.seconds(entries, least=(rows, alone))

    def prefill_seconds(self, tokens: int) -> float | None:
        """Return the time that a prefill of `tokens` tokens would take; None if it was never measured."""
        chunk = min(tokens, self._max_batch, _PREFILL_CHUNK)
        step = self.mixed.seconds(chunk) if chunk else 0.0
        return None if step is None else step * tokens / max(1, chunk)
