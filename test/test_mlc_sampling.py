"""Choosing ids on the device with the functions of a library. Oracle: the sampler in NumPy, with the same
random numbers; arrays lie on the CPU.
"""

from __future__ import annotations

import numpy as np
import pytest

tvm = pytest.importorskip('tvm')
pytest.importorskip('torch')
import mlc_model  # noqa: E402

from ros2_nanochat.backends.mlc.arrays import DeviceLogits  # noqa: E402
from ros2_nanochat.backends.mlc.sampling import DeviceSampler  # noqa: E402
from ros2_nanochat.config import GenerationConfig  # noqa: E402
from ros2_nanochat.engine.sampler import Sampler, choose_there  # noqa: E402
from ros2_nanochat.nano_llm import NanoLLM  # noqa: E402

PROMPTS = ['the robot sees', 'a red ball', 'please drive to the kitchen']


@pytest.fixture(scope='module')
def model():
    with NanoLLM.from_pretrained(
        mlc_model.tiny()[2], max_context_len=256, max_sequences=4, speculation=False
    ) as model:
        yield model


@pytest.fixture
def copies(model, monkeypatch):
    """The model as if its arrays lay on a device, and how often all logits of a step were copied from
    there.
    """
    made = []
    monkeypatch.setattr(model.backend._runtime, 'on_cpu', False)
    whole = DeviceLogits.numpy
    monkeypatch.setattr(DeviceLogits, 'numpy', lambda self: made.append(self.shape[0]) or whole(self))
    return made


def on_device(model, rows: np.ndarray) -> DeviceLogits:
    runtime = model.backend._runtime
    return DeviceLogits(runtime, runtime.from_numpy(rows.reshape(len(rows), 1, -1)), model.backend._sampler)


def samplers(options: list[dict], seed: int) -> list[Sampler]:
    return [
        Sampler(GenerationConfig(**{'do_sample': True, 'seed': seed + i, **each}), frozenset())
        for i, each in enumerate(options)
    ]


def is_on_a_border(
    row: np.ndarray, first: int, second: int, config: GenerationConfig, uniform: float
) -> bool:
    """Whether a number lies so near the end of one id's share that rounding may take either."""
    weights = np.exp((row.astype(np.float64) - row.max()) / config.temperature)
    order = np.argsort(-weights, kind='stable') if config.top_p < 1 else np.arange(len(row))
    sums = np.cumsum(weights[order]) / weights.sum()
    total = sums[np.searchsorted(sums, config.top_p)] if config.top_p < 1 else 1.0
    places = sorted(int(np.flatnonzero(order == i)[0]) for i in (first, second))
    return abs(sums[places[0]] / total - uniform) < 2e-5


def test_ids_are_those_of_the_sampler_in_numpy_for_the_same_random_numbers(model):
    options = [{'temperature': t, 'top_p': p} for t in (0.3, 0.7, 1.0, 1.9) for p in (1.0, 0.95, 0.5, 0.05)]
    random, drawn = np.random.default_rng(3), set()
    for turn in range(30):
        mine = [options[i] for i in random.permutation(len(options))[:8]]
        rows = (random.normal(size=(8, 320)) * 3).astype(np.float32)
        there = choose_there(samplers(mine, turn), on_device(model, rows))
        for i, (here, number) in enumerate(zip(samplers(mine, turn), samplers(mine, turn))):
            wanted = here.choose(rows[i], np.empty(0, np.int64), 0)
            assert there[i] == wanted or is_on_a_border(rows[i], there[i], wanted, here.config, number.draw())
            drawn.add(there[i])
    assert len(drawn) > 80


def test_a_row_is_drawn_in_one_way_whatever_else_is_in_the_batch(model):
    rows = (np.random.default_rng(5).normal(size=(4, 320)) * 2).astype(np.float32)
    mixed = [{'top_p': 1.0}, {'top_p': 0.9}, {'do_sample': False}, {'top_k': 5}]
    together = choose_there(samplers(mixed, 9), on_device(model, rows))
    assert together[3] is None and together[2] == rows[2].argmax()
    for i in range(3):
        assert choose_there([samplers(mixed, 9)[i]], on_device(model, rows[i : i + 1])) == [together[i]]


def test_replies_by_seed_are_those_of_the_host_and_no_logits_are_copied(model, copies, monkeypatch):
    options = [
        {'do_sample': True, 'temperature': 0.8, 'top_p': 0.9, 'seed': 1},
        {'do_sample': True, 'temperature': 1.2, 'top_p': 1.0, 'seed': 2},
        {},
    ]

    def replies():
        running = [
            model.generate(prompt, max_new_tokens=20, detokenize=False, **each)
            for prompt, each in zip(PROMPTS, options)
        ]
        return [reply.wait(60).tokens for reply in running]

    there = replies()
    assert copies == []
    monkeypatch.setattr(model.backend._runtime, 'on_cpu', True)
    assert replies() == there


