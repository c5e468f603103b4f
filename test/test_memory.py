"""Whether a model fits: what is cut, what is refused, with which figures; and how much memory a process is
said to have.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import re
import subprocess
import sys
import threading

import pytest

from ros2_nanochat import memory
from ros2_nanochat.config import DEFAULT_CONTEXT, ModelConfig
from ros2_nanochat.errors import BackendError
from ros2_nanochat.memory import MemoryEstimate
from ros2_nanochat.ros.allocator import on_own_thread

MIB = 1 << 20


def estimate(
    available: int | None, weights=100 * MIB, kv_per_token=1024, overhead=50 * MIB, context_length=8192
) -> MemoryEstimate:
    return MemoryEstimate(weights, kv_per_token, overhead, available, context_length)


def limits(config: ModelConfig) -> tuple:
    return config.max_context_len, config.max_sequences, config.kv_tokens


def with_room_for(tokens: int) -> MemoryEstimate:
    return estimate(150 * MIB + memory._SPARE + 1024 * tokens)


def test_with_memory_enough_the_defaults_hold():
    assert limits(memory.fill_in(ModelConfig(), estimate(1 << 40))) == (
        DEFAULT_CONTEXT,
        4,
        4 * DEFAULT_CONTEXT,
    )


def test_a_model_of_a_shorter_context_is_opened_with_that():
    assert limits(memory.fill_in(ModelConfig(), estimate(1 << 40, context_length=2048))) == (2048, 4, 8192)


def test_what_was_asked_for_is_taken():
    config = ModelConfig(max_context_len=8192, max_sequences=3, kv_tokens=10000)
    assert limits(memory.fill_in(config, estimate(1 << 40))) == (8192, 3, 10000)


def test_kv_tokens_below_the_default_context_make_it_shorter():
    assert limits(memory.fill_in(ModelConfig(kv_tokens=1000), estimate(1 << 40))) == (1000, 4, 1000)


def test_sequences_beside_the_first_are_cut_before_the_context(caplog):
    with caplog.at_level(logging.WARNING):
        assert limits(memory.fill_in(ModelConfig(), with_room_for(2 * DEFAULT_CONTEXT + 7))) == (
            DEFAULT_CONTEXT,
            2,
            2 * DEFAULT_CONTEXT,
        )
    assert '2 conversation(s)' in caplog.text


def test_then_the_context_is_cut_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        assert limits(memory.fill_in(ModelConfig(), with_room_for(1600))) == (1536, 1, 1536)
    assert 'memory is short' in caplog.text and '1536 tokens' in caplog.text


def test_ten_million_conversations_are_cut_at_once():
    assert (
        memory.fill_in(
            ModelConfig(max_sequences=10_000_000), with_room_for(2 * DEFAULT_CONTEXT)
        ).max_sequences
        == 2
    )


def test_a_context_that_was_asked_for_is_refused_with_the_figures():
    with pytest.raises(BackendError) as caught:
        memory.fill_in(ModelConfig(max_context_len=8000), with_room_for(3000))
    message = str(caught.value)
    assert (
        '\n' not in message
        and 'weights take 100 MiB' in message
        and 'buffers 50 MiB' in message
        and '8000 tokens of KV cache 8 MiB' in message
    )
    assert f'{(150 * MIB + memory._SPARE + 3000 * 1024) / MIB:,.0f} MiB are free' in message
    advised = int(re.search(r'max_context_len=(\d+)', message)[1])
    assert (
        memory.fill_in(ModelConfig(max_context_len=advised), with_room_for(3000)).max_context_len == advised
    )


def test_kv_tokens_that_were_asked_for_are_refused_with_what_would_fit():
    with pytest.raises(BackendError) as caught:
        memory.fill_in(ModelConfig(kv_tokens=100_000), with_room_for(9000))
    advised = int(re.search(r'kv_tokens=(\d+)', str(caught.value))[1])
    assert memory.fill_in(ModelConfig(kv_tokens=advised), with_room_for(9000)).kv_tokens == advised


@pytest.mark.parametrize('available', [0, 10 * MIB, 150 * MIB + memory._SPARE + 1024 * 100])
def test_weights_that_do_not_fit_are_refused(available):
    with pytest.raises(BackendError, match='does not fit: .* use a smaller model') as caught:
        memory.fill_in(ModelConfig(), estimate(available))
    assert '\n' not in str(caught.value)


def test_a_context_the_model_was_not_trained_for_is_refused():
    with pytest.raises(
        ValueError, match=r'max_context_len=9000 is not valid: the model was trained for 8192 tokens'
    ):
        memory.fill_in(ModelConfig(max_context_len=9000), estimate(1 << 40))


def test_a_conversation_longer_than_all_the_kv_is_refused():
    with pytest.raises(ValueError, match=r'kv_tokens=1000 is not valid: .*max_context_len=2000'):
        memory.fill_in(ModelConfig(max_context_len=2000, kv_tokens=1000), estimate(1 << 40))


def test_where_free_memory_is_not_known_the_host_is_asked():
    assert limits(memory.fill_in(ModelConfig(), estimate(None)))[0] <= DEFAULT_CONTEXT
    assert 0 < memory.available_memory() < 1 << 50


# --- what a process is said to have, on trees like those of Linux ---


def tree(folder, files: dict[str, str]) -> tuple[str, str]:
    for name, text in {
        'proc/meminfo': 'MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable:    4000000 kB\n',
        **files,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder / 'proc'), str(folder / 'cgroup')


def group(folder: str, limit: str, usage: int, v1: bool = False, cached: int = 0) -> dict[str, str]:
    names = (
        ('memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_')
        if v1
        else ('memory.max', 'memory.current', '')
    )
    return {
        f'cgroup{folder}/{names[0]}': limit + '\n',
        f'cgroup{folder}/{names[1]}': f'{usage}\n',
        f'cgroup{folder}/memory.stat': f'anon 5\n{names[2]}inactive_file {cached}\n{names[2]}active_file 0\n',
    }


@pytest.mark.parametrize(
    'files, expected',
    [
        ({}, 4000000 * 1024),
        ({'proc/self/cgroup': '0::/\n', **group('', 'max', 7)}, 4000000 * 1024),
        ({'proc/self/cgroup': '0::/\n', **group('', '1000000', 300000)}, 700000),
        ({'proc/self/cgroup': '0::/\n', **group('', '1000000', 900000, cached=500000)}, 600000),
        (
            {'proc/self/cgroup': '0::/a/b\n', **group('/a', '1000000', 900000), **group('/a/b', 'max', 5)},
            100000,
        ),
        (
            {
                'proc/self/cgroup': '0::/a/b\n',
                **group('/a', '1000000', 900000),
                **group('/a/b', '50000', 5000),
            },
            45000,
        ),
        ({'proc/self/cgroup': '0::/outside/name\n', **group('', '1000000', 300000)}, 700000),
        (
            {
                'proc/self/cgroup': '9:cpu,cpuacct:/x\n4:memory:/x\n0::/\n',
                **group('/memory/x', '2000000', 500000, v1=True, cached=100000),
            },
            1600000,
        ),
        ({'proc/self/cgroup': '4:memory:/x\n', **group('/memory/x', '1000', 5000, v1=True)}, 0),
        ({'proc/self/cgroup': 'nonsense'}, 4000000 * 1024),
    ],
)
def test_the_tightest_control_group_counts_and_its_cached_files_make_way(tmp_path, files, expected):
    assert memory.available_memory(*tree(tmp_path, files)) == expected


def test_without_proc_nothing_is_known(tmp_path):
    assert memory.available_memory(str(tmp_path), str(tmp_path)) is None


# --- the real model ---


def test_the_estimate_is_what_the_runtime_takes(model):
    """Oracle: the bytes llama.cpp saves of a sequence, and its own count of the weights."""
    config = dataclasses.replace(model.config, vision='none')  # it is loaded with the first picture
    estimated = model.backend.estimate(model.info.path, config)
    assert abs(estimated.weights - model.info.weights_bytes) < 0.05 * estimated.weights
    sizes = []
    for n in (16, 80):
        reply = model.generate(list(range(100, 100 + n)), max_new_tokens=1).wait()
        sequence = reply.kv_cache.sequence
        sizes.append(
            (len(sequence.held), model.engine.call(lambda: len(model.backend.save(sequence.handle))))
        )
    per_token = (sizes[1][1] - sizes[0][1]) / (sizes[1][0] - sizes[0][0])
    assert (
        per_token == pytest.approx(estimated.kv_per_token, rel=0.01)
        and estimated.kv_per_token == model.info.kv_bytes_per_token
    )
    assert estimated.context_length == model.info.train_context_length


_TELL = """
c = ctypes.CDLL(None)
c.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(c.fdopen(1, b'w'))
c.malloc_info(0, out)
c.fflush(out)
"""


def malloc_info(program, **variables):
    """What glibc tells of its heap after a program in a process of its own."""
    if platform.libc_ver()[0] != 'glibc':
        pytest.skip('only glibc has arenas')
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(('MALLOC_', 'GLIBC_TUNABLES'))
    }
    told = subprocess.run(
        [sys.executable, '-c', 'import ctypes, threading\n' + program + _TELL],
        capture_output=True,
        text=True,
        env={**environment, **variables},
        timeout=60,
    )
    assert '<heap nr=' in told.stdout, told.stderr
    return told.stdout


def test_threads_share_one_arena_so_that_freed_memory_can_be_given_back():
    told = malloc_info("""
