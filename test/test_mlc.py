"""`mlc` on a small Llama that is compiled here for the CPU; transformers runs the same weights beside it."""

from __future__ import annotations

import os
import platform
import sys

import numpy as np
import pytest

tvm = pytest.importorskip('tvm')
torch = pytest.importorskip('torch')
import mlc_model  # noqa: E402

from ros2_nanochat.backends.base import Chunk  # noqa: E402
from ros2_nanochat.backends.mlc.backend import MLCBackend  # noqa: E402
from ros2_nanochat.config import ModelConfig  # noqa: E402
from ros2_nanochat.errors import ForwardError  # noqa: E402

os.environ.setdefault('TVM_NUM_THREADS', '2')
RNG = np.random.default_rng(7)


@pytest.fixture(scope='module')
def checkpoint():
    return mlc_model.tiny()[:2]


@pytest.fixture(scope='module')
def folder():
    return mlc_model.tiny()[2]


@pytest.fixture(scope='module')
def backend(folder):
    backend = open_backend(folder)
    yield backend
    backend.close()


@pytest.fixture(autouse=True)
def nothing_is_left(request):
    yield
    if 'backend' in request.fixturenames:
        backend = request.getfixturevalue('backend')
        for seq in list(backend._kv.lengths):
            backend.free(seq)
        assert backend.kv_used == 0


def open_backend(path, **options):
    config = ModelConfig(**{'model': path, 'max_context_len': 512, 'max_sequences': 8, **options})
    backend = MLCBackend(path, config)
    backend.open()
    return backend


def some_ids(n):
    return RNG.integers(3, 320, n)


def run(backend, seq, ids, num_logits=1):
    """Logits [num_logits, v] behind ids, which are appended."""
    return np.array(host(backend.forward([Chunk(seq, ids=np.asarray(ids), num_logits=num_logits)])))


def host(logits):
    return logits.numpy()


def expected(checkpoint, ids):
    """Logits [n, v] by transformers."""
    with torch.no_grad():
        return checkpoint[1](torch.as_tensor(np.asarray(ids))[None]).logits[0].numpy()


def greedy(backend, seq, ids, n):
    out = []
    for _ in range(n):
        out.append(int(run(backend, seq, ids)[0].argmax()))
        ids = out[-1:]
    return out


def test_ids_equal_those_of_transformers(backend, checkpoint):
    ids = some_ids(21)
    with torch.no_grad():
        tensor = torch.as_tensor(ids)[None]
        reference = checkpoint[1].generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            max_new_tokens=60,
            min_new_tokens=60,
            do_sample=False,
        )
    reference = reference[0, len(ids) :].tolist()
    seq = backend.new_sequence()
    out = []
    for _ in range(60):
        row = run(backend, seq, ids if not out else out[-1:])[0]
        row[2] = -np.inf  # as min_new_tokens does there
        out.append(int(row.argmax()))
    assert out == reference


def test_logits_of_all_positions_equal_those_of_transformers_however_they_are_chunked(backend, checkpoint):
    ids = some_ids(100)
    reference = expected(checkpoint, ids)
    for sizes in ([100], [7, 93], [1] * 20 + [80], [32, 32, 32, 4], [33, 67]):
        seq, at, rows = backend.new_sequence(), 0, []
        for size in sizes:
            rows.append(run(backend, seq, ids[at : at + size], num_logits=size))
            at += size
        np.testing.assert_allclose(np.concatenate(rows), reference, atol=2e-4)


def test_a_chunk_longer_than_the_library_takes_is_split_and_gives_the_rows_that_were_asked_for(
    backend, checkpoint
):
    ids = some_ids(150)
    assert len(ids) > backend.max_batch_tokens
    reference = expected(checkpoint, ids)
    for wanted in (0, 1, 5, 8, 9, 40):
        rows = run(backend, backend.new_sequence(), ids, wanted)
        assert rows.shape == (wanted, 320)
        np.testing.assert_allclose(rows, reference[len(ids) - wanted :], atol=2e-4)


