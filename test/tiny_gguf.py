"""A tiny random GGUF model of Llama's form with a vocabulary of SentencePiece's kind, written here: what no
package has small.
"""

from __future__ import annotations

import gguf
import numpy as np
from small_vocabularies import train_sentencepiece_kind


def write_tiny_llama(
    path,
    corpus,
    chat_template: str | None = None,
    control: tuple[str, ...] = (),
    user_defined: tuple[str, ...] = (),
    add_space_prefix: bool = True,
) -> None:
    """control, user_defined: texts of further tokens, at the end of the vocabulary."""
    vocabulary = train_sentencepiece_kind('prepend', corpus)
    texts = [vocabulary.id_to_token(i) for i in range(vocabulary.get_vocab_size())] + [
        *control,
        *user_defined,
    ]
    kind = gguf.TokenType
    types = [
        kind.UNKNOWN
        if text == '<unk>'
        else kind.CONTROL
        if text in ('<s>', '</s>', *control)
        else kind.USER_DEFINED
        if text in user_defined
        else kind.BYTE
        if len(text) == 6 and text.startswith('<0x')
        else kind.NORMAL
        for text in texts
    ]
    width, heads, hidden, count = 32, 2, 64, len(texts)
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_name('tiny')
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(count)
    writer.add_tokenizer_model('llama')
    writer.add_tokenizer_pre('default')
    writer.add_token_list(texts)
    writer.add_token_scores([-float(i) for i in range(count)])  # in the order in which they were merged
    writer.add_token_types(types)
    writer.add_unk_token_id(texts.index('<unk>'))
    writer.add_bos_token_id(texts.index('<s>'))
    writer.add_eos_token_id(texts.index('</s>'))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(add_space_prefix)
    if chat_template:
        writer.add_chat_template(chat_template)

    def matrix(*shape):
        return random.standard_normal(shape).astype(np.float32) * 0.3

    writer.add_tensor('token_embd.weight', matrix(count, width))
    writer.add_tensor('output.weight', matrix(count, width))
    for name in ('output_norm', 'blk.0.attn_norm', 'blk.0.ffn_norm'):
        writer.add_tensor(f'{name}.weight', np.ones(width, np.float32))
    for name in ('attn_q', 'attn_k', 'attn_v', 'attn_output'):
        writer.add_tensor(f'blk.0.{name}.weight', matrix(width, width))
    for name, shape in (
        ('ffn_gate', (hidden, width)),
        ('ffn_up', (hidden, width)),
        ('ffn_down', (width, hidden)),
    ):
        writer.add_tensor(f'blk.0.{name}.weight', matrix(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
