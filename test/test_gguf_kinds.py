"""GGUF files that hold something else than a language model, or figures that make no sense, are refused at
opening in one line; the process lives. What can be read of a careless file is read.
"""

from __future__ import annotations

import os

import gguf
import numpy as np
import pytest
from odd_gguf import copy_with, write_head, write_tiny_bpe, write_tiny_mamba, write_tiny_t5

from ros2_nanochat import ChatHistory, NanoLLM
from ros2_nanochat.backends.gguf import trial
from ros2_nanochat.backends.gguf.header import Head, read_metadata
from ros2_nanochat.backends.gguf.kinds import check_tensors
from ros2_nanochat.errors import BackendError

F = gguf.GGUFValueType
NAN, INF = float('nan'), float('inf')


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp('plain') / 'plain.gguf'
    write_tiny_bpe(path)
    return str(path)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def refusal(path) -> str:
    with pytest.raises(BackendError) as caught:
        NanoLLM.from_pretrained(str(path), max_context_len=256, max_sequences=1).close()
    message = str(caught.value)
    assert message.isprintable() and len(message) < 600 and str(path) in message
    return message


# --- no causal language models ---


def test_an_encoder_decoder_is_refused_at_opening(tmp_path):
    write_tiny_t5(tmp_path / 'a.gguf')
    message = refusal(tmp_path / 'a.gguf')
    assert 't5' in message and 'encoder-decoder' in message and 'take a GGUF file' in message


@pytest.mark.parametrize(
    'architecture, fields, what',
    [
        ('bert', {'bert__attention__causal': (F.BOOL, False)}, 'an encoder'),
        ('nomic-bert', {'nomic-bert__pooling_type': (F.UINT32, 1)}, 'an embedding model'),
        ('qwen3', {'qwen3__pooling_type': (F.UINT32, 3)}, 'an embedding model'),
        ('qwen3', {'qwen3__pooling_type': (F.UINT32, 4)}, 'a reranker'),
        ('clip', {}, 'the vision part of a model'),
        ('llama', {'general__type': (F.STRING, 'mmproj')}, 'the vision part of a model'),
        ('llama', {'general__type': (F.STRING, 'adapter')}, 'a LoRA adapter'),
        ('imatrix', {'general__type': (F.STRING, 'imatrix')}, 'an importance matrix'),
        ('llama', {'general__type': (F.STRING, 'vae')}, "of the type 'vae'"),
        ('llama', {'adapter__type': (F.STRING, 'lora')}, 'a LoRA adapter'),
        ('llama', {'tokenizer__ggml__model': (F.STRING, 'none')}, 'no vocabulary'),
        ('llama', {'general__name': (F.STRING, 'v')}, 'a vocabulary without a model'),
    ],
)
def test_what_is_no_language_model_is_named(tmp_path, architecture, fields, what):
    write_head(tmp_path / 'a.gguf', architecture, **fields)
    message = refusal(tmp_path / 'a.gguf')
    assert what in message and ('take a GGUF file' in message or 'model' in message)


def test_an_architecture_that_llama_cpp_does_not_have_is_named_with_what_to_do(tmp_path, plain):
    with open(plain, 'rb') as file:
        data = file.read()
    (tmp_path / 'a.gguf').write_bytes(data.replace(b'llama', b'fluxx'))
    message = refusal(tmp_path / 'a.gguf')
    assert "'fluxx'" in message and 'newer llama.cpp' in message and 'take a GGUF file' in message


def test_a_recurrent_model_is_a_language_model(tmp_path):
    write_tiny_mamba(tmp_path / 'a.gguf')
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=256) as model:
        assert model.generate('The robot', max_new_tokens=4).wait().finish_reason in ('stop', 'length')


# --- figures ---


