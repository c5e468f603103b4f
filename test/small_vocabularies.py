"""Vocabularies of SentencePiece's kind, as they come in tokenizer.json files, trained here."""

from __future__ import annotations

import json
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

_BYTES = [f'<0x{i:02X}>' for i in range(256)]


def train_sentencepiece_kind(kind: str, corpus: Iterable[str]) -> tokenizers.Tokenizer:
    """kind: how a space before the first word comes about: 'prepend', 'metaspace', or 'gemma' (not at
    all).
    """
    t = tokenizers.Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token='<unk>'))
    steps = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
    if kind == 'metaspace':
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='first', split=False)
    else:
        prepend = [normalizers.Prepend('▁')] if kind == 'prepend' else []
        t.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(' ', '▁')])
    t.decoder = decoders.Sequence(steps if kind == 'gemma' else [*steps, decoders.Strip(' ', 1, 0)])
    t.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=900, show_progress=False, special_tokens=['<unk>', '<s>', '</s>', *_BYTES]
        ),
    )
    data = json.loads(t.to_str())  # the bytes belong to the vocabulary and are no special tokens
    data['added_tokens'] = [token for token in data['added_tokens'] if token['content'] not in _BYTES]
    return tokenizers.Tokenizer.from_str(json.dumps(data))