def test_eight_sequences_in_one_batch_give_what_each_gives_alone(backend, checkpoint):
    prompts = [some_ids(n) for n in (3, 9, 1, 17, 30, 5, 12, 2)]
    seqs = [backend.new_sequence() for _ in prompts]
    rows = np.array(host(backend.forward([Chunk(s, ids=p, num_logits=1) for s, p in zip(seqs, prompts)])))
    for _ in range(6):
        for row, prompt in zip(rows, prompts):
            np.testing.assert_allclose(row, expected(checkpoint, prompt)[-1], atol=2e-4)
        tokens = rows.argmax(axis=1)
        prompts = [np.append(p, t) for p, t in zip(prompts, tokens)]
        rows = np.array(
            host(backend.forward([Chunk(s, ids=np.array([t]), num_logits=1) for s, t in zip(seqs, tokens)]))
        )


def test_prefill_decode_and_verification_run_in_one_batch(backend, checkpoint):
    base = some_ids(20)
    a, b, c = backend.new_sequence(), backend.new_sequence(), backend.new_sequence()
    for seq in (a, c):
        run(backend, seq, base, 0)
    fresh, draft, token = some_ids(40), some_ids(4), some_ids(1)
    rows = host(
        backend.forward(
            [
                Chunk(a, ids=token, num_logits=1),
                Chunk(b, ids=fresh, num_logits=0),
                Chunk(c, ids=draft, num_logits=4),
            ]
        )
    )
    np.testing.assert_allclose(rows[0], expected(checkpoint, [*base, *token])[-1], atol=2e-4)
    np.testing.assert_allclose(rows[1:], expected(checkpoint, [*base, *draft])[-4:], atol=2e-4)
    np.testing.assert_allclose(run(backend, b, [5])[0], expected(checkpoint, [*fresh, 5])[-1], atol=2e-4)


@pytest.mark.parametrize('n', [0, 1, 15, 16, 17, 40, 47, 48])
def test_a_fork_shares_pages_and_goes_its_own_way(backend, checkpoint, n):
    ids, one, two = some_ids(48), some_ids(6), some_ids(6)
    parent = backend.new_sequence()
    run(backend, parent, ids)
    child, kept = backend.fork(parent, n)
    assert kept == n
    whole = n // 16 * 16
    assert backend.kv_used == 48 + n - whole  # whole pages are stored once
    np.testing.assert_allclose(
        run(backend, child, one)[0], expected(checkpoint, [*ids[:n], *one])[-1], atol=2e-4
    )
    np.testing.assert_allclose(
        run(backend, parent, two)[0], expected(checkpoint, [*ids, *two])[-1], atol=2e-4
    )
    backend.free(parent)
    np.testing.assert_allclose(
        run(backend, child, two)[0], expected(checkpoint, [*ids[:n], *one, *two])[-1], atol=2e-4
    )


@pytest.mark.parametrize('n', [0, 1, 16, 23, 32, 39, 40])
def test_what_follows_a_trim_equals_a_fresh_prefill(backend, checkpoint, n):
    ids, more = some_ids(40), some_ids(9)
    seq = backend.new_sequence()
    run(backend, seq, ids)
    assert backend.trim(seq, n) == n and backend.kv_used == n
    np.testing.assert_allclose(
        run(backend, seq, more)[0], expected(checkpoint, [*ids[:n], *more])[-1], atol=2e-4
    )


def test_forks_of_forks_trims_and_frees_at_random_stay_right_and_leave_no_page_behind(backend, checkpoint):
    rng = np.random.default_rng(3)
    held = {}
    for _ in range(120):
        act = rng.choice(['new', 'fork', 'trim', 'free', 'append', 'append'])
        seqs = list(held)
        if act == 'new' and len(held) < 8:
            held[backend.new_sequence()] = []
        elif not seqs:
            continue
        else:
            seq = seqs[rng.integers(len(seqs))]
            n = int(rng.integers(0, len(held[seq]) + 1))
            if act == 'fork' and len(held) < 8:
                child, kept = backend.fork(seq, n)
                held[child] = held[seq][:kept]
            elif act == 'trim':
                held[seq] = held[seq][: backend.trim(seq, n)]
            elif act == 'free':
                backend.free(seq)
                del held[seq]
            elif act == 'append' and len(held[seq]) < 100:
                ids = some_ids(int(rng.integers(1, 40)))
                held[seq] = [*held[seq], *ids.tolist()]
                np.testing.assert_allclose(
                    run(backend, seq, ids)[0], expected(checkpoint, held[seq])[-1], atol=3e-4
                )
        assert backend.kv_used <= sum(map(len, held.values()))