from ros2_nanochat.ros.allocator import tune_allocator
tune_allocator()
together = threading.Barrier(8)
def allocate():
    blocks = []
    for _ in range(100):
        blocks.append(bytearray(10_000))
        together.wait()  # each waits for the lock of the arena, and would take another one
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
""")
    assert told.count('<heap nr=') == 1


@pytest.mark.parametrize(
    ('variables', 'own_pages'),
    [
        ({}, 2),
        ({'MALLOC_MMAP_THRESHOLD_': '100000000'}, 0),
        ({'GLIBC_TUNABLES': 'glibc.malloc.mmap_threshold=100000000'}, 0),
    ],
)
def test_large_blocks_have_pages_of_their_own_unless_the_user_set_it(variables, own_pages):
    program = """
from ros2_nanochat.ros.allocator import tune_allocator
tune_allocator()
bytearray(30_000_000)  # is freed at once, after which glibc would no longer map the others
frames = [bytearray(6_000_000) for _ in range(2)]
"""
    told = malloc_info(program, **variables)
    mapped = int(re.search(r'<total type="mmap" count="\d+" size="(\d+)"', told)[1])
    assert mapped // 6_000_000 == own_pages


_KEEPS = """
import sys
from ros2_nanochat.ros.allocator import fill_thread_cache
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
class Info(ctypes.Structure):
    names = 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost'
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
c.mallinfo2.restype = Info

