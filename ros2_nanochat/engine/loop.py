"""The one thread that owns a model. Its loop: what runs next, forward, hand out tokens.

Callers submit requests from any thread and read streams; nothing they do, and no failure of a forward, ends
the loop.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from ros2_nanochat.backends.base import Backend
from ros2_nanochat.config import EngineConfig
from ros2_nanochat.engine.metrics import Metrics
from ros2_nanochat.engine.request import End, Request
from ros2_nanochat.engine.sampler import choose_largest, choose_there, host
from ros2_nanochat.engine.scheduler import Scheduler, Work
from ros2_nanochat.errors import BackendError, ForwardError
from ros2_nanochat.prompt import Preceding
from ros2_nanochat.states import FinishReason

_log = logging.getLogger(__name__)


class Engine:
    """Runs requests on an opened backend, all that decode in one batch.

    `submit` and `stats` may be called from any thread; `close` ends what runs and gives the backend's memory
    back.
    """

    def __init__(self, backend: Backend, config: EngineConfig = EngineConfig()):
        self.backend = backend
        self.metrics = Metrics()
        self._scheduler = Scheduler(backend, config, self.metrics, self._refuse)
        self._config = config
        self._inbox: queue.SimpleQueue[Request | tuple[Future, Callable] | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()  # nothing is put into the inbox once it was closed
        self._thread = threading.Thread(target=self._run, name='nanochat-engine', daemon=True)
        self._thread.start()
        atexit.register(_close_at_exit, weakref.ref(self))

    # --- callers ---

    def submit(self, request: Request) -> None:
        """Hand in a request; never blocks. What it puts out ends with an `End`."""
        request.wake = lambda: self._inbox.put(None)
        with self._lock:
            if not self._closed:
                self.metrics.count('requests')
                self._inbox.put(request)
                return
        request.output.put(End(FinishReason.ERROR, 0, detail='the model is closed'))

    def call(self, function: Callable):
        """Run a function on the engine's thread, between two steps, and return what it returns. Raises
        BackendError where the model is closed.
        """
        future: Future = Future()
        with self._lock:
            if self._closed:
                raise BackendError('the model is closed')
            self._inbox.put((future, function))
        return future.result()

    def stats(self) -> dict:
        """Counters, histograms and the present state as one dictionary; see `metrics.Metrics`. Besides:
        `active`, `waiting`, `sequences`, `max_sequences`, `kv_tokens` in use and their bound
        `kv_capacity`.
        """
        return {
            **self.metrics.snapshot(),
            'active': len(self._scheduler.active),
            'waiting': len(self._scheduler.waiting) + self._inbox.qsize(),
            'sequences': len(self._scheduler.sequences),
            'max_sequences': self.backend.max_sequences,
            'kv_tokens': self.backend.kv_used,
            'kv_capacity': self.backend.kv_capacity,
        }

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive() and not self._closed

    def close(self) -> None:
        """End all replies (`cancelled`), the loop, and the backend. May be called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self.backend.abort()
                self._inbox.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join()

    # --- the loop ---

    def _run(self) -> None:
        try:
            while not self._closed:
                try:
                    self._take_messages()
                    self._step()
                # a defect of ours: the requests it met end, the robots that come later are served
                except Exception as error:
                    _log.exception('a step of the engine failed')
                    self._fail(
                        self._scheduler.active or self._scheduler.waiting, f'internal error: {error!r}'
                    )
        finally:
            for request in [*self._scheduler.active, *self._scheduler.waiting]:
                self._finish(request, FinishReason.CANCELLED)
            while not self._inbox.empty():
                message = self._inbox.get()
                if isinstance(message, Request):
                    self._finish(message, FinishReason.CANCELLED)
                elif message is not None:
                    message[0].set_exception(BackendError('the model is closed'))
            self.backend.close()

    def _take_messages(self) -> None:
        while not self._inbox.empty() or not self._scheduler:
            message = self._inbox.get()
            if isinstance(message, Request):
                self._scheduler.add(message)
            elif message is not None:
                self._answer(*message)
            if self._closed:
                return

    @staticmethod
    def _answer(future: Future, function: Callable) -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    def _step(self) -> None:
        began = time.perf_counter()
        self._end_what_must()
        batch = self._scheduler.next()
        if not batch:
            if self._scheduler and self._inbox.empty():
                time.sleep(0.0005)  # a sequence is about to become free
            return
        start = time.perf_counter()
        logits = self._forward(batch)
        seconds = time.perf_counter() - start
        if logits is not None:
            self._scheduler.record(batch, seconds)
            self._hand_out(batch, logits)
        self.metrics.count('steps')
        self.metrics.observe('step', seconds)
        self.metrics.observe('overhead', time.perf_counter() - began - seconds)

    def _end_what_must(self) -> None:
        now = time.monotonic()
        for request in [*self._scheduler.active, *self._scheduler.waiting]:
            if request.cancelled is not None:
                reason, since = request.cancelled
                self._finish(request, reason)
                self.metrics.observe('stop_to_idle', time.monotonic() - since)
            elif request.deadline is not None and now >= request.deadline:
                self._finish(request, FinishReason.DEADLINE)

    def _forward(self, batch: list[Work]):
        try:
            return self.backend.forward([work.chunk for work in batch])
        except Exception as error:
            if self._closed:
                return None
            self.metrics.count('failures')
            committed = error.committed if isinstance(error, ForwardError) else [0] * len(batch)
            for work, count in zip(batch, committed):
                self._commit(work, count)
            if len(batch) > 1:
                for work in batch:
                    work.request.solo = True  # one of them is at fault: see which
            else:
                self._fail([batch[0].request], str(error))
            return None

    def _commit(self, work: Work, count: int) -> None:
        """Note what a failed forward left in the KV; guesses go out again."""
        sequence = work.request.sequence
        known = work.num_entries - len(work.draft)
        sequence.held.extend(work.request.entries.view()[len(sequence.held) :][: min(count, known)])
        if count > known:
            sequence.held.cut(self.backend.trim(sequence.handle, len(sequence.held)))

    # --- handing out ---

    def _hand_out(self, batch: list[Work], logits) -> None:
        plain = [work for work in batch if not work.draft]
        for work in plain:
            request, held = work.request, work.request.sequence.held
            if work.num_entries == 1:
                held.append(request.entries.view(held.length)[0])
            else:
                held.extend(request.entries.view(held.length)[: work.num_entries])
            request.solo = False
            if not request.new_ids:
                self.metrics.count('prefilled_tokens', work.num_entries)
        sampled = [work.request for work in batch if work.chunk.num_logits]
        self.metrics.observe('batch_size', len(sampled))
        if len(plain) == len(batch):
            ids = self._choose(sampled, logits)
            for request, token_id in zip(sampled, ids):
                if token_id is not None:
                    self._accept(request, token_id)
            return
        rows, at = host(logits), 0
        for work in batch:
            self._verify(work, rows[at : at + work.chunk.num_logits])
            at += work.chunk.num_logits

    def _choose(self, requests: list[Request], rows) -> list[int | None]:
        try:
            if all(request.sampler.plain for request in requests):
                return choose_largest(rows) if requests else []
            chosen = choose_there([request.sampler for request in requests], rows)
        except Exception as error:
            self._fail(requests, f'choosing the next token failed: {error}')
            return [None] * len(requests)
        if None in chosen:  # one copy for all of them
            here = host(rows)
            chosen = [
                self._choose_alone(request, here[i]) if token_id is None else token_id
                for i, (request, token_id) in enumerate(zip(requests, chosen))
            ]
        return chosen

    def _choose_alone(self, request: Request, row: np.ndarray) -> int | None:
        try:
            return request.sampler.choose(row, request.context(), len(request.new_ids))
        except Exception as error:
            self._fail([request], f'choosing the next token failed: {error}')
            return None

    def _verify(self, work: Work, rows: np.ndarray) -> None:
        """Accept the guesses that are what the model chooses itself, and the id it chooses behind them."""
        request, sequence = work.request, work.request.sequence
        if work.draft:
            sequence.held.extend(work.chunk.ids)
        known, accepted = len(sequence.held) - len(work.draft), 0
        for i, row in enumerate(rows):
            token_id = self._choose_alone(request, row)
            if token_id is None:
                break
            held_up = i < len(work.draft) and token_id == work.draft[i]
            accepted += held_up
            if not self._accept(request, token_id) or not held_up:
                break
        if work.draft:
            request.draft.record(len(work.draft), accepted)
            self.metrics.count('drafted_tokens', len(work.draft))
            self.metrics.count('accepted_tokens', accepted)
            if sequence.handle is not None and known + accepted < len(sequence.held):
                sequence.held.cut(self.backend.trim(sequence.handle, known + accepted))

    def _accept(self, request: Request, token_id: int) -> bool:
        """Put an id behind a reply; False where the reply ends with it."""
        if request.config.max_new_tokens == 0:  # the prompt was all that was wanted
            self._finish(request, FinishReason.LENGTH)
            return False
        now = time.monotonic()
        if request.first_token is None:
            request.first_token = now
            request.trace.append(('first_token', now))
            self.metrics.observe('time_to_first_token', now - request.submitted)
        else:
            self.metrics.observe('time_per_token', now - request.last_token)
        request.last_token = now
        if token_id in request.end_ids:
            self._finish(request, FinishReason.STOP)
            return False
        self._put(request, token_id)
        if not request.text.stopped and request.config.functions:
            self._call_functions(request)
        if request.text.stopped:
            self._finish(request, FinishReason.STOP)
        elif (
            request.config.max_new_tokens >= 0
            and len(request.new_ids) >= request.config.max_new_tokens
            or request.entries.length >= self._scheduler.room
        ):
            self._finish(request, FinishReason.LENGTH)
        return not request.ended.is_set()

    def _put(self, request: Request, token_id: int) -> None:
        self.metrics.counters['generated_tokens'] += 1
        request.new_ids.append(token_id)
        request.entries.append(token_id)
        for piece in request.text.add(token_id):
            request.output.put(piece)

    def _call_functions(self, request: Request) -> None:
        for function in request.config.functions:
            try:
                added = function(request.text.answer)
                ids = self.backend.tokenize(added, preceding=Preceding.TEXT) if added else []
            except Exception as error:
                self._fail(
                    [request], f'{getattr(function, "__name__", function)!r} in functions failed: {error!r}'
                )
                return
            for token_id in ids[: self._scheduler.room - len(request.entries)]:
                self._put(request, token_id)

    # --- ending ---

    def _finish(self, request: Request, reason: FinishReason, detail: str | None = None) -> None:
        if request.ended.is_set():
            return
        request.ended.set()
        request.mark(reason)
        for piece in request.text.flush():
            request.output.put(piece)
        count, exact = request.text.given(len(request.new_ids))
        self._scheduler.remove(request)
        self.metrics.count(f'finished_{reason}')
        request.output.put(End(reason, count, exact, detail))

    def _refuse(self, request: Request, detail: str) -> None:
        self._finish(request, FinishReason.REFUSED, detail)

    def _fail(self, requests: list[Request], detail: str) -> None:
        for request in list(requests):
            self._finish(request, FinishReason.ERROR, detail)


def _close_at_exit(engine: weakref.ref) -> None:
    if (alive := engine()) is not None:
        alive.close()  # a thread inside a runtime while the interpreter ends would crash it