def test_embeddings_in_place_of_ids_give_the_same_and_both_go_into_one_batch(backend, checkpoint):
    ids, other = some_ids(37), some_ids(11)
    rows = backend.embed_tokens(ids)
    assert rows.shape == (37, backend.info.embedding_size) and rows.dtype == np.float32
    weight = checkpoint[1].get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(rows, weight[ids])
    a, b = backend.new_sequence(), backend.new_sequence()
    logits = host(
        backend.forward([Chunk(a, embeddings=rows, num_logits=2), Chunk(b, ids=other, num_logits=1)])
    )
    np.testing.assert_allclose(logits[:2], expected(checkpoint, ids)[-2:], atol=2e-4)
    np.testing.assert_allclose(logits[2], expected(checkpoint, other)[-1], atol=2e-4)


def test_kv_that_runs_out_is_an_error_that_leaves_every_sequence_as_it_was(folder, checkpoint):
    backend = open_backend(folder, kv_tokens=128, max_sequences=2, max_context_len=64)
    try:
        assert backend.kv_capacity == 128
        ids = some_ids(60)
        a, b, c = backend.new_sequence(), backend.new_sequence(), backend.new_sequence()
        run(backend, a, ids)
        run(backend, b, some_ids(60))
        for _ in range(3):
            with pytest.raises(
                ForwardError, match='no room: 30 tokens are to go in, and 8 of 128 are free; raise kv_tokens'
            ) as caught:
                run(backend, c, some_ids(30))
            assert caught.value.committed == [0] and backend.kv_used == 120
        with pytest.raises(ForwardError, match='no room'):
            run(backend, c, some_ids(40))
        np.testing.assert_allclose(run(backend, a, [9])[0], expected(checkpoint, [*ids, 9])[-1], atol=2e-4)
        with pytest.raises(ForwardError, match='do not fit behind 61: the context holds 64'):
            run(backend, a, some_ids(4))
    finally:
        backend.close()


def test_the_capacity_that_is_told_can_be_filled_to_the_last_token_whatever_the_lengths(folder):
    backend = open_backend(folder, kv_tokens=100, max_sequences=5, max_context_len=64)
    try:
        for n in (33, 17, 1, 32, 17):
            run(backend, backend.new_sequence(), some_ids(n), 0)
        assert backend.kv_used == 100 == backend.kv_capacity
    finally:
        backend.close()


@pytest.mark.parametrize('bad', [-1, 320, 10**9])
def test_an_id_outside_the_vocabulary_is_an_error_and_not_a_crash(backend, bad):
    seq = backend.new_sequence()
    run(backend, seq, [5, 6])
    with pytest.raises(ForwardError, match='ids go from 0 to 319'):
        run(backend, seq, [7, bad])
    assert backend.kv_used == 2
    with pytest.raises(Exception, match='ids go from 0 to 319'):
        backend.embed_tokens([bad])


def test_embeddings_of_a_wrong_width_and_positions_of_several_axes_are_refused(backend):
    seq = backend.new_sequence()
    with pytest.raises(ForwardError, match=r'\[n, 64\], not \[3, 63\]'):
        backend.forward([Chunk(seq, embeddings=np.zeros((3, 63), np.float32))])
    with pytest.raises(ForwardError, match='api=hf'):
        backend.forward([Chunk(seq, embeddings=np.zeros((3, 64), np.float32), positions=np.zeros((3, 3)))])
    assert backend.kv_used == 0


def test_threads_are_as_asked_and_nothing_to_run_gives_no_rows(folder, checkpoint):
    backend = open_backend(folder, threads=1)
    try:
        ids = some_ids(12)
        np.testing.assert_allclose(
            run(backend, backend.new_sequence(), ids)[0], expected(checkpoint, ids)[-1], atol=2e-4
        )
        assert host(backend.forward([])).shape == (0, 320)
    finally:
        backend.close()


