"""Finds the vocabulary of a model on a server: in tokenizer files, checked against the server, or through the
server itself (llama.cpp).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, LoadAborted, MissingDependency, one_line, require
from ros2_nanochat.hub import hub_name, hub_token
from ros2_nanochat.hub_transfer import HubTransfer
from ros2_nanochat.model_info import ModelInfo, SpecialToken
from ros2_nanochat.remote import message_vocabulary
from ros2_nanochat.remote.connection import Connection
from ros2_nanochat.remote.failures import ServerError
from ros2_nanochat.remote.identify import Found
from ros2_nanochat.remote.text import FilesText, RemoteText, ServerText, tokens_in

_log = logging.getLogger(__name__)

PROBE_TEXT = 'The robot’s arm: 12 cm, naïve, 世界 😀\n\n  if x >= 3:\treturn'
"""Cut differently by nearly any two vocabularies."""

_MARKUP = re.compile(r'<[|｜][^<>\s]{1,40}[|｜]>|</?[A-Za-z_][\w:/-]{0,30}>|\[/?[A-Z_]{2,30}\]')
_FILES = ['tokenizer*', '*.jinja', 'chat_template*', 'special_tokens_map.json', '*config.json', 'vocab.json']


@dataclass
class Vocabulary:
    """A vocabulary as facts, and how to make the text side of a model from them.

    Attributes:
        facts: Arguments of `ModelInfo`.
        make: Makes the text side.
        some_ids: Ids of a text, for probes.
    """

    facts: dict[str, Any]
    make: Callable[[ModelInfo], RemoteText]
    some_ids: list[int]


# --- files ---


def tokenizer_folder(
    config: ModelConfig, entry: dict, stopped: Callable[[], bool] | None = None
) -> str | None:
    """Return the folder with the tokenizer files of a model: what the option `tokenizer` names, or the
    server's own if it is on this machine. None if there is none.

    Args:
        config: The options.
        entry: What the server lists about the model.
        stopped: Asked again and again; a download ends when it returns True.

    Raises:
        LoadAborted: It was stopped.
        ValueError: What the option names does not exist.
        BackendError: It cannot be fetched.
    """
    if config.tokenizer is None:
        root = entry.get('root')
        folder = root if isinstance(root, str) and os.path.isabs(root) else ''
        return folder if os.path.isfile(os.path.join(folder, 'tokenizer.json')) else None
    path = os.path.expanduser(config.tokenizer)
    if os.path.isdir(path):
        return path
    name = None if os.path.isabs(path) or path.startswith('.') else hub_name(config.tokenizer)
    if name is None:
        raise ValueError(f'tokenizer={config.tokenizer!r} does not exist: a folder with tokenizer.json')
    try:
        with HubTransfer(name.repository, name.revision, hub_token(config), stopped) as hub:
            return hub.fetch({'allow_patterns': _FILES})
    except (LoadAborted, MissingDependency):
        raise
    except Exception as error:  # whatever the hub or the network does; a cached copy may be there
        try:
            return require('huggingface_hub', 'openai').snapshot_download(
                name.repository, revision=name.revision, allow_patterns=_FILES, local_files_only=True
            )
        except Exception:
            raise BackendError(
                f'tokenizer={config.tokenizer!r} cannot be fetched: {one_line(error)}'
            ) from error


async def from_files(folder: str, connection: Connection, model: str) -> tuple[Vocabulary | None, str]:
    """Return the vocabulary in a folder, or None and why it is not used.

    Args:
        folder: The folder.
        connection: The server, which may tokenize, too.
        model: The name of the model there.

    Raises:
        BackendError: The files are damaged.
    """
    try:
        from ros2_nanochat.backends.tokenizer import Tokenizer
    except MissingDependency as error:
        return None, str(error)
    tokenizer = await asyncio.to_thread(Tokenizer.from_folder, folder)
    here = tokenizer.tokenize(PROBE_TEXT)
    there = await tokenized_there(connection, model)
    if there is not None and there != here:
        return None, f'the tokenizer in {folder} is not that of the server'
    facts = {
        'vocab_size': tokenizer.vocab_size,
        'eos_token_ids': tokenizer.eos_token_ids,
        'bos_token_id': tokenizer.bos_token_id,
        'add_bos': tokenizer.add_bos,
        'named_tokens': tokenizer.named,
        'special_tokens': tokenizer.special_tokens,
        'chat_template': tokenizer.chat_template,
    }
    return Vocabulary(facts, lambda info: FilesText(info, tokenizer), here), ''


async def tokenized_there(connection: Connection, model: str) -> list[int] | None:
    """Return the ids of the probe text according to the server; None if it does not tokenize."""
    bodies: tuple[dict[str, Any], ...] = (
        {'model': model, 'prompt': PROBE_TEXT, 'add_special_tokens': False},
        {'content': PROBE_TEXT, 'add_special': False},
    )
    for body in bodies:
        try:
            answer = await connection.post(f'{connection.root}/tokenize', body)
        except ServerError:
            continue
        ids = answer.get('tokens') if isinstance(answer, dict) else None
        if isinstance(ids, list) and ids and all(isinstance(i, int) for i in ids):
            return ids
    return None


# --- llama.cpp ---


async def from_llama_cpp(
    connection: Connection, found: Found, ask: Callable[[str, dict], Any]
) -> tuple[Vocabulary | None, str]:
    """Return the vocabulary of a llama.cpp server, or None and why it is not used.

    Args:
        connection: The server.
        found: What is known of it.
        ask: See `ServerText`.
    """
    template = found.props.get('chat_template')
    template = template if isinstance(template, str) and template else None

    async def ids_of(text: str, special: bool, begin: bool = False) -> list[int]:
        body = {'content': text, 'add_special': begin, 'parse_special': special}
        answer = await connection.post(f'{connection.root}/tokenize', body)
        return [*tokens_in(answer)]

    try:
        plain = await ids_of(PROBE_TEXT, False)
        text = await connection.post(f'{connection.root}/detokenize', {'tokens': plain})
        if text.get('content') != PROBE_TEXT or await ids_of('a', False) == await ids_of(' a', False):
            return None, 'its vocabulary puts a space before the first word'
        named = {name: found.props.get(name) for name in ('bos_token', 'eos_token')}
        names = {name: value for name, value in named.items() if isinstance(value, str) and value}
        texts = sorted({*names.values(), *_MARKUP.findall(template or '')})
        both = await asyncio.gather(
            *[ids_of(text, True) for text in texts], *[ids_of(text, False) for text in texts]
        )
        begun = await ids_of('a', False, begin=True)
        without = await ids_of('a', False)
    except (ServerError, KeyError, TypeError, ValueError, AttributeError) as error:
        return None, f'its /tokenize does not work: {one_line(error)}'
    special = {
        text: marked[0]
        for text, marked, content in zip(texts, both, both[len(texts) :])
        if len(marked) == 1 and marked != content
    }
    bos = special.get(names.get('bos_token', ''))
    facts = {
        'vocab_size': message_vocabulary.VOCAB_SIZE,
        'eos_token_ids': frozenset(
            {special[names['eos_token']]} if names.get('eos_token') in special else ()
        ),
        'bos_token_id': bos,
        'add_bos': bos is not None and begun[:1] == [bos] and without[:1] != [bos],
        'named_tokens': names,
        'special_tokens': tuple(SpecialToken(i, text) for text, i in special.items()),
        'chat_template': template,
    }
    return Vocabulary(facts, lambda info: ServerText(info, ask), plain), ''
