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
