"""The engine for models on servers: one thread with an asyncio loop, one task per reply.

Has the surface of `engine.loop.Engine`: requests in, streams out, an exact stop. A cancelled task closes its
connection, which frees the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ros2_nanochat.answer.response_format import read_response_format
from ros2_nanochat.at_exit import close_at_exit
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.metrics import Metrics
from ros2_nanochat.engine.request import End, Request
from ros2_nanochat.errors import BackendError, one_line
from ros2_nanochat.program import check_process
from ros2_nanochat.remote.attempts import Attempts, Settings
from ros2_nanochat.remote.background import Background
from ros2_nanochat.remote.capabilities import Capabilities
from ros2_nanochat.remote.checks import Checks, call_refusal, config_refusal, form_refusal
from ros2_nanochat.remote.failures import Rejected, ServerError
from ros2_nanochat.remote.forms import TextVocabulary
from ros2_nanochat.remote.pool import Pool
from ros2_nanochat.remote.reply import RemoteReply
from ros2_nanochat.remote.text import RemoteText
from ros2_nanochat.states import FinishReason

_log = logging.getLogger(__name__)
_CLOSED = 'the model is closed'
_CLOSE_SECONDS = 2.0


class _Bell:
    """Wakes the engine when a request is cancelled; takes the place of its inbox. Takes no lock."""

    def __init__(self, background: Background, ring: Callable[[], None]):
        self._background, self._ring = background, ring

    def wake(self) -> None:
        self._background.soon(self._ring)


class RemoteEngine:
    """Runs requests on servers. `submit` and `stats` are thread-safe.

    Args:
        background: The thread with the loop; it is ended by `close`.
        pool: The servers.
        text: The text side of the model.
        settings: Limits of time, and what to do when a server fails.
        max_queued: Requests that may wait for a server.
        fallback: A model that answers if no server works, or None. It is closed with this engine.

    Attributes:
        metrics: What the engine counts.
        can: What the servers can do.
        vocabulary: Checks the form of answers.
    """

    def __init__(
        self,
        background: Background,
        pool: Pool,
        text: RemoteText,
        settings: Settings,
        max_queued: int,
        fallback: Any = None,
    ):
        self.metrics = Metrics()
        self.can: Capabilities = next(server.can for server in pool.servers if server.can is not None)
        self.fallback = fallback
        self.vocabulary = TextVocabulary(text, self.can)
        self._background, self._pool, self._text = background, pool, text
        self._max_queued = max_queued
        self._checks = Checks(self.can)
        self._session = uuid.uuid4().hex
        self._attempts = Attempts(pool, text, settings, fallback)
        self._tasks: dict[Request, tuple[RemoteReply, asyncio.Task]] = {}
        self._bell = _Bell(background, self._cancel_stopped)
        self._submitted: deque[Request] = deque()
        self._is_woken = False  # True: the loop has been asked to start what was submitted
        self._has_ended = False  # True: no loop starts anything any more
        self._closing = threading.Lock()
        self._closed = False
        self._process = os.getpid()
        self._watch = asyncio.run_coroutine_threadsafe(pool.watch(), background.loop)
        background.when_ended(self._end)
        close_at_exit(self)

    # --- callers ---

    def submit(self, request: Request) -> None:
        """Submit a request; never blocks. Its output ends with an `End`."""
        self.check_process()
        request.signals.inbox = self._bell  # type: ignore[assignment]
        if self._closed:
            request.signals.end(End(FinishReason.ERROR, 0, detail=_CLOSED))
            return
        # No lock: a thread that blocks here releases the GIL and gets it back milliseconds later. The loop is
        # woken once for many requests. Requests that arrive during `close` are cancelled by the loop, or
        # refused if it has ended.
        self._submitted.append(request)
        if not self._is_woken:
            self._is_woken = True
            self._background.soon(self._start_submitted)
        if self._has_ended:  # looked at after the request was put there: no request is left behind
            self._refuse_submitted()

    def _refuse_submitted(self) -> None:
        for request in self._take_submitted():
            request.signals.end(End(FinishReason.ERROR, 0, detail=_CLOSED))

    def _take_submitted(self) -> Iterator[Request]:
        with contextlib.suppress(IndexError):
            while True:
                yield self._submitted.popleft()

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function and return its result. No sequence has keys and values here."""
        return function()

    def check_process(self) -> None:
        """See `Engine.check_process`."""
        check_process(self._process)

    def stats(self) -> dict:
        """Return counters, histograms and the current state; see `Engine.stats`. `servers` has a line for
        each server.
        """
        running = sum(server.running for server in self._pool.servers)
        return {
            **self.metrics.snapshot(),
            'active': running,
            'waiting': max(0, len(self._tasks) - running),
            'sequences': running,
            'max_sequences': running,
            'kv_tokens': 0,
            'kv_capacity': self._text.kv_capacity,
            'server': self.can.described(),
            'servers': {server.url: server.status for server in self._pool.servers},
        }

    gives_logits = False
    """See `Engine`."""

    @property
    def gives_probabilities(self) -> bool:
        """See `Engine`."""
        return self.can.probabilities

    def refusal(self, config: GenerationConfig, demands_call: bool = False) -> str | None:
        """See `Engine.refusal`."""
        if demands_call and not self.can.holds_calls:
            return call_refusal('required', self.can)
        form = read_response_format(config.response_format)
        return config_refusal(config, self.can) or (None if form is None else form_refusal(form, self.can))

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._background.alive and not self._closed

    def close(self) -> None:
        """End all replies (`cancelled`) and close the connections. Can be called twice."""
        if os.getpid() != self._process:
            return
        with self._closing:
            before, self._closed = self._closed, True
        if not before:
            try:
                self._background.run(self._shut(), _CLOSE_SECONDS)
            except BackendError:
                pass
            self._background.close()
            self._has_ended = True  # also if the loop is stuck
            self._refuse_submitted()
            if self.fallback is not None:
                self.fallback.close()

    # --- the loop's thread ---

    def _start_submitted(self) -> None:
        self._is_woken = False
        for request in self._take_submitted():
            try:
                self._start(request)
            except Exception as error:  # a bug of ours; the others go on
                _log.exception('a request could not be started')
                request.signals.end(
                    End(FinishReason.ERROR, 0, detail=f'internal error: {one_line(repr(error))}')
                )

    def _start(self, request: Request) -> None:
        self.metrics.count('requests')
        reply = RemoteReply(request, self._text, self.metrics)
        if self._closed or self._background.is_ending:  # nobody would cancel its task
            reply.finish(FinishReason.CANCELLED)
            return
        refusal = self._checks.refusal(request)
        if refusal is None and len(self._pool) >= self._max_queued:
            refusal = f'{len(self._pool)} requests wait for a server already (max_queued_requests)'
        if refusal is not None:
            reply.finish(FinishReason.REFUSED, refusal)
            return
        task = asyncio.get_running_loop().create_task(self._serve(reply))
        self._tasks[request] = reply, task
        task.add_done_callback(functools.partial(self._forget, reply))
        self._cancel_stopped()

    def _forget(self, reply: RemoteReply, task: asyncio.Task) -> None:
        """Drop a task that has ended. One that is cancelled before it begins runs nothing of its own."""
        self._tasks.pop(reply.request, None)
        reply.finish((reply.request.signals.cancelled or (FinishReason.CANCELLED,))[0])

    async def _serve(self, reply: RemoteReply) -> None:
        request = reply.request
        timer = None
        if request.asked.deadline is not None:
            # The loop's clock is that of time.monotonic().
            timer = asyncio.get_running_loop().call_at(
                request.asked.deadline, request.signals.cancel, FinishReason.DEADLINE
            )
        try:
            await self._attempts.run(reply, f'{self._session}-{request.sequence.serial}')
        except asyncio.CancelledError:
            reason, since = request.signals.cancelled or (FinishReason.CANCELLED, None)
            reply.finish(reason)
            if since is not None:
                self.metrics.observe('stop_to_idle', asyncio.get_running_loop().time() - since)
        except Rejected as error:
            refused = error.status in (400, 413, 422) and not reply.begun
            reply.finish(FinishReason.REFUSED if refused else FinishReason.ERROR, str(error))
        except ServerError as error:
            self.metrics.count('failures')
            reply.finish(FinishReason.ERROR, str(error))
        except Exception as error:  # a bug of ours; later requests are served
            _log.exception('a reply of a server failed')
            reply.finish(FinishReason.ERROR, f'internal error: {error!r}')
        finally:
            if timer is not None:
                timer.cancel()

    def _cancel_stopped(self) -> None:
        for request, (_, task) in list(self._tasks.items()):
            if request.signals.cancelled is not None:
                task.cancel()

    def _end(self) -> None:
        """End what is left when the loop has ended, whatever ended it."""
        self._has_ended = True
        self._refuse_submitted()
        for reply, _ in list(self._tasks.values()):  # those that did not end in time
            reply.finish(FinishReason.ERROR, _CLOSED)

    async def _shut(self) -> None:
        self._watch.cancel()
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_SECONDS / 2)
        await asyncio.gather(*[server.connection.close() for server in self._pool.servers])
