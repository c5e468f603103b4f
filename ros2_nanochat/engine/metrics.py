"""Counters and histograms of the engine, which any thread can read as one snapshot."""

from __future__ import annotations

import bisect
from collections import Counter

from ros2_nanochat.states import FinishReason

_BOUNDS = tuple(
    10 ** (exponent / 8) for exponent in range(-48, 33)
)  # 1 microsecond to 10,000 seconds, eight steps per decade
_COUNT_BOUNDS = tuple(float(n) for n in (*range(1, 17), 20, 24, 32, 48, 64, 96, 128, 256, 512, 1024))


class Histogram:
    """Counts of values by size."""

    def __init__(self, bounds: tuple[float, ...] = _BOUNDS):
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self.count += 1
        self.sum += value

    def quantile(self, share: float) -> float | None:
        """Return the value below which a share of all values lie (the upper bound of its class); None without
        values.

        Args:
            share: From 0 to 1.
        """
        if not self.count:
            return None
        seen = 0
        for bound, count in zip((*self._bounds, self._bounds[-1]), self._counts):
            seen += count
            if seen >= share * self.count:
                return bound
        return self._bounds[-1]

    def snapshot(self) -> dict:
        """Return `count`, `sum`, `mean`, `p50` and `p99`."""
        return {
            'count': self.count,
            'sum': self.sum,
            'mean': self.sum / self.count if self.count else None,
            'p50': self.quantile(0.5),
            'p99': self.quantile(0.99),
        }


_COUNTERS = (
    'requests',
    *(f'finished_{reason}' for reason in FinishReason),
    'prompt_tokens',
    'prefilled_tokens',
    'reused_tokens',
    'shared_tokens',
    'generated_tokens',
    'drafted_tokens',
    'accepted_tokens',
    'evictions',
    'preemptions',
    'parked',
    'unparked',
    'steps',
    'failures',
)


class Metrics:
    """Everything that the engine counts.

    Attributes:
        counters: `requests`, `finished_<reason>`, `prompt_tokens`, `prefilled_tokens`, `reused_tokens`,
            `shared_tokens` (reused from another conversation), `generated_tokens`, `drafted_tokens`,
            `accepted_tokens`, `evictions`, `preemptions`, `parked`, `unparked`, `steps`, `failures`.
        histograms: In seconds: `time_to_first_token`, `time_per_token`, `queue_wait`, `step`, `overhead` (of
            a step, without the forward), `stop_to_idle`. As a number: `batch_size` (sequences that decode).
    """

    def __init__(self):
        self.counters: Counter[str] = Counter(dict.fromkeys(_COUNTERS, 0))
        self.histograms = {
            name: Histogram()
            for name in (
                'time_to_first_token',
                'time_per_token',
                'queue_wait',
                'step',
                'overhead',
                'stop_to_idle',
            )
        }
        self.histograms['batch_size'] = Histogram(_COUNT_BOUNDS)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter. Call it on the engine's thread."""
        self.counters[name] += by

    def observe(self, name: str, value: float) -> None:
        """Add to a histogram. Call it on the engine's thread."""
        self.histograms[name].add(value)

    def snapshot(self) -> dict:
        """Return all counters and histograms as one dictionary."""
        return {
            **dict(self.counters.copy()),
            **{name: histogram.snapshot() for name, histogram in self.histograms.items()},
        }