def test_options_beyond_temperature_and_top_p_take_one_copy_a_step(model, copies):
    plain = {'do_sample': True, 'temperature': 1.0, 'seed': 4}
    alone = model.generate(PROMPTS[0], max_new_tokens=12, detokenize=False, **plain).wait(60).tokens
    assert copies == []
    running = [
        model.generate(PROMPTS[0], max_new_tokens=12, detokenize=False, **plain),
        model.generate(PROMPTS[1], max_new_tokens=12, detokenize=False, top_k=7, **plain),
        model.generate(PROMPTS[2], max_new_tokens=12, detokenize=False, repetition_penalty=1.2),
    ]
    steps = model.stats['steps']
    assert running[0].wait(60).tokens == alone
    for reply in running:
        reply.wait(60)
        assert reply.error is None
    assert 12 <= len(copies) <= model.stats['steps'] - steps + 40


def test_a_library_without_these_functions_or_with_broken_ones_has_its_logits_copied(
    model, copies, monkeypatch, caplog
):
    def broken(*arguments):
        raise RuntimeError('no such kernel')

    backend, prompt = model.backend, {'max_new_tokens': 8, 'detokenize': False, 'do_sample': True, 'seed': 8}
    wanted = model.generate(PROMPTS[0], **prompt).wait(60).tokens
    monkeypatch.setattr(
        backend, '_sampler', DeviceSampler(backend._runtime, {**backend._functions, 'argsort_probs': broken})
    )
    model.engine.call(lambda: backend._warm_up('its.so'))
    assert (
        'do not work (no such kernel)' in caplog.text
        and not backend._sampler.draws
        and not backend._sampler.takes_largest
    )
    copies.clear()
    assert model.generate(PROMPTS[0], **prompt).wait(60).tokens == wanted and len(copies) == 8


def test_logits_that_are_no_numbers_end_the_reply_and_not_the_model(model, copies, monkeypatch):
    runtime = model.backend._runtime

    def nothing(probs, uniform, indices):  # as kernels do that find no id: what was in memory before
        return runtime.from_numpy(np.full(len(indices.numpy()), 1 << 20, np.int32))

    functions = model.backend._functions
    for options in ({}, {'do_sample': True, 'top_p': 1.0}):
        monkeypatch.setattr(
            model.backend,
            '_sampler',
            DeviceSampler(runtime, {**functions, 'multinomial_from_uniform': nothing}),
        )
        reply = model.generate(PROMPTS[0], max_new_tokens=5, **options).wait(60)
        assert reply.finish_reason == 'error' and 'the model failed' in reply.error
        monkeypatch.setattr(model.backend, '_sampler', DeviceSampler(runtime, functions))
        assert model.generate(PROMPTS[0], max_new_tokens=5, **options).wait(60).finish_reason in (
            'length',
            'stop',
        )


def test_forms_are_applied_on_the_device_and_the_replies_are_those_of_the_host(model, copies, monkeypatch):
    pytest.importorskip('llguidance')
    asked = [
        {'response_format': ['yes', 'no one', 'a red ball']},
        {'response_format': '/[a-z ]{5,12}[.]/', 'max_new_tokens': 30},
        {'response_format': '/[0-9]{4}/', 'do_sample': True, 'temperature': 1.5, 'top_p': 0.9, 'seed': 7},
        {'max_new_tokens': 8},
    ]

    def replies():
        running = [model.generate(PROMPTS[n % 3], **options) for n, options in enumerate(asked)]
        return [reply.wait(60) for reply in running]

    there = replies()
    assert copies == [] and all(reply.valid for reply in there[:3])
    assert there[0].text in asked[0]['response_format']
    monkeypatch.setattr(model.backend._runtime, 'on_cpu', True)
    assert [reply.tokens for reply in replies()] == [reply.tokens for reply in there]


def test_a_mask_on_the_device_leaves_what_is_allowed_and_the_other_rows_as_they_were(model):
    random = np.random.default_rng(8)
    rows = random.normal(size=(5, 320)).astype(np.float32)
    logits = on_device(model, rows)
    assert logits.can_mask
    allowed = random.random((2, 320)) < 0.2
    logits.mask([1, 4], allowed)
    masked = logits.numpy()
    assert (masked[[0, 2, 3]] == rows[[0, 2, 3]]).all()
    assert (masked[[1, 4]][allowed] == rows[[1, 4]][allowed]).all()
    assert (masked[[1, 4]][~allowed] < -1e38).all()
    assert logits.argmax()[[1, 4]].tolist() == np.where(allowed, rows[[1, 4]], -np.inf).argmax(1).tolist()
