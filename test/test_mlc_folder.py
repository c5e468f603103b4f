"""Folders for `mlc` that are broken or do not fit: one line says which file, what was expected, what was
found, and what to do.
"""

from __future__ import annotations

import json
import os
import shutil

import jinja2
import numpy as np
import pytest

tvm = pytest.importorskip('tvm')
pytest.importorskip('torch')
import mlc_model  # noqa: E402

from ros2_nanochat.backends.mlc.arrays import DeviceLogits, to_bfloat16  # noqa: E402
from ros2_nanochat.backends.mlc.backend import MLCBackend  # noqa: E402
from ros2_nanochat.backends.mlc.chat_template import chat_template, end_ids  # noqa: E402
from ros2_nanochat.backends.mlc.folder import MLCFolder  # noqa: E402
from ros2_nanochat.backends.mlc.library import check_elf, library_kind, parse_metadata  # noqa: E402
from ros2_nanochat.backends.mlc.sampling import DeviceSampler  # noqa: E402
from ros2_nanochat.backends.mlc.tvm_runtime import (  # noqa: E402
    LacksDevice,
    Runtime,
    lacking_part,
    load_library,
    why_it_does_not_load,
)
from ros2_nanochat.backends.mlc.weights import load_parameters  # noqa: E402
from ros2_nanochat.backends.tokenizer import Tokenizer  # noqa: E402
from ros2_nanochat.config import ModelConfig  # noqa: E402
from ros2_nanochat.errors import BackendError, MissingDependency, require  # noqa: E402


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy to break."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return shutil.copytree(mlc_model.tiny()[2], tmp_path / 'tiny-q0f32-MLC')


def refusal(folder, **options) -> str:
    backend = MLCBackend(str(folder), ModelConfig(**{'max_context_len': 64, **options}))
    with pytest.raises(BackendError) as caught:
        backend.open()
    backend.close()
    said = str(caught.value)
    assert '\n' not in said and len(said) < 700
    return said


def edit(file, change):
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def library(folder):
    return folder / 'q0f32-cpu.so'


def test_a_missing_shard_and_a_short_one_are_named(folder):
    shard = folder / 'params_shard_1.bin'
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-3])
    assert refusal(folder) == f'{shard} has {size - 3} bytes and should have {size}; copy it again'
    os.remove(shard)
    assert 'lacks 1 of 3 shards of weights (params_shard_1.bin); download or copy the rest' in refusal(folder)
    os.remove(folder / 'tensor-cache.json')
    assert 'neither tensor-cache.json nor ndarray-cache.json' in refusal(folder)


def test_weights_that_give_no_numbers_are_told_when_the_model_is_opened(folder):
    shard = folder / 'params_shard_0.bin'
    shard.write_bytes(b'\xff' * shard.stat().st_size)
    assert 'gives logits that are no numbers' in (said := refusal(folder)) and 'copy them again' in said


def test_a_broken_index_or_configuration_is_named(folder):
    edit(folder / 'tensor-cache.json', lambda data: data['records'][0]['records'][0].update(nbytes=12))
    assert 'the index gives it 12' in refusal(folder)
    edit(folder / 'tensor-cache.json', lambda data: data['records'][0].pop('dataPath'))
    assert 'is no index of weights' in refusal(folder)
    (folder / 'tensor-cache.json').write_text('{')
    assert 'tensor-cache.json cannot be read' in refusal(folder)
    (folder / 'mlc-chat-config.json').write_text('')
    assert 'mlc-chat-config.json cannot be read' in refusal(folder)
    os.remove(folder / 'mlc-chat-config.json')
    assert 'holds no model of MLC-LLM' in refusal(folder)


def test_weights_that_do_not_fit_the_library_are_told_by_name_and_shape(folder):
    def lose(data):
        data['records'][0]['records'][1]['name'] = 'another'

    edit(folder / 'tensor-cache.json', lose)
    said = refusal(folder)
    assert (
        'do not fit' in said
        and "1 of 14 parameters are missing, 'layers.0.qkv_proj.weight' first" in said
        and 'use the library' in said
    )

    def reshape(data):
        data['records'][0]['records'][1].update(name='layers.0.qkv_proj.weight', shape=[64, 128])

    edit(folder / 'tensor-cache.json', reshape)
    assert (
        "'layers.0.qkv_proj.weight' is float32[64, 128], and the library takes float32[128, 64]"
        in refusal(folder)
    )


