"""Gets a reply from the servers: asks one, and another if that is possible when it fails.

A reply moves to another server only before its first token, or if its ids let it continue where it stopped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ros2_nanochat.remote.connection import Watch
from ros2_nanochat.remote.dialect import DIALECTS, Question
from ros2_nanochat.remote.failures import Overloaded, ServerError, Unavailable
from ros2_nanochat.remote.forms import STYLES
from ros2_nanochat.remote.pool import Pool
from ros2_nanochat.remote.reply import RemoteReply
from ros2_nanochat.remote.server import Server
from ros2_nanochat.remote.text import MessageText, RemoteText, ServerText, real_ids

_log = logging.getLogger(__name__)
_AFTER_THE_END = 1.0  # seconds to wait for figures and the end of a stream whose text is complete
SESSION_HEADER = 'X-Session-ID'
"""Says which conversation a request belongs to; routers that hash it keep the conversation on one server."""


@dataclass(frozen=True)
class Settings:
    """Limits of time, and what to do when a server fails.

    Attributes:
        first_token_timeout: Seconds until the first token.
        silence_timeout: Seconds between two tokens.
        resume: A reply that a server breaks off continues on another one.
        salt: See `Question.salt`.
    """

    first_token_timeout: float
    silence_timeout: float
    resume: bool
    salt: str = ''


class Attempts:
    """Gets replies from a pool of servers.

    Args:
        pool: The servers.
        text: The text side of the model.
        settings: Limits and rules.
        fallback: A model that answers if no server works, or None.
    """

    def __init__(self, pool: Pool, text: RemoteText, settings: Settings, fallback: Any = None):
        self._pool, self._text, self._settings = pool, text, settings
        self._fallback = fallback
        self._threads = ThreadPoolExecutor(64, 'nanochat-fallback') if fallback is not None else None

    async def run(self, reply: RemoteReply, session: str) -> None:
        """Get a reply to its end.

        Args:
            reply: The reply.
            session: Names the conversation.

        Raises:
            ServerError: No server gave it.
        """
        try:
            await self._run(reply, session)
        except Unavailable as error:
            if self._fallback is None or reply.begun or reply.request.asked.rewrite is None:
                raise
            _log.warning('the local model answers: %s', error)
            await self._fall_back(reply)

    async def _run(self, reply: RemoteReply, session: str) -> None:
        avoid: set[Server] = set()
        tries = max(2, len(self._pool.servers))
        since = time.monotonic()
        while True:
            if reply.request.signals.cancelled is not None:
                raise asyncio.CancelledError
            # With a local model at hand, nobody waits for a server that may not answer.
            ask_again = self._fallback is None
            server = await self._pool.acquire(reply.request, frozenset(avoid), ask_again)
            try:
                await self._attempt(reply, server, session)
                server.note_success()
                return
            except Overloaded as error:
                if time.monotonic() - since + error.retry_after > self._settings.first_token_timeout:
                    raise
                self._pool.block(server, error.retry_after)
            except Unavailable as error:
                if reply.ended:
                    return
                unreached = 'cannot be reached' in str(error)
                self._pool.note_failure(server, error, decisive=unreached or server in avoid)
                avoid.add(server)
                tries -= 1
                if tries <= 0 or (reply.begun and not self._may_resume(reply)):
                    raise
                _log.info('asking another server, or again: %s', error)
            finally:
                self._pool.release(server)

    def _may_resume(self, reply: RemoteReply) -> bool:
        """Whether a reply that has begun can continue elsewhere: its ids say where it is, and it has no form,
        which a server can only follow from the start.
        """
        return (
            self._settings.resume
            and not isinstance(self._text, MessageText)
            and reply.request.progress.form is None
            and not reply.request.progress.text.mixed
            and not reply.request.progress.text.detokenizer.pending
        )

    async def _attempt(self, reply: RemoteReply, server: Server, session: str) -> None:
        can = server.can
        assert can is not None
        asked, settings = reply.request.asked, self._settings
        held_to = reply.request.progress.answer_form
        form = None if held_to is None else held_to.response_format
        fields = None if form is None else STYLES[can.forms[form.kind]](form)
        reply.start(f'{self._text.info.name}@{server.url}')
        delivered = reply.request.progress.new_ids
        ids = [*map(int, asked.goal.entries), *delivered] if can.way.takes_ids else []
        if isinstance(self._text, ServerText):

            async def ask_server(path: str, body: dict) -> Any:
                return await server.connection.post(f'{server.connection.root}{path}', body)

            ids = await real_ids(ids, ask_server)
        question = Question(asked, ids, len(delivered), fields, settings.salt)
        dialect = DIALECTS[can.way]
        body = dialect.body(question, can, self._text.info.context_length)
        path = dialect.path_of(body)
        address = f'{server.connection.root if path == "/completion" else server.url}{path}'
        watch = Watch(settings.first_token_timeout, settings.silence_timeout, address)

        def take(event: bytes) -> bool:
            if event == b'[DONE]' or reply.ended:
                return False  # read on to the end, so that the connection can be used again
            try:
                data = json.loads(event)
            except (ValueError, RecursionError):
                raise Unavailable(f'{address} sent an event that is not JSON') from None
            piece = dialect.read(data)
            if piece.text or piece.ids or piece.reasoning:
                watch.begin()
            is_enough = reply.take(piece, can.usage)
            if reply.server_finished:
                watch.shorten(_AFTER_THE_END)
            if is_enough:
                reply.finish_complete()
                return not reply.server_finished
            return False

        try:
            await server.connection.stream(address, body, {SESSION_HEADER: session}, take, watch)
        except Unavailable:
            if not reply.complete:
                raise
        except ServerError:
            if not reply.ended:
                raise
        if not reply.complete:
            raise Unavailable(f'{address} ended the stream before the reply was complete')
        reply.finish_complete()

    async def _fall_back(self, reply: RemoteReply) -> None:
        asked, loop = reply.request.asked, asyncio.get_running_loop()
        rewrite, model = asked.rewrite, self._fallback
        assert rewrite is not None

        def begin() -> Any:
            prompt, stops = rewrite(model)
            # Ids belong to the vocabulary of the server's model.
            stops += [stop for stop in asked.config.stop_tokens if isinstance(stop, str)]
            config = replace(asked.config, stop_tokens=tuple(stops))
            left = None if asked.deadline is None else max(0.0, asked.deadline - time.monotonic())
            return model.generate(prompt, config=config, priority=asked.priority, deadline=left)

        def pump(stream: Any) -> None:
            count = 0
            for delta in stream.deltas():
                ids = stream.tokens[count:]
                count += len(ids)
                loop.call_soon_threadsafe(reply.pass_on, delta, ids)

        try:
            stream = await loop.run_in_executor(self._threads, begin)
        except Exception as error:
            raise Unavailable(f'no server works, and the local model cannot answer: {error}') from error
        reply.start(model.info.name)
        try:
            await loop.run_in_executor(self._threads, pump, stream)
        except asyncio.CancelledError:
            stream.stop()
            raise
        usage = stream.usage
        reply.request.progress.prompt_tokens = usage.prompt_tokens
        reply.request.progress.reused = usage.reused_tokens
        reply.finish_as(stream.finish_reason, stream.error)