@pytest.mark.parametrize(
    'key, value',
    [
        ('block_count', 0),
        ('block_count', 2),
        ('block_count', (1 << 32) - 1),
        ('embedding_length', 0),
        ('embedding_length', 31),
        ('context_length', 0),
        ('feed_forward_length', 0),
        ('attention.head_count', 0),
        ('attention.head_count', 5),
        ('attention.head_count_kv', 0),
        ('attention.layer_norm_rms_epsilon', -1e-5),
        ('attention.layer_norm_rms_epsilon', NAN),
        ('expert_count', (F.UINT32, (1 << 32) - 1)),
        ('expert_count', (F.UINT32, 8)),
        ('expert_used_count', (F.UINT32, 1 << 31)),
        ('rope.freq_base', (F.FLOAT32, NAN)),
        ('rope.freq_base', (F.FLOAT32, -1.0)),
        ('rope.scaling.factor', (F.FLOAT32, INF)),
        ('rope.dimension_count', (F.UINT32, 7)),
        ('attention.key_length', (F.UINT32, 0)),
    ],
)
def test_a_figure_that_makes_no_sense_ends_in_one_line_and_never_in_the_process(tmp_path, plain, key, value):
    copy_with(plain, tmp_path / 'a.gguf', {f'llama.{key}': value})
    message = refusal(tmp_path / 'a.gguf')
    assert key in message or 'cannot be' in message


def test_what_llama_cpp_ends_its_process_for_is_said(tmp_path, plain):
    copy_with(plain, tmp_path / 'a.gguf', {'llama.expert_count': (F.UINT32, 8)})
    message = refusal(tmp_path / 'a.gguf')
    assert 'ends the process' in message and 'ASSERT' in message


def test_a_tokenizer_that_ends_the_process_is_found_at_opening(tmp_path):
    path = tmp_path / 'jina.gguf'
    write_tiny_bpe(path, 'whitespace')  # llama.cpp has it for an embedding model only
    assert 'ends the process' in refusal(path)


@pytest.mark.parametrize('bad', [NAN, INF])
def test_weights_that_are_no_numbers_are_refused(tmp_path, plain, bad):
    copy_with(plain, tmp_path / 'a.gguf', tensors={'blk.0.ffn_up.weight': np.full((64, 32), bad, np.float32)})
    with pytest.raises(BackendError, match='logits are'):
        NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=256)


def test_a_file_is_opened_apart_once(tmp_path, plain, monkeypatch):
    started = []
    popen = trial.subprocess.Popen

    def counting(*args, **options):
        started.append(args)
        return popen(*args, **options)

    monkeypatch.setattr(trial.subprocess, 'Popen', counting)
    for _ in range(2):
        NanoLLM.from_pretrained(plain, max_context_len=256, max_sequences=1).close()
    assert len(started) == 1
    copy_with(plain, tmp_path / 'a.gguf')
    for _ in range(2):
        NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=256, max_sequences=1).close()
    assert len(started) == 2
    NanoLLM.from_pretrained(max_context_len=256, max_sequences=1).close()  # comes with a package
    assert len(started) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(plain, monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    NanoLLM.from_pretrained(plain, max_context_len=256, max_sequences=1).close()


# --- careless files ---


def test_a_name_with_control_characters_does_not_reach_a_log(tmp_path, plain):
    name = 'a\x1b[31m\r\n[ERROR] forged \u202eb\x00' + 'x' * 500
    copy_with(plain, tmp_path / 'a.gguf', {'general.name': name})
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=256) as model:
        assert model.info.name.isprintable() and len(model.info.name) <= 203
    copy_with(plain, tmp_path / 'b.gguf', {'general.architecture': (F.STRING, 'a\n[ERROR] forged')})
    refusal(tmp_path / 'b.gguf')


def test_metadata_that_is_no_utf_8_is_read(tmp_path, plain):
    with open(plain, 'rb') as file:
        data = file.read()
    assert data.count(b'tiny') == 1
    (tmp_path / 'a.gguf').write_bytes(data.replace(b'tiny', b'ti\xff\xe9'))
    assert read_metadata(str(tmp_path / 'a.gguf'))['general.name'] == 'ti\ufffd\ufffd'
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=256) as model:
        assert model.info.name == 'ti\ufffd\ufffd'


def test_an_end_token_outside_the_vocabulary_is_ignored(tmp_path, plain, caplog):
    copy_with(plain, tmp_path / 'a.gguf', {'tokenizer.ggml.eos_token_id': 1 << 20})
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=256) as model:
        assert all(i < model.info.vocab_size for i in model.info.eos_token_ids)
        reply = model.generate('The robot', max_new_tokens=4, min_new_tokens=2).wait()
        assert reply.finish_reason in ('stop', 'length')
    assert 'eos_token_id=1048576 is ignored: the vocabulary ends at' in caplog.text