def test_what_is_no_library_for_this_machine_is_told_and_does_not_crash(folder):
    good = library(folder).read_bytes()
    cases = [
        (b'hello', 'is no shared library'),
        (b'', 'is no shared library'),
        (good[: len(good) // 2], 'is cut off'),
        (good[:40], 'cut off'),
        (
            good[:18] + (0xB7 if os.uname().machine != 'aarch64' else 0x3E).to_bytes(2, 'little') + good[20:],
            'was compiled for',
        ),
        (b'\xcf\xfa\xed\xfe' + good[4:], 'another operating system'),
    ]
    for content, said in cases:
        library(folder).write_bytes(content)
        assert said in refusal(folder)
    import _ctypes

    shutil.copy(_ctypes.__file__, library(folder))
    assert 'is no model library' in refusal(folder)
    with pytest.raises(BackendError, match='cannot be read'):
        check_elf(str(folder / 'nothing.so'))


def test_a_library_whose_logits_depend_on_how_a_text_is_cut_is_refused(folder, monkeypatch):
    """As those of models with layers that have windows of their own, if the library does not keep them."""
    find = MLCBackend._find_functions

    def forgetful(self, path):
        find(self, path)
        one, batch = self._extend

        def extend(*arguments):
            logits = self._runtime.host(one(*arguments)[0])
            return [self._runtime.from_numpy(np.ascontiguousarray(logits[..., ::-1]))]

        self._extend = extend, batch

    MLCBackend(str(folder), ModelConfig(max_context_len=64)).open()
    monkeypatch.setattr(MLCBackend, '_find_functions', forgetful)
    said = refusal(folder, max_context_len=64)
    assert 'its logits depend on how a text is cut' in said and 'another api' in said


def test_the_kind_of_device_is_read_from_the_file(folder):
    assert library_kind(str(library(folder))) == 'cpu'
    with open(library(folder), 'ab') as file:
        file.write(b'\x04\0\0\0\0\0\0\0cuda')
    assert library_kind(str(library(folder))) == 'cuda'


def test_a_device_part_of_tvm_that_does_not_load_is_told_in_the_words_of_the_loader(folder, tmp_path):
    package = tmp_path / 'tvm'
    (package / 'lib').mkdir(parents=True)
    assert lacking_part(str(package), 'cuda') is None  # an older TVM is one library
    (package / 'lib' / 'libtvm_runtime_extra.so').write_text('')
    assert 'built without cuda' in lacking_part(str(package), 'cuda')
    (package / 'lib' / 'libtvm_runtime_cuda.so').write_text('a text')
    assert 'libtvm_runtime_cuda.so does not load' in lacking_part(str(package), 'cuda')

    class Broken:
        __version__ = '0.27'
        __file__ = str(package / '__init__.py')
        runtime = None

    with open(library(folder), 'ab') as file:
        file.write(b'\x04\0\0\0\0\0\0\0cuda')
    with pytest.raises(LacksDevice, match='TVM 0.27 has no cuda here: .*does not load'):
        load_library(Broken, str(library(folder)))


def test_whether_a_library_loads_here_is_told(folder, tmp_path):
    assert why_it_does_not_load(str(library(folder))) is None
    other = tmp_path / 'other.so'
    other.write_bytes(library(folder).read_bytes()[:5000])
    assert 'cut off' in why_it_does_not_load(str(other))


def test_a_library_that_calls_a_function_of_another_tvm_is_told_before_it_is_used(folder, tmp_path):
    """It loads; only the virtual machine looks for the functions."""
    data, other = library(folder).read_bytes(), tmp_path / 'other.so'
    name = b'vm.builtin.match_shape'
    assert name in data
    other.write_bytes(data.replace(name, b'vm.builtin.match_shapX'))
    said = why_it_does_not_load(str(other))
    assert 'does not start on TVM' in said and 'vm.builtin.match_shapX' in said and 'mlc_llm' in said


def test_a_device_that_the_library_was_not_compiled_for_is_refused(folder):
    said = refusal(folder, device='cuda')
    assert 'was compiled for cpu' in said and "device='cuda'" in said and '--target cuda' in said


def test_a_tvm_whose_own_libraries_do_not_load_is_one_line(tmp_path, monkeypatch):
    (tmp_path / 'half_a_tvm.py').write_text(
        "raise OSError('libtvm_runtime.so: undefined symbol: Stringify\\n  in tvm_ffi')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependency) as caught:
        require('half_a_tvm', 'mlc')
    assert str(caught.value).startswith(
        'half_a_tvm cannot be imported (libtvm_runtime.so: undefined symbol: Stringify in tvm_ffi): in the'
        ' clone of nanochat run  pip install'
    )


def test_a_library_that_lacks_a_function_is_told(tmp_path):
    checkpoint, model, _ = mlc_model.tiny()
    lacking = mlc_model.make_folder(str(tmp_path / 'lacking'), model, checkpoint, only=('embed',))
    assert "has no function 'prefill'" in refusal(lacking)


def test_ids_are_checked_against_the_weights_and_not_against_what_a_configuration_says(folder):
    edit(folder / 'mlc-chat-config.json', lambda data: data.update(vocab_size=10**6))
    backend = MLCBackend(str(folder), ModelConfig(max_context_len=64))
    backend.open()
    with pytest.raises(BackendError, match='ids go from 0 to 319'):
        backend.embed_tokens([5000])
    backend.close()


def test_libraries_of_a_kind_that_is_not_run_here_are_refused():
    for metadata, said in (
        ({'kv_state_kind': 'rnn_state', 'model_type': 'rwkv6'}, "state of kind 'rnn_state' (rwkv6)"),
        ({'tensor_parallel_shards': 2}, 'tensor_parallel_shards=2'),
        ({'tensor_parallel_shards': '2'}, 'tensor_parallel_shards=2'),
        ({'model_task': 'embedding', 'model_type': 'bert'}, "a model for 'embedding' (bert)"),
        ({'params': [{}]}, 'not understood'),
        ({'params': 5}, 'not understood'),
        ({'max_batch_size': []}, 'not understood'),
        ([], 'not understood'),
        (None, 'not understood'),
    ):
        with pytest.raises(BackendError) as caught:
            parse_metadata(json.dumps(metadata), 'x.so')
        assert said in str(caught.value) and '\n' not in str(caught.value)
    nothing = {
        'kv_state_kind': None,
        'tensor_parallel_shards': None,
        'model_task': None,
        'max_batch_size': None,
    }
    assert parse_metadata(json.dumps(nothing), 'x.so') == {'params': []}


def test_a_kv_cache_that_no_memory_holds_is_refused(folder):
    said = refusal(folder, kv_tokens=2**40)
    assert 'no memory for a KV cache of' in said and 'kv_tokens' in said


def test_a_kv_cache_larger_than_what_is_free_on_the_device_is_refused_with_both_figures(folder, monkeypatch):
    monkeypatch.setattr(Runtime, 'free_memory', lambda self: 3 << 20)
    said = refusal(folder, max_context_len=512, max_sequences=16)
    assert (
        'a KV cache of 8192 tokens takes 4 MiB, and 3 MiB are free on' in said
        and 'max_context_len, max_sequences or kv_tokens' in said
    )


@pytest.mark.parametrize(
    'name, error, said',
    [
        ('embed', 'CUDAError: named symbol not found', 'does not run on'),
        ('decode', 'CUDAError: no kernel image is available for execution on the device', 'does not run on'),
        ('prefill', 'CUDAError: device kernel image is invalid', 'does not run on'),
        (
            'create_tir_paged_kv_cache',
            'Function vm.builtin.paged_attention_kv_cache_create_reduced expects 23 arguments but 24 were '
            'given',
            'cannot make its KV cache',
        ),
        ('create_tir_paged_kv_cache', 'cudaMalloc: out of memory', 'no memory for a KV cache of 192 tokens'),
    ],
)
def test_a_library_for_another_gpu_or_another_tvm_is_told_when_it_is_opened(
    folder, monkeypatch, name, error, said
):
    """Stands in for a GPU: the function raises what a driver or another TVM says."""

    def fails(*arguments):
        raise RuntimeError(error)

    find = Runtime.function
    monkeypatch.setattr(
        Runtime,
        'function',
        lambda self, machine, wanted, **options: (
            fails if wanted == name else find(self, machine, wanted, **options)
        ),
    )
    told = refusal(folder, max_sequences=2)
    assert said in told and error in told and str(library(folder)) in told or 'no memory' in said
    assert 'nanochat-mlc' in told or 'kv_tokens' in told


def test_libraries_are_found_beside_the_weights_in_the_cache_and_by_name(folder, tmp_path):
    found = MLCFolder(str(folder)).find_library
    assert found(ModelConfig()) == str(library(folder))
    other = shutil.copy(library(folder), folder / 'q0f32-cuda.so')
    assert found(ModelConfig()) in (str(library(folder)), str(other))  # by what this machine has
    assert found(ModelConfig(device='cpu')) == str(library(folder)) and found(
        ModelConfig(device='cuda:1')
    ) == str(other)
    assert '2 model libraries: name one with model_lib, out of q0f32-cpu.so, q0f32-cuda.so' in refusal(
        folder, device='vulkan'
    )
    assert found(ModelConfig(model_lib='q0f32-cuda')) == str(other)
    assert "model_lib='nothing.so' is no file" in refusal(folder, model_lib='nothing.so')
    cache = tmp_path / 'cache' / 'nanochat' / 'mlc'
    cache.mkdir(parents=True)
    os.remove(other)
    shutil.move(library(folder), cache / 'tiny-q0f32-cpu.so')
    assert (
        found(ModelConfig())
        == found(ModelConfig(model_lib='tiny-q0f32-cpu'))
        == str(cache / 'tiny-q0f32-cpu.so')
    )
    os.remove(cache / 'tiny-q0f32-cpu.so')
    assert found(ModelConfig()) is None and 'has no model library' in refusal(folder)


def test_older_folders_have_another_name_for_the_index(folder):
    os.rename(folder / 'tensor-cache.json', folder / 'ndarray-cache.json')
    backend = MLCBackend(str(folder), ModelConfig(max_context_len=64))
    backend.open()
    assert backend.info.vocab_size == 320
    backend.close()


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'bfloat16', 'float8_e4m3fn', 'uint32', 'int8'])
def test_weights_of_every_type_arrive_bit_by_bit(folder, dtype):
    bits = {'bfloat16': 'uint16', 'float8_e4m3fn': 'uint8'}.get(dtype, dtype)
    data = np.random.default_rng(1).integers(0, 200, (3, 5)).astype(bits)
    data.tofile(folder / 'params_shard_0.bin')
    record = {
        'name': 'param_0',
        'shape': [3, 5],
        'dtype': dtype,
        'format': 'raw',
        'byteOffset': 0,
        'nbytes': data.nbytes,
    }
    (folder / 'tensor-cache.json').write_text(
        json.dumps(
            {
                'records': [
                    {
                        'dataPath': 'params_shard_0.bin',
                        'format': 'raw-shard',
                        'nbytes': data.nbytes,
                        'records': [record],
                    }
                ]
            }
        )
    )
    runtime = Runtime('auto', str(library(folder)))
    (tensor,) = load_parameters(runtime, MLCFolder(str(folder)).check_shards(), [], None, lambda: False)
    assert str(tensor.dtype) == dtype and tuple(tensor.shape) == (3, 5)
    np.testing.assert_array_equal(tensor.numpy().view(bits), data)


def test_rounding_to_bfloat16_is_that_of_torch():
    import torch

    values = np.random.default_rng(2).normal(size=1000).astype(np.float32)
    np.testing.assert_array_equal(
        to_bfloat16(values), torch.as_tensor(values).bfloat16().view(torch.uint16).numpy()
    )


def test_logits_on_a_device_give_the_likeliest_ids_by_the_functions_of_the_library(folder):
    runtime = Runtime('auto', str(library(folder)))
    rows = np.random.default_rng(4).normal(size=(3, 50)).astype(np.float32)
    asked = []

    def softmax(
        logits, temperature
    ):  # as mlc-llm's: [b, 1, v] and [b] in, at temperature 0 all on the likeliest
        asked.append((tuple(logits.shape), temperature.numpy().tolist()))
        array = logits.numpy()
        return runtime.from_numpy((array == array.max(axis=-1, keepdims=True)).astype(np.float32))

    def sample(probabilities, uniform, indices):
        sums = np.cumsum(probabilities.numpy(), axis=1)[indices.numpy()]
        return runtime.from_numpy((sums > uniform.numpy()[:, None]).argmax(axis=1).astype(np.int32))

    sampler = DeviceSampler(
        runtime, {'softmax_with_temperature': softmax, 'multinomial_from_uniform': sample}
    )
    logits = DeviceLogits(runtime, runtime.from_numpy(rows.reshape(3, 1, 50)), sampler)
    assert (
        logits.shape == (3, 50)
        and logits.argmax().tolist() == rows.argmax(axis=1).tolist()
        and asked == [((3, 1, 50), [0.0] * 3)]
    )
    np.testing.assert_array_equal(logits.numpy(), rows)
    plain = DeviceLogits(runtime, runtime.from_numpy(rows), DeviceSampler(runtime, {}))
    assert plain.argmax().tolist() == rows.argmax(axis=1).tolist()


LLAMA2 = {
    'system_template': '[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n',
    'system_message': 'Be "kind".',
    'roles': {'user': '[INST]', 'assistant': '[/INST]'},
    'add_role_after_system_message': False,
    'seps': [' ', ' </s><s>'],
    'role_content_sep': ' ',
    'role_empty_sep': ' ',
    'stop_token_ids': [2],
    'system_prefix_token_ids': [1],
}


def jinja(folder, conversation, messages):
    edit(folder / 'mlc-chat-config.json', lambda data: data.update(conv_template=conversation))
    (folder / 'chat_template.jinja').unlink(missing_ok=True)
    source = chat_template(MLCFolder(str(folder)), Tokenizer.from_folder(str(folder)))
    return source and jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source).render(
        messages=[{'role': role, 'content': text} for role, text in messages], add_generation_prompt=True
    )


