"""Writes a Llama with random 4-bit weights as GGUF: a model of a known size where none can be downloaded.
What it says means nothing; what it costs is what a trained model of that shape costs.
"""

from __future__ import annotations

import os

import gguf
import numpy as np

# Of each shape, the fields of transformers' LlamaConfig.
SHAPES = {
    'llama-7b': dict(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    ),
    'llama-160m': dict(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    ),
}
_BLOCK = 32  # weights of a block of Q4_0: a scale in float16, then half a byte each


def write_random_llama(folder: str, shape: str, seed: int = 0) -> str:
    """Write a model.

    Args:
        folder: Where to.
        shape: One of `SHAPES`.
        seed: Of the weights.

    Returns:
        The path of the file: 3.8 GB for `llama-7b`.
    """
    size = SHAPES[shape]
    width, hidden, vocabulary = size['hidden_size'], size['intermediate_size'], size['vocab_size']
    layers, heads = size['num_hidden_layers'], size['num_attention_heads']
    path = os.path.join(folder, f'{shape}.gguf')
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_name(f'random {shape}')
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(vocabulary)
    _add_vocabulary(writer, vocabulary)
    random = np.random.default_rng(seed)
    matrices = {'token_embd': (vocabulary, width), 'output': (vocabulary, width)}
    norms = ['output_norm']
    for layer in range(layers):
        norms += [f'blk.{layer}.attn_norm', f'blk.{layer}.ffn_norm']
        for name in ('attn_q', 'attn_k', 'attn_v', 'attn_output'):
            matrices[f'blk.{layer}.{name}'] = (width, width)
        matrices[f'blk.{layer}.ffn_gate'] = matrices[f'blk.{layer}.ffn_up'] = (hidden, width)
        matrices[f'blk.{layer}.ffn_down'] = (width, hidden)
    for name in norms:
        writer.add_tensor(f'{name}.weight', np.ones(width, np.float32))
    pool = _blocks(random, hidden * width // _BLOCK)
    for name, (rows, columns) in matrices.items():
        count = rows * columns // _BLOCK
        first = int(random.integers(len(pool)))
        blocks = np.take(pool, range(first, first + count), axis=0, mode='wrap')
        writer.add_tensor(
            f'{name}.weight',
            blocks.reshape(rows, -1),
            raw_dtype=gguf.GGMLQuantizationType.Q4_0,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _blocks(random: np.random.Generator, count: int) -> np.ndarray:
    """Random blocks of Q4_0 [count, 18] as bytes; their weights spread by 0.02 around 0, as Llama starts."""
    blocks = random.integers(0, 256, (count, 2 + _BLOCK // 2), dtype=np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(0.02 / 4.6).tobytes(), np.uint8)
    return blocks


def _add_vocabulary(writer: gguf.GGUFWriter, count: int) -> None:
    """Add a vocabulary of single bytes, and of words that no text holds up to the size asked for."""
    kind = gguf.TokenType
    texts = ['<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(256))]
    types = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, *[kind.BYTE] * 256]
    more = range(len(texts), count)
    writer.add_tokenizer_model('llama')
    writer.add_tokenizer_pre('default')
    writer.add_token_list(texts + [f'<unused_{i}>' for i in more])
    writer.add_token_scores([-float(i) for i in range(count)])
    writer.add_token_types(types + [kind.UNUSED for _ in more])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
