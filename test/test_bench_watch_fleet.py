"""What the benchmark of standing questions reports, also of robots that failed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ros2_nanochat import NanoLLM
from ros2_nanochat.engine.scheduler import Scheduler

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


def test_a_timed_node_answers_and_writes_down_its_steps(tmp_path, monkeypatch):
    timed_node = pytest.importorskip('benchmarks.timed_node')
    with open(tmp_path / 'steps', 'w') as file:
        monkeypatch.setattr(Scheduler, 'record', timed_node.timed(Scheduler.record, file))
        with NanoLLM.from_pretrained(api='fake') as model:
            assert model.generate('hello', max_new_tokens=8).wait().finish_reason in ('stop', 'length')
    steps = timed_node.read_steps(str(tmp_path / 'steps'))
    assert steps and not any(step.watching for step in steps)