def test_the_template_of_mlc_becomes_one_in_jinja(folder):
    chatml = {
        'system_template': '<|im_start|>system\n{system_message}<|im_end|>\n',
        'system_message': 'Hi \U0001f600\\n',
        'roles': {'user': '<|im_start|>user', 'assistant': '<|im_start|>assistant'},
        'seps': ['<|im_end|>\n'],
        'role_content_sep': '\n',
        'role_empty_sep': '\n',
    }
    talk = [('user', 'a'), ('assistant', 'b'), ('user', '{{ c }}')]
    assert jinja(folder, chatml, talk) == (
        '<|im_start|>system\nHi \U0001f600\\n<|im_end|>\n<|im_start|>user\na<|im_end|>\n'
        '<|im_start|>assistant\nb<|im_end|>\n'
        '<|im_start|>user\n{{ c }}<|im_end|>\n<|im_start|>assistant\n'
    )
    assert jinja(folder, chatml, [('system', 'S'), *talk]).startswith(
        '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na'
    )
    # as mlc-llm renders it: the first user message follows the system prompt without a role of its own; id 1
    # is <|im_start|> here
    assert jinja(folder, LLAMA2, talk) == (
        '<|im_start|>[INST] <<SYS>>\nBe "kind".\n<</SYS>>\n\na [/INST] b </s><s>[INST] {{ c }} [/INST] '
    )
    assert jinja(
        folder, {**LLAMA2, 'system_template': '{system_message}', 'system_message': ''}, talk
    ).startswith('<|im_start|>[INST] a ')
    assert jinja(folder, {'name': 'LM', 'roles': {'user': '', 'assistant': ''}, 'seps': ['']}, talk) is None
    assert jinja(folder, 'some-name', talk) is None


def test_only_special_tokens_end_a_reply(folder):
    def ends(**config):
        edit(folder / 'mlc-chat-config.json', lambda data: data.update(config))
        return end_ids(MLCFolder(str(folder)), Tokenizer.from_folder(str(folder)))

    assert ends(eos_token_id=None, conv_template={}) == {2}  # that of the tokenizer
    assert ends(
        eos_token_id=[2, 0], conv_template={'stop_token_ids': [77, 1], 'stop_str': ['<|im_end|>', '###']}
    ) == {0, 1, 2}
