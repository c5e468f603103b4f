"""What a step costs, learnt while running: seconds by number of entries in the batch."""

from __future__ import annotations

import bisect

_EDGES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
_WEIGHT = 0.15  # of the newest measurement: follows a context that grows, ignores a hiccup


class StepCost:
    """Running means of measured steps, straight lines between them."""

    def __init__(self):
        self._points: dict[int, tuple[float, float]] = {}  # edge -> (entries, seconds)
        self._curve: list[tuple[float, float]] = []

    def record(self, entries: int, seconds: float) -> None:
        """Take one step of so many entries into account."""
        edge = bisect.bisect_right(_EDGES, entries)
        known = self._points.get(edge)
        if known is not None:
            seconds = min(seconds, 4 * known[1])  # a step that another program held up says little
            seconds = known[1] + _WEIGHT * (seconds - known[1])
            entries = known[0] + _WEIGHT * (entries - known[0])
        self._points[edge] = (entries, seconds)
        self._curve = sorted(self._points.values())

    def seconds(self, entries: int, least: tuple[int, float] | None = None) -> float | None:
        """What a step of so many entries is expected to take; None before the first measurement.

        least: `(entries, seconds)` of a smaller step that is known otherwise.
        """
        curve = self._curve
        if least is not None and curve and least[0] <= entries < curve[0][0]:
            (n, t), (next_n, next_t) = least, curve[0]
            return t + max(0.0, next_t - t) * (entries - n) / (next_n - n)
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
        """How many entries fit beside `base` others within `budget` seconds, 0 to `limit`; `unknown` before
        the first measurement.
        least: see `seconds`.
        """
        if not self._curve:
            return min(unknown, limit)
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(base + middle, least) <= budget:
                low = middle
            else:
                high = middle - 1
        return low