def use():
    blocks = [c.malloc(size) for size in range(200, 1000, 16) for _ in range(200)]
    for block in blocks:
        c.free(block)

def work():
    global kept
    if sys.argv[1] == 'fill':
        fill_thread_cache()
    before = c.mallinfo2().uordblks
    use()
    kept = c.mallinfo2().uordblks - before

c.mallopt(-8, 1)
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(kept)
"""


@pytest.mark.parametrize(
    'how, count, keeps',
    [('fill', None, False), ('not', None, True), *(('fill', count, False) for count in (0, 16, 40))],
)
def test_a_thread_whose_cache_is_full_keeps_nothing_of_what_it_frees(how, count, keeps):
    """Whatever the number of blocks of one size that this version of glibc keeps, or that the user set."""
    if platform.libc_ver()[0] != 'glibc':
        pytest.skip('only glibc has such a cache')
    environment = {name: value for name, value in os.environ.items() if name != 'GLIBC_TUNABLES'}
    if count is not None:
        environment['GLIBC_TUNABLES'] = f'glibc.malloc.tcache_count={count}'
    told = subprocess.run(
        [sys.executable, '-c', 'import ctypes, threading\n' + _KEEPS, how],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=True,
    )
    assert (int(told.stdout) > 50_000) == keeps, told


@pytest.mark.parametrize('none_left', [False, True])
def test_what_has_a_thread_of_its_own_is_waited_for_and_its_error_is_raised(monkeypatch, none_left):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    if none_left:
        monkeypatch.setattr(threading.Thread, 'start', refuse)
    ran = []
    on_own_thread(lambda: ran.append(threading.current_thread().name), 'own')
    assert (ran == ['own']) == (not none_left) and len(ran) == 1
    with pytest.raises(SystemExit, match='3'):
        on_own_thread(lambda: sys.exit(3), 'own')
