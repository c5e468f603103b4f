"""Reads a vocabulary's files: which tokens end a reply, which have names, the chat template, and where a
space is put before a text.
"""

from __future__ import annotations

import os
from typing import Any

from ros2_nanochat.files import read_json

NAMES = ('bos_token', 'eos_token', 'unk_token', 'pad_token', 'sep_token', 'cls_token', 'mask_token')


def read_eos_ids(path: str) -> frozenset[int]:
    """Return the end ids of `generation_config.json`, as transformers' `generate` uses them, else those of
    `config.json`.
    """
    config = read_json(path, 'config.json')
    for source in (read_json(path, 'generation_config.json'), config, config.get('text_config') or {}):
        ids = source.get('eos_token_id') if isinstance(source, dict) else None
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            return frozenset(i for i in ids if isinstance(i, int) and not isinstance(i, bool))
    return frozenset()


def read_chat_template(path: str, tokenizer_config: dict) -> str | None:
    """Return the Jinja source of a folder's chat template; None if there is none.

    It is `chat_template.jinja`, else `chat_template` of tokenizer_config.json (a string, or the `default` of
    a list of named ones), else that of `chat_template.json` or `processor_config.json`, where image-text
    models have it.

    Args:
        path: The folder.
        tokenizer_config: Its tokenizer_config.json.
    """
    file = os.path.join(path, 'chat_template.jinja')
    if os.path.isfile(file):
        with open(file, encoding='utf-8', errors='replace') as stream:
            return stream.read()
    for config in (
        tokenizer_config,
        read_json(path, 'chat_template.json'),
        read_json(path, 'processor_config.json'),
    ):
        template = config.get('chat_template')
        if isinstance(template, list):
            template = {
                entry.get('name'): entry.get('template') for entry in template if isinstance(entry, dict)
            }
        if isinstance(template, dict):
            template = template.get('default') or next(iter(template.values()), None)
        if isinstance(template, str) and template:
            return template
    return None


def text_of(token: Any) -> str | None:
    """Return the text of a token, which is a string or a dict with `content`; None for anything else."""
    text = token.get('content') if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def named_tokens(*sources: dict) -> dict[str, str]:
    """Return the texts of the tokens in `NAMES`, each from the first source that has it."""
    named: dict[str, Any] = {}
    for name in NAMES:
        for source in sources:
            if text := text_of(source.get(name)):
                named.setdefault(name, text)
    return named


def without_first_space(data: dict) -> tuple[dict, bool]:
    """Return a copy of a tokenizer.json's data that puts no space before a text.

    Returns:
        The copy, and whether the original puts a space after a special token.
    """
    did = False

    def plain(step: dict | None) -> dict | None:
        nonlocal did
        if step is None:
            return None
        kind = step['type']
        if kind == 'Sequence':
            name = 'normalizers' if 'normalizers' in step else 'pretokenizers'
            return {**step, name: [s for s in map(plain, step[name]) if s is not None]}
        if kind == 'Prepend':
            did = True
            return None
        if kind == 'Metaspace' and step.get('prepend_scheme', 'always') != 'never':
            did = did or step.get('prepend_scheme', 'always') == 'always'
            return {**step, 'prepend_scheme': 'never'}
        if kind == 'ByteLevel' and step.get('add_prefix_space'):
            did = True
            return {**step, 'add_prefix_space': False}
        return step

    plain_data = {
        **data,
        'normalizer': plain(data.get('normalizer')),
        'pre_tokenizer': plain(data.get('pre_tokenizer')),
    }
    return plain_data, did