def test_an_abort_ends_a_forward_between_calls_and_says_what_was_done(backend):
    seq = backend.new_sequence()
    backend.abort()
    with pytest.raises(ForwardError, match='stopped') as caught:
        run(backend, seq, some_ids(100))
    assert caught.value.committed == [0]
    run(backend, seq, some_ids(5))  # and the next one runs


def test_facts_of_the_model_are_those_of_its_files(backend, folder):
    info = backend.info
    assert (info.api, info.architecture, info.quantization, info.vocab_size, info.embedding_size) == (
        'mlc',
        'llama',
        'q0f32',
        320,
        64,
    )
    assert (info.context_length, info.train_context_length) == (512, 512)
    assert info.eos_token_ids == {2} and info.bos_token_id == 1 and not info.add_bos
    assert info.has_embed and info.takes_embeddings and info.chat_template == mlc_model.TEMPLATE
    assert info.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    estimate = MLCBackend.estimate(folder, backend.config)
    assert estimate.weights == info.weights_bytes and estimate.kv_per_token == info.kv_bytes_per_token
    assert estimate.context_length == 512 and estimate.overhead > 0


def test_progress_is_told_and_a_load_can_be_stopped(folder):
    from ros2_nanochat.errors import LoadAborted

    shares = []
    backend = MLCBackend(folder, ModelConfig(max_context_len=64))
    backend.open(shares.append)
    backend.close()
    backend.close()
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 3
    backend = MLCBackend(folder, ModelConfig(max_context_len=64))
    with pytest.raises(LoadAborted, match='stopped'):
        backend.open(lambda share: backend.abort())
    backend.close()


def test_four_bit_weights_run_and_stay_near_what_they_stand_for(checkpoint, tmp_path):
    path, model = checkpoint
    folder = mlc_model.make_folder(
        str(tmp_path / 'tiny-q4f16_2-MLC'),
        model,
        path,
        'q4f16_2',
        index='ndarray-cache.json',
        only=('embed', 'prefill', 'decode', 'create_tir_paged_kv_cache'),
    )
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for name, tensor in state.items():
        if name.endswith('proj.weight'):
            tensor.copy_(torch.as_tensor(mlc_model.quantize(tensor.numpy())[2]))
    reference = type(model)(model.config).eval()
    reference.load_state_dict(state)
    backend = open_backend(folder)
    try:
        assert backend.info.quantization == 'q4f16_2'
        ids = some_ids(60)
        wanted = expected((path, reference), ids)[-3:]
        spread = wanted.max() - wanted.min()
        # a library without batch functions: a row at a time
        rows = run(backend, backend.new_sequence(), ids, 3)
        assert np.abs(rows - wanted).max() < 0.04 * spread
        seqs = [backend.new_sequence() for _ in range(3)]
        both = host(backend.forward([Chunk(s, ids=ids[:n], num_logits=1) for s, n in zip(seqs, (60, 7, 1))]))
        assert np.abs(both[0] - wanted[-1]).max() < 0.04 * spread
        more = np.array(host(backend.forward([Chunk(s, ids=np.array([9]), num_logits=1) for s in seqs])))
        assert more.shape == (3, 320)
        embedded = host(
            backend.forward(
                [Chunk(backend.new_sequence(), embeddings=backend.embed_tokens(ids), num_logits=1)]
            )
        )
        assert np.abs(embedded[0] - wanted[-1]).max() < 0.04 * spread
    finally:
        backend.close()


def test_a_context_of_one_token_opens(folder, checkpoint):
    backend = open_backend(folder, max_context_len=1, max_sequences=1)
    try:
        np.testing.assert_allclose(
            run(backend, backend.new_sequence(), [9])[0], expected(checkpoint, [9])[-1], atol=2e-4
        )
    finally:
        backend.close()


@pytest.mark.skipif(
    not sys.platform.startswith('linux') or platform.libc_ver()[0] != 'glibc',
    reason='is about the heap of glibc',
)
def test_a_model_that_is_closed_gives_its_memory_back_to_the_system(folder):
    backend = open_backend(folder)
    pieces = [
        np.ones(5000) for _ in range(1600)
    ]  # 64 MB that the heap keeps once they are freed, behind the last of them
    end = pieces.pop()
    del pieces
    before = resident()
    backend.close()
    assert resident() < before - (40 << 20) and end.all()


def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