@pytest.mark.parametrize('named', ['outside', 'nowhere'])
@pytest.mark.parametrize('token', ['eos', 'bos'])
def test_a_word_is_no_end_or_beginning_because_llama_cpp_has_a_default(tmp_path, plain, token, named):
    key = f'tokenizer.ggml.{token}_token_id'
    if named == 'outside':
        copy_with(plain, tmp_path / 'a.gguf', {key: 1 << 20})
    else:
        copy_with(plain, tmp_path / 'a.gguf', without=(key,))
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=256) as model:
        special = {each.id for each in model.info.special_tokens}
        assert model.info.eos_token_ids <= special
        assert model.info.bos_token_id is None or model.info.bos_token_id in special
        words = [i for i in range(1, 20) if i not in special]
        assert not set(words) & model.info.eos_token_ids


def test_a_pad_token_that_is_a_word_is_known_if_the_file_names_it(tmp_path, plain):
    copy_with(plain, tmp_path / 'a.gguf', {'tokenizer.ggml.padding_token_id': (F.UINT32, 11)})
    with NanoLLM.from_pretrained(str(tmp_path / 'a.gguf'), max_context_len=256) as model:
        assert model.info.named_tokens['pad_token'] == model.backend.token_text(11)
    copy_with(plain, tmp_path / 'b.gguf', without=('tokenizer.ggml.padding_token_id',))
    with NanoLLM.from_pretrained(str(tmp_path / 'b.gguf'), max_context_len=256) as model:
        assert 'pad_token' not in model.info.named_tokens


@pytest.mark.parametrize('count', [None, 0, 1, -1, 'two', 2.0])
def test_a_file_without_tensors_that_is_no_part_of_a_split_model_is_refused(count):
    head = Head({} if count is None else {'split.count': count}, {})
    with pytest.raises(BackendError, match='a vocabulary without a model'):
        check_tensors('a.gguf', head)


def test_a_first_part_without_tensors_opens_and_gives_embeddings(tmp_path, plain):
    reader = gguf.GGUFReader(plain)
    names = [str(tmp_path / f'a-{i:05d}-of-00002.gguf') for i in (1, 2)]
    split = {'split.count': (F.UINT16, 2), 'split.tensors.count': (F.INT32, len(reader.tensors))}
    copy_with(plain, tmp_path / 'whole.gguf', {**split, 'split.no': (F.UINT16, 0)})
    whole = gguf.GGUFReader(tmp_path / 'whole.gguf')
    for number, name in enumerate(names):
        writer = gguf.GGUFWriter(name, 'llama')
        for key, field in whole.fields.items():
            if key.startswith('GGUF.') or key in ('general.architecture', 'split.no'):
                continue
            if number == 0 or key.startswith('split.'):
                sub = field.types[-1] if field.types[0] == F.ARRAY else None
                writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
        writer.add_key_value('split.no', number, F.UINT16)
        for tensor in reader.tensors if number else ():
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with NanoLLM.from_pretrained(plain, max_context_len=256) as model:
        expected = model.embed_text('robot')
    with NanoLLM.from_pretrained(names[0], max_context_len=256) as model:
        assert np.array_equal(model.embed_text('robot'), expected)
        assert model.generate('The robot', max_new_tokens=2).wait().finish_reason in ('stop', 'length')
        assert len(ChatHistory(model, 'chat-ml')) >= 0
    os.symlink(names[0], tmp_path / 'b.gguf')  # llama.cpp finds the other parts by the name
    with pytest.raises(BackendError, match='NAME-00001-of-00002.gguf') as caught:
        NanoLLM.from_pretrained(str(tmp_path / 'b.gguf'), max_context_len=256)
    assert '\n' not in str(caught.value)
    os.makedirs(tmp_path / 'rest')
    os.rename(names[1], tmp_path / 'rest' / os.path.basename(names[1]))
    with pytest.raises(ValueError, match='the first, a-00001-of-00002.gguf, is missing'):
        NanoLLM.from_pretrained(str(tmp_path / 'rest'), max_context_len=256)
