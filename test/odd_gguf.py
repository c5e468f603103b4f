"""GGUF files that are written in tests: vocabularies of byte-level BPE, and copies of a file with other
metadata or other tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import gguf
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

CORPUS = ['The robot drives to the kitchen, AAAA aaaaaa     1111 222 ==== \n\n\n and says hello 東京.'] * 20


def bpe_vocabulary(corpus=CORPUS) -> tuple[list[str], list[str]]:
    """Tokens and merges of byte-level BPE; the first token is the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=400,
            show_progress=False,
            special_tokens=['<|endoftext|>'],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    model = json.loads(tokenizer.to_str())['model']
    merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in model['merges']]
    return sorted(model['vocab'], key=model['vocab'].get), merges


def write_tiny_bpe(path, pre: str = 'gpt-2', context: int = 4096) -> None:
    """A random model of Llama's form whose text is split as `pre` says."""
    texts, merges = bpe_vocabulary()
    width, hidden, count = 32, 64, len(texts)
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_name('tiny')
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(count)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(texts)
    writer.add_token_merges(merges)
    writer.add_token_types([int(gguf.TokenType.CONTROL)] + [int(gguf.TokenType.NORMAL)] * (count - 1))
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(False)

    def matrix(*shape):
        return random.standard_normal(shape).astype(np.float32) * 0.3

    shapes = {f'blk.0.attn_{name}': (width, width) for name in ('q', 'k', 'v', 'output')} | {
        'token_embd': (count, width),
        'output': (count, width),
        'blk.0.ffn_gate': (hidden, width),
        'blk.0.ffn_up': (hidden, width),
        'blk.0.ffn_down': (width, hidden),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f'{name}.weight', matrix(*shape))
    for name in ('output_norm', 'blk.0.attn_norm', 'blk.0.ffn_norm'):
        writer.add_tensor(f'{name}.weight', np.ones(width, np.float32))
    _finish(writer)


def copy_with(source, target, metadata: Mapping = {}, tensors: Mapping = {}, without: tuple = ()) -> None:
    """Copy a GGUF file with some fields (whose types stay, or are (type, value) pairs) and tensors replaced.

    Args:
        metadata: Values by key; a pair of a `gguf.GGUFValueType` and a value sets or adds a field.
        tensors: Arrays by the name of a tensor.
        without: Keys that are left out.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.fields['general.architecture'].contents()
    writer = gguf.GGUFWriter(target, architecture)
    fields = {}
    for key, field in reader.fields.items():
        if not key.startswith('GGUF.') and key not in (*without, 'general.architecture'):
            fields[key] = (field.types[0], field.contents(), field.types[-1])
    for key, value in metadata.items():
        kind = fields[key][0] if key in fields else None
        fields[key] = (*value, None) if isinstance(value, tuple) else (kind, value, fields[key][2])
    for key, (kind, value, inner) in fields.items():
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_key_value(key, value, kind, sub_type=inner)
        else:
            writer.add_key_value(key, value, kind)
    for tensor in reader.tensors:
        data = tensors.get(tensor.name, tensor.data)
        kind = None if tensor.name in tensors else tensor.tensor_type
        writer.add_tensor(tensor.name, np.array(data), raw_dtype=kind)
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_head(path, architecture: str, **fields) -> None:
    """A file without tensors. fields: `name=(gguf.GGUFValueType, value)` with `__` for the dots."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, (kind, value) in fields.items():
        writer.add_key_value(name.replace('__', '.'), value, kind)
    _finish(writer)


def write_tiny_t5(path) -> None:
    """An encoder and a decoder of one layer each, with random weights."""
    texts, merges = bpe_vocabulary()
    width, hidden, count = 32, 64, len(texts)
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, 't5')
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_relative_attn_buckets_count(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_decoder_start_token_id(0)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('gpt-2')
    writer.add_token_list(texts)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    shapes: dict[str, tuple[int, ...]] = {'token_embd': (count, width)}
    for side, parts in (('enc', ('attn',)), ('dec', ('attn', 'cross_attn'))):
        shapes[f'{side}.output_norm'] = (width,)
        for part in parts:
            shapes[f'{side}.blk.0.{part}_norm'] = (width,)
            shapes[f'{side}.blk.0.{part}_rel_b'] = (8, 2)
            shapes |= {f'{side}.blk.0.{part}_{name}': (width, width) for name in 'qkvo'}
        shapes[f'{side}.blk.0.ffn_norm'] = (width,)
        shapes[f'{side}.blk.0.ffn_up'] = (hidden, width)
        shapes[f'{side}.blk.0.ffn_down'] = (width, hidden)
    for name, shape in shapes.items():
        writer.add_tensor(f'{name}.weight', random.standard_normal(shape).astype(np.float32) * 0.3)
    _finish(writer)


def write_tiny_mamba(path, context: int = 4096, hybrid: bool = False) -> None:
    """A recurrent model with random weights; hybrid: of Jamba's form, with a layer of attention behind it."""
    texts, merges = bpe_vocabulary()
    width, inner, state, rank, hidden, count = 32, 64, 16, 2, 64, len(texts)
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, 'jamba' if hybrid else 'mamba')
    writer.add_name('tiny-mamba')
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden if hybrid else 0)
    writer.add_head_count(2 if hybrid else 0)
    if hybrid:
        writer.add_head_count_kv([0, 2])
    writer.add_block_count(2 if hybrid else 1)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('gpt-2')
    writer.add_token_list(texts)
    writer.add_token_merges(merges)
    writer.add_token_types([int(gguf.TokenType.CONTROL)] + [int(gguf.TokenType.NORMAL)] * (count - 1))
    writer.add_eos_token_id(0)

    def matrix(*shape):
        return random.standard_normal(shape).astype(np.float32) * 0.3

    tensors = {
        'token_embd.weight': matrix(count, width),
        'output.weight': matrix(count, width),
        'output_norm.weight': np.ones(width, np.float32),
        'blk.0.attn_norm.weight': np.ones(width, np.float32),
        'blk.0.ssm_in.weight': matrix(2 * inner, width),
        'blk.0.ssm_conv1d.weight': matrix(inner, 4),
        'blk.0.ssm_conv1d.bias': matrix(inner),
        'blk.0.ssm_x.weight': matrix(rank + 2 * state, inner),
        'blk.0.ssm_dt.weight': matrix(inner, rank),
        'blk.0.ssm_dt.bias': matrix(inner),
        'blk.0.ssm_a': -np.exp(matrix(inner, state)),
        'blk.0.ssm_d': np.ones(inner, np.float32),
        'blk.0.ssm_out.weight': matrix(width, inner),
    }
    ones = {'ssm_dt_norm': rank, 'ssm_b_norm': state, 'ssm_c_norm': state} if hybrid else {}
    tensors |= {f'blk.0.{name}.weight': np.ones(size, np.float32) for name, size in ones.items()}
    for layer in (0, 1) if hybrid else ():
        tensors |= {f'blk.{layer}.{name}_norm.weight': np.ones(width, np.float32) for name in ('attn', 'ffn')}
        tensors |= {f'blk.{layer}.ffn_{name}.weight': matrix(hidden, width) for name in ('gate', 'up')}
        tensors[f'blk.{layer}.ffn_down.weight'] = matrix(width, hidden)
    for name in ('q', 'k', 'v', 'output') if hybrid else ():
        tensors[f'blk.1.attn_{name}.weight'] = matrix(width, width)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    _finish(writer)
