"""What can be sampled, and how often. Oracle: the logits processors of transformers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ros2_nanochat.backends.logits import HostLogits
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.sampler import Sampler, choose_largest

VOCABULARY = 300
CONTEXT = np.array([5, 7, 7, -9, 11, 250, 3])
ENDS = frozenset({3, 40})
NONE = np.empty(0, np.int64)


def logits_of(seed: int, size: int = VOCABULARY, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def expected(logits: np.ndarray, num_new: int, **options) -> np.ndarray:
    """Probabilities by transformers, its processors in the order of its `generate`."""
    torch = pytest.importorskip('torch')
    process = pytest.importorskip('transformers').generation.logits_process
    config = GenerationConfig(do_sample=True, **options)
    ids = torch.tensor([[int(i) for i in CONTEXT if i >= 0]])
    steps = []
    if config.repetition_penalty != 1.0:
        steps.append(process.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.min_new_tokens:
        steps.append(
            process.MinNewTokensLengthLogitsProcessor(
                ids.shape[1] - num_new, config.min_new_tokens, sorted(ENDS), device='cpu'
            )
        )
    steps.append(process.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        steps.append(process.TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(process.TopPLogitsWarper(config.top_p))
    if config.min_p:
        steps.append(process.MinPLogitsWarper(config.min_p))
    scores = torch.from_numpy(logits.copy())[None]
    for step in steps:
        scores = step(ids, scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


def draws(logits: np.ndarray, count: int, num_new: int, **options) -> np.ndarray:
    sampler = Sampler(GenerationConfig(do_sample=True, seed=7, **options), ENDS)
    return np.bincount(
        [sampler.choose(logits, CONTEXT, num_new) for _ in range(count)], minlength=len(logits)
    )


CASES = [
    {'top_p': 1.0, 'temperature': 1.0},
    {'top_p': 1.0, 'temperature': 0.5},
    {'top_p': 0.8, 'temperature': 1.3},
    {'top_p': 0.05, 'temperature': 2.0},
    {'top_p': 1.0, 'top_k': 5},
    {'top_k': 1},
    {'top_k': 1000, 'top_p': 1.0},
    {'top_p': 1.0, 'min_p': 0.1},
    {'top_p': 0.9, 'top_k': 20, 'min_p': 0.02},
    {'top_p': 1.0, 'repetition_penalty': 1.5, 'temperature': 1.0},
    {'top_p': 1.0, 'repetition_penalty': 0.5, 'temperature': 1.0},
    {'top_p': 1.0, 'min_new_tokens': 5, 'temperature': 3.0},
    {'top_p': 0.95, 'top_k': 50, 'min_p': 0.01, 'repetition_penalty': 1.2, 'min_new_tokens': 9},
]


@pytest.mark.parametrize('options', CASES, ids=str)
def test_the_ids_that_can_be_sampled_and_their_shares_are_those_of_transformers(options):
    """Chi-square over many draws with a fixed seed; classes of few expected draws are joined."""
    count = 6000
    logits = logits_of(sum(map(ord, str(options))))
    shares = expected(logits, num_new=2, **options)
    counts = draws(logits, count, num_new=2, **options)
    assert not counts[shares == 0].any(), 'an id was drawn that transformers rules out'
    order = np.argsort(-shares)
    wanted, seen = count * shares[order], counts[order]
    edges = [0]
    for i in range(len(wanted)):
        if wanted[edges[-1] : i + 1].sum() >= 20 and wanted[i + 1 :].sum() >= 20:
            edges.append(i + 1)
    wanted, seen = np.add.reduceat(wanted, edges), np.add.reduceat(seen, edges)
    degrees = len(edges) - 1
    chi_square = ((seen - wanted) ** 2 / wanted).sum()
    assert chi_square <= degrees + 4 * np.sqrt(2 * degrees) + 1e-6, (chi_square, degrees)


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.integers(0, 1 << 30),
    st.floats(0.05, 5),
    st.floats(0.01, 1),
    st.integers(0, 40),
    st.floats(0, 0.9),
    st.floats(0.3, 3),
    st.integers(2, 400),
)
def test_whatever_the_options_no_id_is_drawn_that_transformers_rules_out(
    seed, temperature, top_p, top_k, min_p, penalty, size
):
    logits = logits_of(seed, max(size, 260))
    options = {
        'temperature': temperature,
        'top_p': top_p,
        'top_k': top_k,
        'min_p': min_p,
        'repetition_penalty': penalty,
    }
    shares = expected(logits, num_new=2, **options)
    counts = draws(logits, 40, num_new=2, **options)
    outside = np.flatnonzero((counts > 0) & (shares == 0))
    if len(outside):  # a share on the very border of top-p or min-p may be rounded either way
        wider = {**options, 'top_p': min(1, top_p + 1e-5), 'min_p': max(0, min_p - 1e-5)}
        assert (expected(logits, 2, **wider)[outside] > 0).all(), outside


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'repetition_penalty': 1.7},
        {'min_new_tokens': 3},
        {'repetition_penalty': 0.6, 'min_new_tokens': 9},
    ],
    ids=str,
)
def test_greedy_takes_the_likeliest_of_what_transformers_leaves(options):
    for seed in range(40):
        logits = logits_of(seed)
        logits[3] = logits.max() + 0.5  # an end token
        assert (
            Sampler(GenerationConfig(**options), ENDS).choose(logits, CONTEXT, 2)
            == expected(logits, 2, top_p=1.0, **options).argmax()
        )


def test_ties_at_the_border_of_top_k_all_stay_as_in_transformers():
    logits = np.zeros(VOCABULARY, np.float32)
    logits[:6] = [5, 4, 4, 4, 4, 3]
    shares = expected(logits, 0, top_k=3, top_p=1.0)
    counts = draws(logits, 400, 0, top_k=3, top_p=1.0)
    assert set(np.flatnonzero(counts)) == set(np.flatnonzero(shares)) == {0, 1, 2, 3, 4}


def test_the_same_seed_draws_the_same_and_another_seed_another():
    logits = logits_of(1)

    def reply(seed):
        sampler = Sampler(GenerationConfig(do_sample=True, temperature=1.0, seed=seed), ENDS)
        return [sampler.choose(logits, CONTEXT, 0) for _ in range(30)]

    assert reply(5) == reply(5) != reply(6)
    assert reply(None) != reply(None)


def test_greedy_rows_take_the_largest_logit_each():
    rows = np.stack([logits_of(seed) for seed in range(3)])
    assert choose_largest(HostLogits(rows)) == [
        Sampler(GenerationConfig(), ENDS).choose(row, CONTEXT, 0) for row in rows
    ]


def test_end_tokens_are_held_off_for_min_new_tokens_and_no_longer():
    logits = logits_of(2)
    logits[40] = 100
    sampler = Sampler(GenerationConfig(min_new_tokens=3), ENDS)
    assert [sampler.choose(logits, CONTEXT, n) == 40 for n in range(5)] == [False, False, False, True, True]


def test_logits_processors_see_the_ids_and_change_the_logits_in_order():
    seen = []

    def first(ids, logits):
        seen.append(ids.tolist())
        ids[:] = 0  # a copy: the conversation does not change
        logits[:] = -np.inf
        logits[[8, 9]] = 1, 2
        return logits

    def second(ids, logits):
        return logits * -1 + np.where(np.isinf(logits), -np.inf, 0)

    logits = logits_of(3)
    before = logits.copy(), CONTEXT.copy()
    assert Sampler(GenerationConfig(logits_processors=[first]), ENDS).choose(logits, CONTEXT, 0) == 9
    assert seen == [CONTEXT.tolist()]
    assert (logits == before[0]).all() and (before[1] == CONTEXT).all(), (
        'the logits of the backend are not written to'
    )


@pytest.mark.parametrize(
    'processor',
    [
        lambda ids, logits: logits * 0 - np.inf,
        lambda ids, logits: logits * np.nan,
        lambda ids, logits: None,
        lambda ids, logits: logits[:5],
        lambda ids, logits: np.full_like(logits, -np.inf),
    ],
)
@pytest.mark.parametrize('sampling', [True, False])
def test_a_processor_that_leaves_nothing_to_choose_is_an_error(processor, sampling):
    with np.errstate(all='ignore'), pytest.raises(ValueError, match='largest logit|returned logits of shape'):
        Sampler(GenerationConfig(do_sample=sampling, logits_processors=[processor]), ENDS).choose(
            logits_of(4), CONTEXT, 0
        )


def test_logits_that_are_not_numbers_are_an_error_when_sampling():
    logits = logits_of(5)
    logits[17] = np.nan
    with pytest.raises(ValueError, match='the model failed'):
        Sampler(GenerationConfig(do_sample=True), ENDS).choose(logits, CONTEXT, 0)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('temperature', [1e-300, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy_and_overflows_nothing(temperature):
    logits = logits_of(6)
    logits[100] = -np.inf
    assert (
        Sampler(GenerationConfig(do_sample=True, temperature=temperature), ENDS).choose(logits, CONTEXT, 0)
        == logits.argmax()
    )


def test_without_end_tokens_or_context_nothing_breaks():
    config = GenerationConfig(do_sample=True, repetition_penalty=1.3, min_new_tokens=4, seed=1)
    assert 0 <= Sampler(config, frozenset()).choose(logits_of(7), NONE, 0) < VOCABULARY


def test_a_vocabulary_of_49152_is_sampled_in_a_few_milliseconds():
    """A tenth of what the smallest model takes for a token is about 1 ms; the bound leaves room for a busy
    machine.
    """
    logits = logits_of(8, 49152)
    context = np.random.default_rng(0).integers(0, 49152, 2000)
    sampler = Sampler(
        GenerationConfig(do_sample=True, repetition_penalty=1.1, top_k=50, min_p=0.01, seed=1), ENDS
    )
    times = []
    for _ in range(30):
        began = time.perf_counter()
        sampler.choose(logits, context, 5)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.005
