"""Opens a model on servers: finds out what they can do, and chooses how to talk to them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from ros2_nanochat.config import DEFAULT_CONTEXT, EngineConfig, ModelConfig
from ros2_nanochat.errors import BackendError, LoadAborted, one_line, printable
from ros2_nanochat.loading_bar import LoadingBar
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.remote import message_vocabulary
from ros2_nanochat.remote.address import is_here, read_addresses, read_key
from ros2_nanochat.remote.attempts import Settings
from ros2_nanochat.remote.background import Background
from ros2_nanochat.remote.capabilities import Capabilities, Way
from ros2_nanochat.remote.connection import Connection
from ros2_nanochat.remote.engine import RemoteEngine
from ros2_nanochat.remote.failures import ServerError
from ros2_nanochat.remote.identify import ANSWER_SECONDS, Found, identify
from ros2_nanochat.remote.pool import Pool
from ros2_nanochat.remote.probe import Prober, keeps_pictures, takes_pictures
from ros2_nanochat.remote.questions import Questions
from ros2_nanochat.remote.server import Server
from ros2_nanochat.remote.text import MessageText, RemoteText
from ros2_nanochat.remote.tokens import (
    Vocabulary,
    from_files,
    from_llama_cpp,
    tokenized_there,
    tokenizer_folder,
)

_log = logging.getLogger(__name__)
_ASK_SECONDS = 30.0


@dataclass
class OpenedServers:
    """A model on servers, opened.

    Attributes:
        text: The text side of the model.
        engine: Runs requests.
        vision: Prepares pictures; None if the servers take none.
    """

    text: RemoteText
    engine: RemoteEngine
    vision: Any


class Opening:
    """Opens the servers that a config names. `abort` ends it from another thread.

    Args:
        config: The options; `model` has the addresses, with commas between them.
        engine: The options of the engine.
        open_model: Opens a local model; called with `config`, `engine` and `stop`.
        stop: Set it to end a download.
    """

    def __init__(
        self,
        config: ModelConfig,
        engine: EngineConfig,
        open_model: Callable[..., Any],
        stop: threading.Event | None = None,
    ):
        self._config, self._engine_config, self._open_model = config, engine, open_model
        self._stop, self._ended = stop, threading.Event()
        self._urls = read_addresses(config.model)
        self._key = read_key(config)
        self._background = Background()
        self._pool = Pool(
            [Server(Connection(url, self._key, config.connect_timeout), self._prepare) for url in self._urls]
        )
        self._background.at_end += [server.connection.close for server in self._pool.servers]
        self._exploring = asyncio.Lock()
        self._report: Callable[[float], None] = lambda share: None
        self._found: Found | None = None
        self._reference: Capabilities | None = None
        self._vocabulary: Vocabulary | None = None

    def abort(self) -> None:
        """End the opening."""
        self._ended.set()
        self._background.close()

    def open(self, progress: Callable[[float], None] | None = None) -> OpenedServers:
        """Ask the servers.

        Args:
            progress: Called with the share that is known, 0 to 1. Without it, a terminal shows a bar.

        Raises:
            BackendError: None of them works.
            ValueError: An option is not valid for them.
        """
        if self._key and any(url.startswith('http://') and not is_here(url) for url in self._urls):
            _log.warning('the key goes over the network without encryption: use an address with https://')
        try:
            with LoadingBar(', '.join(urlsplit(url).netloc for url in self._urls), progress) as self._report:
                self._background.run(self._pool.begin(self._config.connect_timeout, ANSWER_SECONDS))
            if self._stopped():
                raise LoadAborted('loading was stopped')
            if self._reference is None or self._found is None:
                raise BackendError('; '.join(server.reason for server in self._pool.servers))
            text = self._text(self._found, self._reference)
            fallback = self._open_fallback()
        except BaseException:
            self.abort()
            raise
        for server in self._pool.servers:
            if not server.works:
                _log.warning('%s is not used until it works: %s', server.url, server.reason)
        can, config = self._reference, self._config
        _log.info('%s: %s', self._found.can.model, can.described())
        for note in can.notes:
            _log.info('%s', note)
        settings = Settings(
            config.first_token_timeout, config.silence_timeout, config.resume_replies, self._salt()
        )
        engine = RemoteEngine(
            self._background,
            self._pool,
            text,
            settings,
            self._engine_config.max_queued_requests,
            fallback,
        )
        return OpenedServers(text, engine, _pictures() if can.images else None)

    def _open_fallback(self) -> Any:
        config = self._config
        if config.fallback is None:
            return None
        kept = {name: getattr(config, name) for name in ('api_token', 'threads', 'gpu_layers', 'device')}
        local = ModelConfig(model=None if config.fallback == 'embedded' else config.fallback, **kept)
        return self._open_model(config=local, engine=self._engine_config, stop=self._stop)

    def _salt(self) -> str:
        """Lets all who have the key share cached prefixes, and nobody else."""
        return hashlib.sha256(f'nanochat {self._key}'.encode()).hexdigest()[:32] if self._key else ''

    def _stopped(self) -> bool:
        return self._ended.is_set() or (self._stop is not None and self._stop.is_set())

    # --- on the loop's thread ---

    async def _prepare(self, server: Server) -> Capabilities:
        """Find out what a server can do, and whether it fits those that were asked before."""
        connection = server.connection
        found = await identify(connection, self._config.served_model)
        server.reason = 'it is asked what it can do'
        async with self._exploring:  # one server is asked for all of them
            if self._reference is None:
                self._reference = await self._explore(connection, found)
        return await self._like_the_others(connection, found)

    async def _explore(self, connection: Connection, found: Found) -> Capabilities:
        self._report(0.3)
        questions = Questions(connection, found.can.model)
        images = _llama_cpp_sees(found) if found.props else await takes_pictures(questions)
        keeps = images and not found.props and await keeps_pictures(questions)
        found.can = replace(found.can, images=images, keeps_pictures=keeps)
        way, vocabulary, note = await self._choose_way(connection, found)
        self._report(0.5)
        ids = vocabulary.some_ids if vocabulary is not None else []
        can = await Prober(questions, way, ids).explore(found.can)
        if way.takes_ids and can.images:
            can = replace(can, images=False, keeps_pictures=False).noting(
                'pictures need server_input: messages'
            )
        if note:
            can = can.noting(note)
        self._found, self._vocabulary = found, vocabulary
        self._report(1.0)
        return can

    async def _like_the_others(self, connection: Connection, found: Found) -> Capabilities:
        reference = self._reference
        assert reference is not None
        if found.can.kind != reference.kind or (
            reference.way.takes_ids and found.id_way is not reference.way
        ):
            raise BackendError(
                f'{found.can.kind} does not fit {reference.kind}: the servers of a fleet have to be of one'
                ' kind'
            )
        if self._vocabulary is not None and found is not self._found:
            there = await tokenized_there(connection, found.can.model)
            if there not in (None, self._vocabulary.some_ids):
                raise BackendError(
                    f'the vocabulary of {printable(found.can.model)} is not that of'
                    f' {printable(reference.model)}, which another server has: a fleet needs the same model'
                    ' on all servers'
                )
        if found.can.model != reference.model:
            _log.warning(
                '%s has the model %s, and another server %s: replies may come from either',
                connection.url,
                printable(found.can.model),
                printable(reference.model),
            )
        return replace(reference, model=found.can.model, slots=found.can.slots)

    async def _choose_way(self, connection: Connection, found: Found) -> tuple[Way, Vocabulary | None, str]:
        wanted = self._config.server_input
        note = ''
        if wanted != 'messages' and (wanted == 'ids' or not found.can.images):
            if found.id_way is None:
                note = f'{found.can.kind} takes no token ids'
            else:
                vocabulary, note = await self._find_vocabulary(connection, found)
                if vocabulary is not None:
                    return found.id_way, vocabulary, ''
            if wanted == 'ids':
                raise BackendError(f'server_input=ids is not possible: {note}')
        return Way.MESSAGES, None, f'it is talked to in messages: {note}' if note else ''

    async def _find_vocabulary(self, connection: Connection, found: Found) -> tuple[Vocabulary | None, str]:
        note = 'set tokenizer to the folder or hub name of the model, to talk in ids'
        if folder := await asyncio.to_thread(tokenizer_folder, self._config, found.entry, self._stopped):
            vocabulary, note = await from_files(folder, connection, found.can.model)
            if vocabulary is not None:
                return vocabulary, ''
        if found.can.kind == 'llama.cpp':
            return await from_llama_cpp(connection, found, self.ask)
        return None, note

    # --- the text side ---

    def _text(self, found: Found, can: Capabilities) -> RemoteText:
        asked, there = self._config.max_context_len, can.context_length
        if asked is not None and there is not None and asked > there:
            raise ValueError(f'max_context_len={asked} is not valid: the server holds {there} tokens')
        name = printable(os.path.basename(can.model).removesuffix('.gguf') or can.model)
        facts: dict[str, Any] = {
            'vocab_size': message_vocabulary.VOCAB_SIZE,
            'eos_token_ids': frozenset({message_vocabulary.END_ID}),
            'special_tokens': message_vocabulary.SPECIAL_TOKENS,
            'chat_template': message_vocabulary.TEMPLATE,
        }
        if self._vocabulary is not None:
            facts = self._vocabulary.facts
        context = asked or there or DEFAULT_CONTEXT
        info = ModelInfo(
            name=name,
            api='openai',
            architecture=can.kind,
            path=self._urls[0],
            context_length=context,
            train_context_length=there or context,
            embedding_size=1,
            takes_embeddings=can.images,
            **facts,
        )
        return MessageText(info) if self._vocabulary is None else self._vocabulary.make(info)

    def ask(self, path: str, body: dict) -> Any:
        """Ask any server that works; for threads other than the loop's.

        Raises:
            BackendError: None of them answers.
        """
        return self._background.run(self._ask(path, body), _ASK_SECONDS)

    async def _ask(self, path: str, body: dict) -> Any:
        reason = 'no server works'
        for server in sorted(self._pool.servers, key=lambda each: each.running):
            if server.works:
                try:
                    return await server.connection.post(f'{server.connection.root}{path}', body, _ASK_SECONDS)
                except ServerError as error:
                    reason = one_line(error)
        raise BackendError(reason)


def _llama_cpp_sees(found: Found) -> bool:
    modalities = found.props.get('modalities')
    return isinstance(modalities, dict) and bool(modalities.get('vision'))


def _pictures() -> Any:
    from ros2_nanochat.remote.pictures import PictureEncoder

    return PictureEncoder()
