"""What the benchmark of standing questions reports, also of robots that failed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
bench = pytest.importorskip('benchmarks.bench_watch_fleet')


def change(told=True, seen=True):
    fault = '' if told else 'wrong answer' if seen else 'nobody looked'
    return SimpleNamespace(told=told, seen=[0] * seen, fault=fault, delay=0.5 if told else float('inf'))


@pytest.mark.parametrize(
    'found, good',
    [
        ([[change()] * 10, [change()] * 10], True),
        ([[change()] * 10, [*[change()] * 9, change(told=False)]], True),
        ([[change()] * 10, [*[change()] * 8, *[change(told=False)] * 2]], False),
        ([[change()] * 20, [*[change()] * 19, change(told=False, seen=False)]], False),
        ([[change()] * 10, []], False),
        ([[], []], False),
    ],
)
def test_a_robot_that_failed_or_saw_too_little_fails_the_benchmark(found, good):
    assert bench.report(['r0', 'r1'], found) is good
