"""Options: what is wrong is one line with the option, the value and what is allowed; numbers of NumPy are
numbers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ros2_nanochat.config import EngineConfig, GenerationConfig, ModelConfig, names, reject_unknown

NAN, INF = float('nan'), float('inf')
WRONG = {
    ModelConfig: {
        'model': [5, ['a']],
        'api': ['vllm', 3],
        'quantization': [4],
        'max_context_len': [0, -5, 1.5, '2048', True, NAN],
        'max_sequences': [0, 2.0, None],
        'kv_tokens': [0, 'many'],
        'flash_attention': [0, 'maybe', None],
        'gpu_layers': [-2, 1.0, 'all'],
        'threads': [0, -1, 513, 2.5],
        'nice': [-1, 20, 1.5, 'low'],
        'cpu_affinity': [0, '', 'all', '0-', [0]],
        'device': [None, '', 0],
        'model_lib': [1],
        'compile': ['yes', 1],
        'trust_remote_code': ['no', 0],
        'vision': [1, ['tiny']],
        'image_max_tokens': [0, -1, 2.5],
        'served_model': [1],
        'server_input': ['text', 1],
        'tokenizer': [2],
        'api_key_file': [3],
        'fallback': [4, True],
        'resume_replies': ['yes', 1],
        'connect_timeout': [0, -1, INF, 601],
        'first_token_timeout': [0, NAN],
        'silence_timeout': [0, '1'],
    },
    EngineConfig: {
        'running_share': [0, 1.1, NAN, 'half'],
        'max_step': [0, -1, INF],
        'max_queued_requests': [-1, 1.5],
        'speculation': ['off', 2],
        'park_bytes': [-1, 1e9],
    },
    GenerationConfig: {
        'max_new_tokens': [-2, 1.5, 'ten', None, False],
        'min_new_tokens': [-2, 0.5],
        'do_sample': ['yes', 1, None],
        'temperature': [-0.1, 101, NAN, INF, '1', None],
        'top_p': [0, 1.7, -1, NAN, True],
        'top_k': [-1, 2.5],
        'min_p': [-0.1, 1.1],
        'repetition_penalty': [0, -1, 101, INF],
        'seed': [-1, 1.5, 'x'],
        'stop_tokens': [5.0, b'ab', [''], [None], [True], [-1], {'a': 1}, np.array([1.5]), [[1]]],
        'probabilities': ['yes', 1, None],
        'logits_processors': [3, ['x']],
        'functions': ['print', [None]],
    },
}


@pytest.mark.parametrize(
    'kind, name, value',
    [
        (kind, name, value)
        for kind, options in WRONG.items()
        for name, values in options.items()
        for value in values
    ],
)
def test_a_wrong_value_is_one_line_that_names_option_value_and_what_is_allowed(kind, name, value):
    with pytest.raises(ValueError) as caught:
        kind(**{name: value})
    message = str(caught.value)
    assert '\n' not in message and message.startswith(name) and ' is not valid: ' in message
    assert message.split(' is not valid: ')[1]


def test_every_option_has_a_wrong_value_above():
    assert {kind: set(names(kind)) - set(options) for kind, options in WRONG.items()} == {
        ModelConfig: {'api_token'},
        EngineConfig: set(),
        GenerationConfig: {'response_format'},  # read by answer/
    }


def test_a_long_value_is_shortened():
    with pytest.raises(ValueError) as caught:
        GenerationConfig(stop_tokens=np.arange(5000) + 0.5)
    assert len(str(caught.value)) < 400 and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'config', [ModelConfig(api_token='hf_secret'), ModelConfig(model='a/b', api_token='hf_secret')]
)
def test_a_token_is_never_shown(config):
    assert 'secret' not in repr(config)
    with pytest.raises(ValueError) as caught:
        ModelConfig(api_token=['hf_secret'])
    assert 'secret' not in str(caught.value) and 'api_token' in str(caught.value)


def test_numbers_of_numpy_become_plain_ones():
    config = GenerationConfig(
        max_new_tokens=np.int64(7),
        temperature=np.float32(0.5),
        top_p=np.float64(0.5),
        top_k=np.array(3),
        do_sample=np.bool_(True),
        seed=np.uint8(1),
    )
    assert (
        config.max_new_tokens,
        config.temperature,
        config.top_p,
        config.top_k,
        config.do_sample,
        config.seed,
    ) == (7, 0.5, 0.5, 3, True, 1)
    assert [type(v) for v in (config.max_new_tokens, config.temperature, config.top_k, config.do_sample)] == [
        int,
        float,
        int,
        bool,
    ]
    opened = ModelConfig(model=Path('/models/a.gguf'), max_context_len=np.int32(512), gpu_layers=np.int64(-1))
    assert (opened.model, opened.max_context_len, opened.gpu_layers) == ('/models/a.gguf', 512, -1)


@pytest.mark.parametrize(
    'given, expected',
    [
        (None, ()),
        (2, (2,)),
        ('</s>', ('</s>',)),
        (np.int64(2), (2,)),
        (np.array([2, 3]), (2, 3)),
        (np.array([[2, 3]]), (2, 3)),
        ([2, '\n'], (2, '\n')),
        ((np.int32(2), 'end'), (2, 'end')),
        ({5}, (5,)),
        (np.array(['a', 'b']), ('a', 'b')),
        ([], ()),
    ],
)
def test_stop_tokens_may_be_one_or_several_ids_or_strings(given, expected):
    stops = GenerationConfig(stop_tokens=given).stop_tokens
    assert stops == expected and all(type(stop) in (int, str) for stop in stops)


def test_a_least_length_of_minus_one_is_none_as_in_nano_llm():
    assert GenerationConfig(min_new_tokens=-1) == GenerationConfig()


def test_one_callable_is_a_list_of_one():
    assert GenerationConfig(functions=len).functions == (len,)
    assert GenerationConfig(logits_processors=[len, abs]).logits_processors == (len, abs)


def test_sampling_at_temperature_0_is_greedy():
    assert (
        GenerationConfig().greedy
        and GenerationConfig(do_sample=True, temperature=0).greedy
        and not GenerationConfig(do_sample=True).greedy
    )


@pytest.mark.parametrize('kind', WRONG)
def test_a_configuration_cannot_be_changed_behind_its_checks(kind):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(kind(), names(kind)[0], 1)


def test_unknown_options_are_named_and_the_nearest_is_suggested():
    with pytest.raises(ValueError) as caught:
        reject_unknown({'temprature': 1, 'top_q': 2}, names(GenerationConfig), 'generate()')
    message = str(caught.value)
    assert (
        "'temprature', 'top_q'" in message
        and "did you mean 'temperature'" in message
        and 'generate()' in message
        and '\n' not in message
    )
    reject_unknown({'top_p': 1}, names(GenerationConfig), 'generate()')
