"""Opening checkpoints with `hf` and `awq`: dtypes, AWQ, image-text models, what is missing or broken,
progress and abort.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
import safetensors.torch  # noqa: E402
from test_hf_architectures import (  # noqa: E402
    SMALL,
    VOCAB,
    close,
    expected,
    feed,
    make_model,
    rng,
    save_model,
)

from ros2_nanochat import NanoLLM  # noqa: E402
from ros2_nanochat.backends.base import Chunk  # noqa: E402
from ros2_nanochat.backends.hf import loading as hf_load  # noqa: E402
from ros2_nanochat.backends.hf.backend import HFBackend  # noqa: E402
from ros2_nanochat.backends.hf.checkpoint import Checkpoint  # noqa: E402
from ros2_nanochat.backends.hf.kinds import other_kind  # noqa: E402
from ros2_nanochat.config import ModelConfig  # noqa: E402
from ros2_nanochat.errors import BackendError, ForwardError, LoadAborted  # noqa: E402


def opened(path, **options) -> HFBackend:
    backend = HFBackend(str(path), ModelConfig(max_context_len=128, **options))
    backend.open()
    return backend


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp('llama'), make_model('llama'))


def copy_of(folder, to, leave_out=()):
    for name in os.listdir(folder):
        if name not in leave_out:
            with open(os.path.join(folder, name), 'rb') as source:
                (to / name).write_bytes(source.read())
    return to


def test_the_limit_of_a_control_group_counts_for_it_too(llama, monkeypatch):
    monkeypatch.setattr('ros2_nanochat.memory.available_memory', lambda: 100 << 20)
    with pytest.raises(BackendError, match='does not fit: .* 100 MiB are free'):
        NanoLLM.from_pretrained(llama, api='hf')


# --- AWQ: written here as AutoAWQ documents it, and read back by transformers as a dense twin


def quantize(weight: np.ndarray, group: int):
    """[out, in] -> (packed weights, packed zeros, scales, the dense weight that they stand for)."""
    columns = weight.T.reshape(weight.shape[1] // group, group, weight.shape[0])
    low, high = columns.min(1), columns.max(1)
    scales = np.maximum((high - low) / 15, 1e-5).astype(np.float16)
    zeros = np.clip(np.round(-low / scales.astype(np.float32)), 0, 15).astype(np.int64)
    levels = np.clip(np.round(columns / scales[:, None].astype(np.float32)) + zeros[:, None], 0, 15).astype(
        np.int64
    )
    dense = ((levels - zeros[:, None]) * scales[:, None].astype(np.float32)).reshape(weight.shape[1], -1).T
    return (
        pack(levels.reshape(weight.shape[1], -1)),
        pack(zeros),
        np.ascontiguousarray(scales),
        np.ascontiguousarray(dense),
    )


def pack(numbers: np.ndarray) -> np.ndarray:
    """Column 8i + [0, 2, 4, 6, 1, 3, 5, 7][k] of a row lies in bits 4k to 4k + 3 of number i."""
    packed = np.zeros((numbers.shape[0], numbers.shape[1] // 8), np.uint32)
    for k, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
        packed |= numbers[:, column::8].astype(np.uint32) << np.uint32(4 * k)
    return packed.view(np.int32)


@pytest.fixture(scope='module')
def awq(tmp_path_factory):
    """(folder of an AWQ checkpoint, its dense twin)."""
    folder = tmp_path_factory.mktemp('awq')
    return folder, make_awq(folder, make_model('llama'), 16)


def make_awq(folder, model, group: int):
    """Save a model as an AWQ checkpoint; return its dense twin."""
    save_model(folder, model)
    tensors = {}
    for name, value in model.state_dict().items():
        if '_proj.' in name:
            layer = name.removesuffix('.weight')
            qweight, qzeros, scales, dense = quantize(value.numpy(), group)
            value.copy_(torch.from_numpy(dense))
            tensors |= {
                f'{layer}.qweight': torch.from_numpy(qweight),
                f'{layer}.qzeros': torch.from_numpy(qzeros),
                f'{layer}.scales': torch.from_numpy(scales),
            }
        else:
            tensors[name] = value.clone()
    safetensors.torch.save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
    config = json.loads((folder / 'config.json').read_text())
    config['quantization_config'] = {
        'quant_method': 'awq',
        'bits': 4,
        'group_size': group,
        'version': 'gemm',
        'zero_point': True,
    }
    (folder / 'config.json').write_text(json.dumps(config))
    return model


def test_an_awq_checkpoint_gives_the_logits_of_its_dense_twin(awq, caplog):
    folder, twin = awq
    ids = rng().integers(3, VOCAB, 20)
    with caplog.at_level(logging.WARNING):
        backend = opened(folder, api='awq')
    assert (
        'unpacked' in caplog.text
        and backend.info.api == 'awq'
        and backend.info.quantization == 'awq as float32'
    )
    assert close(feed(backend, backend.new_sequence(), ids, 20), expected(twin, ids))
    if not importlib.util.find_spec('gptqmodel'):
        assert HFBackend.estimate(str(folder), ModelConfig(api='awq')).weights == backend.info.weights_bytes


def test_awq_is_unpacked_where_its_kernels_do_not_take_it(awq, caplog, monkeypatch):
    folder, twin = awq
    monkeypatch.setattr(
        hf_load, '_has_awq_kernels', lambda device: True
    )  # it may be there, but does not run groups of 16
    with caplog.at_level(logging.WARNING):
        backend = opened(folder, api='awq')
    assert 'gptqmodel does not run it here' in caplog.text and backend.info.quantization == 'awq as float32'
    ids = rng().integers(3, VOCAB, 20)
    assert close(feed(backend, backend.new_sequence(), ids, 20), expected(twin, ids))


def test_with_gptqmodel_the_weights_stay_at_four_bits_on_a_cpu_too(tmp_path):
    pytest.importorskip('gptqmodel')
    dense = make_awq(tmp_path, make_model('llama', hidden_size=256, intermediate_size=512), 128)
    backend = opened(tmp_path, api='awq')
    assert backend.info.quantization == 'awq'
    ids = rng().integers(3, VOCAB, 20)
    wanted = expected(dense, ids)
    rows = feed(backend, backend.new_sequence(), ids, 20)
    assert np.abs(rows - wanted).max() < 0.05 * np.abs(wanted).max()  # its kernels round sums to bfloat16


def test_awq_weights_beside_a_model_are_taken(awq, llama):
    folder, twin = awq
    ids = rng().integers(3, VOCAB, 20)
    backend = opened(llama, api='awq', quantization=str(folder))
    assert close(feed(backend, backend.new_sequence(), ids, 20), expected(twin, ids))


@pytest.mark.parametrize(
    'change, said',
    [({'version': 'gemv'}, 'gemv'), ({'bits': 3}, '3 bits'), ({'quant_method': 'gptq'}, 'no AWQ checkpoint')],
)
def test_another_kind_of_awq_is_refused_clearly(awq, tmp_path, change, said):
    copy_of(awq[0], tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    config['quantization_config'].update(change)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(BackendError, match=said) as error:
        opened(tmp_path, api='awq')
    assert '\n' not in str(error.value)


# --- dtypes and quantizers


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_a_dtype_is_taken_from_quantization(llama, dtype):
    backend = opened(llama, quantization=dtype)
    assert backend.info.quantization == dtype and backend.runner.packed
    rows = feed(backend, backend.new_sequence(), rng().integers(3, VOCAB, 9))
    assert rows.dtype == np.float32
    assert HFBackend.estimate(llama, ModelConfig(quantization=dtype)).weights == backend.info.weights_bytes


def test_an_unknown_quantization_is_refused_with_the_list(llama):
    with pytest.raises(BackendError, match='bitsandbytes-4bit.*torchao-int8'):
        opened(llama, quantization='q4f16_1')


def test_a_quantizer_whose_package_is_missing_names_the_command(llama, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name, *rest: None if name == 'bitsandbytes' else find(name, *rest)
    )
    with pytest.raises(BackendError, match='pip install bitsandbytes'):
        opened(llama, quantization='bitsandbytes-4bit')


def test_a_quantizer_that_needs_cuda_says_so(llama, monkeypatch):
    import importlib.util

    monkeypatch.setattr(
        'ros2_nanochat.backends.hf.loading.importlib.util.find_spec',
        lambda name, *rest: importlib.machinery.ModuleSpec(name, None),
    )
    with pytest.raises(BackendError, match='CUDA'):
        opened(llama, quantization='torchao-int4', device='cpu')


@pytest.mark.parametrize('quantizer', ['bitsandbytes-4bit', 'bitsandbytes-8bit', 'torchao-int8', 'fp8'])
def test_a_quantized_model_stays_near_the_dense_one(llama, quantizer):
    pytest.importorskip({'fp8': 'torchao'}.get(quantizer, quantizer.partition('-')[0]))
    ids = rng().integers(3, VOCAB, 12)
    backend = opened(llama, quantization=quantizer)
    rows, wanted = feed(backend, backend.new_sequence(), ids, 12), expected(make_model('llama'), ids)
    assert np.corrcoef(rows.reshape(-1), wanted.reshape(-1))[0, 1] > 0.95
    assert backend.info.quantization == quantizer


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
@pytest.mark.parametrize(
    'device, said',
    [
        ('cuda', 'sees 0 CUDA devices'),
        ('cuda:1', 'CUDA devices'),
        ('tpu', 'not valid'),
        ('cpu:x', 'not valid'),
    ],
)
def test_a_device_that_is_not_there_is_named(llama, device, said):
    with pytest.raises(BackendError, match=said):
        opened(llama, device=device)


# --- what is missing or broken


def broken(tmp_path, llama, how):
    if how == 'no weights':
        return copy_of(llama, tmp_path, ['model.safetensors'])
    if how == 'only .bin':
        copy_of(llama, tmp_path, ['model.safetensors'])
        (tmp_path / 'pytorch_model.bin').write_bytes(b'x')
    elif how == 'wrong folder':
        (tmp_path / 'readme.txt').write_text('x')
    elif how == 'cut short':
        data = (Path(copy_of(llama, tmp_path)) / 'model.safetensors').read_bytes()
        (tmp_path / 'model.safetensors').write_bytes(data[: len(data) // 2])
    elif how == 'no header':
        copy_of(llama, tmp_path)
        (tmp_path / 'model.safetensors').write_bytes(b'\xff' * 20)
    elif how == 'other shapes':
        copy_of(llama, tmp_path)
        config = json.loads((tmp_path / 'config.json').read_text())
        (tmp_path / 'config.json').write_text(json.dumps({**config, 'hidden_size': 64, 'head_dim': 16}))
    elif how == 'more layers':
        copy_of(llama, tmp_path)
        config = json.loads((tmp_path / 'config.json').read_text())
        (tmp_path / 'config.json').write_text(json.dumps({**config, 'num_hidden_layers': 5}))
    elif how == 'a missing shard':
        copy_of(llama, tmp_path)
        (tmp_path / 'model.safetensors.index.json').write_text(
            json.dumps({'weight_map': {'a': 'model.safetensors', 'b': 'other.safetensors'}})
        )
    else:
        copy_of(llama, tmp_path)
        config = json.loads((tmp_path / 'config.json').read_text())
        config.update(
            {
                'unknown': {'model_type': 'nosuchmodel'},
                'own code': {'model_type': 'mine', 'auto_map': {'AutoModelForCausalLM': 'm.M'}},
                'encoder': {'model_type': 'vit', 'architectures': ['ViTModel']},
                'nonsense': {'num_attention_heads': 'many'},
                'an end token as text': {**config, 'eos_token_id': '</s>'},
            }[how]
        )
        (tmp_path / 'config.json').write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    'how, said',
    [
        ('no weights', r'has no \*\.safetensors'),
        ('only .bin', 'can run code'),
        ('wrong folder', 'no config.json'),
        ('cut short', 'cut short'),
        ('no header', 'no valid safetensors'),
        ('other shapes', 'transformers|lacks'),
        ('more layers', 'lacks .* tensors'),
        ('a missing shard', 'lacks other.safetensors'),
        ('unknown', 'nosuchmodel'),
        ('own code', 'trust_remote_code=True'),
        ('encoder', 'no causal language model'),
        ('nonsense', 'cannot open'),
        ('an end token as text', "cannot open .*'eos_token_id': .*'</s>'"),
    ],
)
def test_what_cannot_be_opened_is_one_clear_line(tmp_path, llama, how, said):
    folder = broken(tmp_path, llama, how)
    with pytest.raises(BackendError, match=said) as error:
        opened(folder)
    assert '\n' not in str(error.value) and str(folder) in str(error.value)


def test_a_path_that_is_not_there_is_named():
    with pytest.raises(BackendError, match='/nowhere does not exist'):
        opened('/nowhere')


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    for name in ('a.gguf', 'a.bin'):
        (tmp_path / name).write_bytes(b'not a model')
        with pytest.raises(BackendError, match='GGUF|gguf'):
            opened(tmp_path / name)


# --- progress, abort, limits


def test_progress_goes_from_start_to_one_and_never_back(llama):
    shares = []
    backend = HFBackend(llama, ModelConfig())
    backend.open(shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 10
    backend.close()
    backend.close()


def test_an_abort_ends_a_load(llama):
    backend = HFBackend(llama, ModelConfig())
    with pytest.raises(LoadAborted):
        backend.open(lambda share: backend.abort() if share > 0.3 else None)


def test_an_abort_ends_a_forward_and_leaves_the_sequence_as_it_was(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{
            **SMALL,
            'hidden_size': 256,
            'intermediate_size': 2048,
            'num_hidden_layers': 12,
            'max_position_embeddings': 4096,
        }
    )
    backend = HFBackend(
        save_model(tmp_path, transformers.LlamaForCausalLM(config)), ModelConfig(max_context_len=4096)
    )
    backend.open()
    seq = backend.new_sequence()
    feed(backend, seq, [5, 6, 7])
    timer = threading.Timer(0.05, backend.abort)
    start = time.monotonic()
    timer.start()
    with pytest.raises(LoadAborted):
        for _ in range(100):
            backend.forward([Chunk(seq, ids=rng().integers(3, VOCAB, 4000))])
            backend.trim(seq, 3)
    assert time.monotonic() - start < 30
    assert backend.kv_used == 3
    timer.join()
    assert close(feed(backend, seq, [8]), expected(backend.model, [5, 6, 7, 8])[-1:])


def test_what_does_not_fit_is_refused_before_anything_is_committed(llama):
    backend = opened(llama, max_sequences=2, kv_tokens=150)
    a, b = backend.new_sequence(), backend.new_sequence()
    with pytest.raises(BackendError, match='max_sequences=2'):
        backend.new_sequence()
    feed(backend, a, rng().integers(3, VOCAB, 100))
    for seq, n, said in ((a, 30, 'context of 128'), (b, 60, 'room for 50 of 150')):
        with pytest.raises(ForwardError, match=said) as error:
            feed(backend, seq, rng().integers(3, VOCAB, n))
        assert error.value.committed == [0]
    assert backend.kv_used == 100


# --- image-text models, positions, attention both ways


def save_qwen_vl(folder):
    text = {
        **SMALL,
        'rope_parameters': {'rope_type': 'default', 'mrope_section': [2, 1, 1], 'rope_theta': 10000.0},
    }
    vision = dict(depth=1, embed_dim=16, hidden_size=32, num_heads=2, mlp_ratio=2)
    config = transformers.Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=3,
        video_token_id=4,
        vision_start_token_id=5,
        vision_end_token_id=6,
    )
    torch.manual_seed(0)
    return save_model(folder, transformers.Qwen2VLForConditionalGeneration(config).eval())


def test_positions_on_three_axes_give_what_transformers_gives_and_trim_knows_them(tmp_path):
    backend = opened(save_qwen_vl(tmp_path))
    assert backend.runner.packed and backend.info.architecture == 'qwen2_vl'
    before, image, after = (
        rng(1).integers(7, VOCAB, 6),
        rng(2).normal(size=(9, 32)).astype(np.float32),
        rng(3).integers(7, VOCAB, 5),
    )
    grid = np.stack([np.zeros(9), np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)]).astype(np.int64)
    embed = backend.embed_tokens
    whole = torch.from_numpy(np.concatenate([embed(before), image, embed(after)]))[None]
    axes = np.concatenate([np.tile(np.arange(6), (3, 1)), 6 + grid, np.tile(9 + np.arange(5), (3, 1))], 1)
    with torch.inference_mode():
        wanted = (
            backend.model(inputs_embeds=whole, position_ids=torch.from_numpy(axes)[:, None]).logits[0].numpy()
        )
    seq = backend.new_sequence()

    def feed_image():
        backend.forward([Chunk(seq, embeddings=image, positions=grid, advance=3)])
        return feed(backend, seq, after, 5)

    feed(backend, seq, before)
    assert close(feed_image(), wanted[-5:])
    assert backend.trim(seq, 17) == 17
    assert close(feed(backend, seq, after[2:], 3), wanted[-3:])
    assert backend.trim(seq, 10) == 6  # an image is not cut
    assert close(feed_image(), wanted[-5:])
    copy, kept = backend.fork(seq, 15)
    assert kept == 15 and close(feed(backend, copy, after, 5), wanted[-5:])


def test_attention_both_ways_within_a_chunk_is_that_of_gemma3(tmp_path):
    text = {
        **SMALL,
        'head_dim': 16,
        'sliding_window': 8,
        'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
    }
    vision = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=3
        )
    )
    backend = opened(save_model(tmp_path, model.eval()))
    assert backend.runner.packed and backend.info.context_length == 128
    before, image, after = (
        rng(1).integers(7, VOCAB, 11),
        rng(2).normal(size=(5, 32)).astype(np.float32),
        rng(3).integers(7, VOCAB, 5),
    )
    whole = torch.from_numpy(
        np.concatenate([backend.embed_tokens(before), image, backend.embed_tokens(after)])
    )[None]
    kinds = torch.tensor([[0] * 11 + [1] * 5 + [0] * 5])
    with torch.inference_mode():
        wanted = (
            model(inputs_embeds=whole, token_type_ids=kinds, attention_mask=torch.ones_like(kinds))
            .logits[0]
            .numpy()
        )
        plain = model(inputs_embeds=whole).logits[0].numpy()
    assert not close(plain[-1], wanted[-1])
    seq, other = backend.new_sequence(), backend.new_sequence()
    feed(backend, seq, before)
    backend.forward([Chunk(seq, embeddings=image, bidirectional=True), Chunk(other, ids=before[:5])])
    assert close(feed(backend, seq, after, 5), wanted[-5:])
    assert backend.trim(seq, 13) == 11


def test_a_llava_is_opened_whole(tmp_path):
    vision = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SMALL),
        vision_config=transformers.CLIPVisionConfig(**vision),
        image_token_index=3,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    backend = opened(save_model(tmp_path, model))
    ids = rng(1).integers(7, VOCAB, 12)
    assert backend.runner.packed and hasattr(backend.model.model, 'vision_tower')
    assert close(feed(backend, backend.new_sequence(), ids, 12), expected(model, ids))


# --- what is not installed, and what is off by default


def test_without_torch_the_command_that_installs_it_is_named(llama):
    code = (
        'import sys; sys.modules["torch"] = None\n'
        'from ros2_nanochat import NanoLLM\n'
        f'NanoLLM.from_pretrained({llama!r}, api="hf")'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "pip install '.[hf]'" in done.stderr.splitlines()[-1], done.stderr


def test_code_of_a_checkpoint_runs_only_where_it_is_trusted(llama, tmp_path):
    copy_of(llama, tmp_path)
    (tmp_path / 'mine.py').write_text(
        'import transformers\nclass MineConfig(transformers.LlamaConfig):\n    model_type = "mine"\n'
        'class MineForCausalLM(transformers.LlamaForCausalLM):\n    config_class = MineConfig\n'
    )
    config = json.loads((tmp_path / 'config.json').read_text())
    config.update(
        model_type='mine',
        auto_map={'AutoConfig': 'mine.MineConfig', 'AutoModelForCausalLM': 'mine.MineForCausalLM'},
    )
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(BackendError, match='trust_remote_code=True'):
        opened(tmp_path)
    backend = opened(tmp_path, trust_remote_code=True)
    ids = rng().integers(3, VOCAB, 9)
    assert type(backend.model).__name__ == 'MineForCausalLM'
    assert close(feed(backend, backend.new_sequence(), ids, 9), expected(make_model('llama'), ids))


@pytest.mark.long
@pytest.mark.parametrize('kind', ['llama', 'gemma3'])
def test_a_compiled_model_gives_the_same_logits(kind, tmp_path):
    model = make_model(kind)
    backend = opened(save_model(tmp_path, model), compile=True)
    ids = rng().integers(3, VOCAB, 24)
    seq, other = backend.new_sequence(), backend.new_sequence()
    feed(backend, seq, ids[:12])
    for i in range(12, 24):
        rows = backend.forward(
            [
                Chunk(seq, ids=ids[i : i + 1], num_logits=1),
                Chunk(other, ids=ids[i - 12 : i - 11], num_logits=1),
            ]
        ).numpy()
        assert close(rows[0], expected(model, ids[: i + 1])[-1])


@pytest.mark.parametrize(
    'change, said',
    [
        ({'architectures': ['BertForMaskedLM']}, 'made for another task'),
        ({'architectures': ['XLMRobertaForSequenceClassification']}, 'made for another task'),
        ({'architectures': ['MistralModel']}, 'without a language head'),
        ({'architectures': ['T5ForConditionalGeneration'], 'is_encoder_decoder': True}, 'encoder-decoder'),
        ({}, 'an embedding model'),
    ],
)
def test_what_is_no_language_model_is_named(llama, tmp_path, change, said):
    copy_of(llama, tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({**config, **change}))
    if not change:
        (tmp_path / '1_Pooling').mkdir()
    with pytest.raises(BackendError, match=said) as caught:
        opened(tmp_path)
    assert '\n' not in str(caught.value) and 'no causal language model' in str(caught.value)


def test_classes_of_transformers_are_told_apart_by_their_names(tmp_path):
    from transformers.models.auto import modeling_auto as auto

    def names(mapping):
        given = (each if isinstance(each, (tuple, list)) else (each,) for each in mapping.values())
        return {name for each in given for name in each}

    def kind(name):
        return other_kind(Checkpoint(str(tmp_path), config={'architectures': [name]}))

    causal = names(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert [name for name in causal if kind(name)] == []
    others = ('OBJECT_DETECTION', 'DEPTH_ESTIMATION', 'SEMANTIC_SEGMENTATION', 'CTC', 'TOKEN_CLASSIFICATION')
    for task in others:
        found = names(getattr(auto, f'MODEL_FOR_{task}_MAPPING_NAMES')) - causal
        unnamed = [name for name in found if not kind(name)]
        assert found and len(unnamed) <= 0.1 * len(found), unnamed


def test_what_makes_no_text_is_named_before_its_tokenizer_is_missed(tmp_path):
    config = {'architectures': ['DetrForObjectDetection'], 'model_type': 'detr'}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    safetensors.torch.save_file({'a': torch.zeros(1)}, tmp_path / 'model.safetensors')
    with pytest.raises(BackendError, match='made for another task .ObjectDetection'):
        opened(tmp_path)


def test_a_model_whose_logits_are_no_numbers_is_refused_at_opening(llama, tmp_path):
    copy_of(llama, tmp_path)
    weights = safetensors.torch.load_file(tmp_path / 'model.safetensors')
    name = next(name for name in weights if 'mlp' in name)
    weights[name] = torch.full_like(weights[name], float('nan'))
    safetensors.torch.save_file(weights, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(BackendError, match='not numbers') as caught:
        opened(tmp_path)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('ids', [10**9, [-1, 2], ['</s>', None, 2.5, True]])
def test_end_tokens_that_do_not_exist_are_ignored(llama, tmp_path, ids):
    copy_of(llama, tmp_path)
    (tmp_path / 'generation_config.json').write_text(json.dumps({'eos_token_id': ids}))
    with NanoLLM.from_pretrained(str(tmp_path), api='hf', max_context_len=64) as model:
        assert all(0 <= i < model.info.vocab_size for i in model.info.eos_token_ids)
        assert model.generate([3, 4], max_new_tokens=3, min_new_tokens=2).wait().finish_reason in (
            'stop',
            'length',
        )
