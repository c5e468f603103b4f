"""The one thread that owns a model. Its loop: choose what runs next, forward, hand out tokens.

Callers submit requests from any thread and read streams. Nothing that they do, and no failure of a forward,
ends the loop.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from ros2_nanochat.at_exit import close_at_exit
from ros2_nanochat.backends.base import Backend
from ros2_nanochat.backends.logits import Logits
from ros2_nanochat.config import EngineConfig, GenerationConfig
from ros2_nanochat.engine.delivery import Delivery
from ros2_nanochat.engine.inbox import Inbox
from ros2_nanochat.engine.metrics import Metrics
from ros2_nanochat.engine.request import End, Request
from ros2_nanochat.engine.scheduler import Scheduler
from ros2_nanochat.engine.work import Plan, Work
from ros2_nanochat.errors import BackendError, ForwardError, one_line
from ros2_nanochat.processor import restrict_thread
from ros2_nanochat.program import check_process
from ros2_nanochat.states import FinishReason

_log = logging.getLogger(__name__)
_CLOSED = 'the model is closed'
_Result = TypeVar('_Result')


class Engine:
    """Runs requests on an opened backend, all replies that decode in one batch.

    `submit` and `stats` are thread-safe. `close` ends what runs and frees the backend's memory.

    Args:
        backend: The opened model.
        config: How conversations share it.
    """

    def __init__(self, backend: Backend, config: EngineConfig = EngineConfig()):
        self.backend = backend
        self.metrics = Metrics()
        self._step_times, self._overheads = (self.metrics.histograms[name] for name in ('step', 'overhead'))
        self._scheduler = Scheduler(backend, config, self.metrics)
        self._delivery = Delivery(backend, self._scheduler, self.metrics)
        self._inbox: Inbox[Request | tuple[Future, Callable[[], Any]]] = Inbox()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name='nanochat-engine', daemon=True)
        self._thread.start()
        close_at_exit(self)

    # --- callers ---

    def submit(self, request: Request) -> None:
        """Submit a request; never blocks. Its output ends with an `End`."""
        self.check_process()
        request.signals.inbox = self._inbox
        if not self._inbox.put(request):
            request.signals.end(End(FinishReason.ERROR, 0, detail=_CLOSED))

    def call(self, function: Callable[[], _Result]) -> _Result:
        """Run a function on the engine's thread, between two steps.

        Returns:
            What the function returns.

        Raises:
            BackendError: The model is closed.
        """
        self.check_process()
        future: Future[_Result] = Future()
        if not self._inbox.put((future, function)):
            raise BackendError(_CLOSED)
        return future.result()

    def check_process(self) -> None:
        """Check that this process may use the model.

        Raises:
            BackendError: It was forked from the process that opened the model; the model's thread does not
                exist here.
        """
        check_process(self._process)

    def stats(self) -> dict:
        """Return counters, histograms and the current state as one dictionary; see `metrics.Metrics`.

        It also holds `active`, `waiting`, `sequences`, `max_sequences`, the `kv_tokens` in use and their
        limit `kv_capacity`, and what `Backend.stats` gives.
        """
        return {
            **self.metrics.snapshot(),
            'active': len(self._scheduler.active),
            'waiting': len(self._scheduler.waiting) + len(self._inbox),
            'sequences': len(self._scheduler.sequences),
            'max_sequences': self.backend.max_sequences,
            'kv_tokens': self.backend.kv_used,
            'kv_capacity': self.backend.kv_capacity,
            **self.backend.stats(),
        }

    gives_logits = True
    """Whether logits can be seen and changed."""
    gives_probabilities = True
    """Whether replies can have probabilities of a choice."""

    def refusal(self, config: GenerationConfig, demands_call: bool = False) -> str | None:
        """Return why replies cannot be generated like this, whatever the prompt; None if they can.

        Args:
            config: How to generate.
            demands_call: A reply may have to be a call of a tool.
        """
        return None

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive() and not self._inbox.closed

    def close(self) -> None:
        """End all replies (`cancelled`), the loop and the backend. Can be called twice."""
        if os.getpid() != self._process:
            return  # another process owns the model, and its locks may be held forever
        if self._inbox.close():
            self.backend.abort()
            self._inbox.wake()
        if self._thread is not threading.current_thread():
            self._thread.join()

    # --- the loop ---

    def _run(self) -> None:
        restrict_thread(self.backend.config.nice, self.backend.cpus)
        try:
            while not self._inbox.closed:
                try:
                    self._take_messages()
                    self._step()
                # a bug in the engine, or a panic of a library in Rust, which is no Exception: the current
                # requests end, later ones are served
                except BaseException as error:
                    _log.exception('a step of the engine failed')
                    met = self._scheduler.active or self._scheduler.waiting
                    self._delivery.fail(met, f'internal error: {error!r}')
        finally:
            for request in [*self._scheduler.active, *self._scheduler.waiting]:
                self._delivery.finish(request, FinishReason.CANCELLED)
            while len(self._inbox):
                message = self._inbox.take()
                if isinstance(message, Request):
                    self.metrics.count('requests')
                    self._delivery.finish(message, FinishReason.CANCELLED)
                elif message is not None:
                    message[0].set_exception(BackendError(_CLOSED))
            self.backend.close()

    def _take_messages(self) -> None:
        while len(self._inbox) or not self._scheduler:
            message = self._inbox.take()
            if isinstance(message, Request):
                self.metrics.count('requests')
                if refusal := self._scheduler.add(message):
                    self._delivery.finish(message, FinishReason.REFUSED, refusal)
            elif message is not None:
                _answer(*message)
            if self._inbox.closed:
                return

    def _step(self) -> None:
        began = time.perf_counter()
        self._end_what_must()
        plan = self._scheduler.next()
        for request, why in plan.refused:
            self._delivery.finish(request, FinishReason.REFUSED, why)
        batch = plan.batch
        if not batch:
            if self._scheduler and not len(self._inbox):
                time.sleep(0.0005)  # a sequence will soon be free
            return
        start = time.perf_counter()
        logits = self._forward(plan)
        seconds = time.perf_counter() - start
        if logits is not None:
            self._scheduler.record(plan, seconds)
            _charge(batch, seconds)
            self._delivery.hand_out(plan, logits)
        self.metrics.counters['steps'] += 1
        self._step_times.add(seconds)
        self._overheads.add(time.perf_counter() - began - seconds)

    def _end_what_must(self) -> None:
        now = time.monotonic()
        for request in [*self._scheduler.active, *self._scheduler.waiting]:
            if request.signals.cancelled is not None:
                reason, since = request.signals.cancelled
                self._delivery.finish(request, reason)
                self.metrics.observe('stop_to_idle', time.monotonic() - since)
            elif request.asked.deadline is not None and now >= request.asked.deadline:
                self._delivery.finish(request, FinishReason.DEADLINE)

    def _forward(self, plan: Plan) -> Logits | None:
        """The logits of a batch; None if it failed and the requests were informed."""
        try:
            return self.backend.forward(plan.chunks)
        except BaseException as error:
            if self._inbox.closed:
                return None
            batch = plan.batch
            self.metrics.count('failures')
            committed = error.committed if isinstance(error, ForwardError) else [0] * len(batch)
            for work, count in zip(batch, committed):
                self._commit(work, count)
            if len(batch) > 1:
                for work in batch:
                    work.request.progress.solo = True  # one of them is at fault: find out which
            else:
                self._delivery.fail([batch[0].request], one_line(error, 1000))
            return None

    def _commit(self, work: Work, count: int) -> None:
        """Record what a failed forward left in the KV; guesses are removed again."""
        request, sequence = work.request, work.request.sequence
        if count < 0:
            sequence.held.cut(len(sequence.held) + count)
            return
        known = work.num_entries - len(work.draft)
        sequence.held.extend(request.progress.entries.view(len(sequence.held))[: min(count, known)])
        if count > known and sequence.handle is not None:
            sequence.held.cut(self.backend.trim(sequence.handle, len(sequence.held)))


def _charge(batch: list[Work], seconds: float) -> None:
    """Share the time of a step among its requests, by their entries."""
    if len(batch) == 1:
        batch[0].request.progress.seconds += seconds
        return
    per_entry = seconds / sum([work.num_entries for work in batch])
    for work in batch:
        work.request.progress.seconds += per_entry * work.num_entries


def _answer(future: Future, function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
