"""Gets a reply from the servers: asks one, and another if that is possible when it fails.

A reply moves to another server only before its first token, or if its ids let it continue where it stopped.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ros2_nanochat.answer.response_format import ResponseFormat
from ros2_nanochat.errors import one_line
from ros2_nanochat.prompt import Preceding
from ros2_nanochat.remote.calling import Step, steps_of
from ros2_nanochat.remote.capabilities import Capabilities
from ros2_nanochat.remote.dialect import DIALECTS, Question
from ros2_nanochat.remote.failures import Overloaded, ServerError, Unavailable
from ros2_nanochat.remote.forms import STYLES
from ros2_nanochat.remote.kept_pictures import picture_name
from ros2_nanochat.remote.patience import Watch
from ros2_nanochat.remote.pool import Pool
from ros2_nanochat.remote.reading import read_event
from ros2_nanochat.remote.reply import RemoteReply
from ros2_nanochat.remote.scoring import LogProbabilities, score
from ros2_nanochat.remote.server import Server
from ros2_nanochat.remote.text import MessageText, RemoteText, ServerText, real_ids

_log = logging.getLogger(__name__)
_AFTER_THE_END = 1.0  # seconds to wait for figures and the end of a stream whose text is complete
_PICTURE_IS_GONE = (200, 400, 422, 500)  # statuses of an error that may be about it; 200: in the stream
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
                if reply.request.signals.cancelled is not None:  # Python 3.10: `Watch` cannot tell
                    raise asyncio.CancelledError from None
                self._pool.note_failure(server, error, decisive=not error.reached or server in avoid)
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
            and (reply.steps is None or reply.steps.resumable(reply.call_text))
            and reply.request.progress.form is None
            and not reply.request.progress.text.mixed
            and not reply.request.progress.text.detokenizer.pending
        )

    async def _attempt(self, reply: RemoteReply, server: Server, session: str) -> None:
        can, progress = server.can, reply.request.progress
        assert can is not None
        if not reply.begun:
            reply.steps = steps_of(reply.request.calls, can)
        reply.start(f'{self._text.info.name}@{server.url}')
        held_to = progress.answer_form
        form = None if held_to is None else held_to.response_format
        step: Step | None = Step(form=form) if reply.steps is None else reply.steps.here(reply.call_text)
        while step is not None:
            if step.certain:
                reply.write(await asyncio.to_thread(self._pieces, step.certain))
            if step.is_last or not reply.has_room:
                break
            reply.next_request()
            await self._request(reply, server, session, step.form)
            may_go_on = reply.steps is not None and reply.goes_on
            step = reply.steps.next(reply.call_text) if may_go_on and reply.steps is not None else None
        if progress.scores is not None:
            await self._score(reply, server, can, self._ids(reply, can)[: -len(progress.new_ids) or None])
        reply.finish_complete()

    def _pieces(self, text: str) -> list[tuple[str, list[int], bool]]:
        """A text as `RemoteReply.write` takes it. May ask a server; not for the loop's thread."""
        special = {token.text: token.id for token in self._text.info.special_tokens if token.text in text}
        parts = re.split(f'({"|".join(map(re.escape, special))})', text) if special else [text]
        return [
            (part, [special[part]], True)
            if part in special
            else (part, self._text.tokenize(part, preceding=Preceding.TEXT), False)
            for part in parts
            if part
        ]

    def _ids(self, reply: RemoteReply, can: Capabilities) -> list[int]:
        """The prompt and what was delivered; empty for messages."""
        prompt = map(int, reply.request.asked.goal.entries)
        return [*prompt, *reply.request.progress.new_ids] if can.way.takes_ids else []

    async def _request(
        self, reply: RemoteReply, server: Server, session: str, form: ResponseFormat | None
    ) -> None:
        """Ask one server to continue a reply."""
        can, asked, settings = server.can, reply.request.asked, self._settings
        assert can is not None
        fields = None if form is None else STYLES[can.forms[form.kind]](form)
        ids = self._ids(reply, can)
        if isinstance(self._text, ServerText):

            async def ask_server(path: str, body: dict) -> Any:
                return await server.connection.post(f'{server.connection.root}{path}', body)

            ids = await real_ids(ids, ask_server)
        shown = [picture_name(span, settings.salt) for _, span in asked.spans] if can.keeps_pictures else []
        held = server.pictures.held(shown) if can.keeps_pictures else None
        question = Question(asked, ids, len(reply.request.progress.new_ids), fields, settings.salt, held)
        dialect = DIALECTS[can.way]
        body = dialect.body(question, can, self._text.info.context_length)
        path = dialect.path_of(body)
        address = f'{server.connection.root if path == "/completion" else server.url}{path}'
        watch = Watch(settings.first_token_timeout, settings.silence_timeout, address)

        def take(event: bytes) -> bool:
            is_done = event.strip() == b'[DONE]'
            if is_done and not (reply.complete or reply.ended):
                return True  # nothing more will come
            if is_done or reply.ended:
                return False  # read on to the end, so that the connection can be used again
            piece = read_event(dialect.read, event, address)
            has_tokens = bool(piece.text or piece.ids or piece.reasoning)
            if (has_tokens or piece.works) and not reply.server_finished:
                watch.touch()
            if has_tokens:
                watch.begin()
                server.pictures.note(shown)
                shown.clear()
            is_enough = reply.take(piece, can.usage)
            if reply.server_finished:
                watch.shorten(_AFTER_THE_END)
            if is_enough:
                if reply.steps is None and reply.request.progress.scores is None:
                    reply.finish_complete()
                return not reply.server_finished
            return False

        try:
            await server.connection.stream(address, body, {SESSION_HEADER: session}, take, watch)
        except ServerError as error:
            if reply.complete:
                return
            if not held or reply.begun or getattr(error, 'status', None) not in _PICTURE_IS_GONE:
                raise
            server.pictures.forget(held)  # perhaps it has dropped one: send them all
            await self._request(reply, server, session, form)
            return
        if not reply.complete:
            raise Unavailable(f'{address} ended the stream before the reply was complete')

    async def _score(self, reply: RemoteReply, server: Server, can: Capabilities, ids: Sequence[int]) -> None:
        """Find the probabilities of the alternatives of a choice. The answer stands without them."""
        scores = reply.request.progress.scores
        assert scores is not None
        try:
            asked = LogProbabilities(server.connection, can, self._settings.salt)
            await score(scores, [*ids, *reply.before_answer], asked, can.slots)
        except ServerError as error:
            scores.error = one_line(error)
            _log.warning('the probabilities of a choice are not known: %s', scores.error)

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
