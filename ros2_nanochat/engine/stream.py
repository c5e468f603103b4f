"""The caller's end of a reply: pieces of text as they arrive, and an exact stop. Thread-safe; knows nothing
of models.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.engine.kv_cache import KVCache
from ros2_nanochat.engine.request import End, Request
from ros2_nanochat.engine.taken import Taken
from ros2_nanochat.engine.text_delta import TextDelta
from ros2_nanochat.engine.usage import Usage
from ros2_nanochat.program import check_process
from ros2_nanochat.states import FinishReason

_NAP = 0.1  # seconds after which a caller that waits for the whole reply takes what has come
_LONG = 60.0  # seconds, which any clock can wait


class StreamingResponse:
    """A reply while it is produced.

    Iterate it to get the answer's text piece by piece (or ids, with `detokenize=False`). The last piece of
    text is empty and marks the end; `eos` is then true inside the loop.

    `text`, `tokens` and `kv_cache` hold exactly what has been handed out, and a `stop()` keeps it so. A reply
    that fails does not raise: `finish_reason` is `error` or `refused`, and `error` says what to do. Dropping
    the last reference to a running reply stops it.

    Args:
        request: The request, which the engine runs.
        kv_cache: The conversation that the reply is added to.
        detokenize: Whether iteration gives text or ids.
    """

    def __init__(self, request: Request, kv_cache: KVCache, detokenize: bool = True):
        self.kv_cache = kv_cache
        """The conversation so far; pass it to the next `generate`."""
        self.finish_reason: FinishReason | None = None
        """Why the reply ended; None while it runs."""
        self.error: str | None = None
        """What went wrong and what to do; None if nothing did."""
        self._process = os.getpid()
        self._request = request
        self._detokenize = detokenize
        self._taken = Taken()
        self._num_ids_given = 0
        self._valid: bool | None = None  # once the reply has ended and somebody asked
        self._lock = threading.RLock()
        self._before = kv_cache.claim(request.asked.goal, self)
        self._drop = weakref.finalize(self, _end_dropped, request, kv_cache, self._taken)
        self._drop.atexit = False

    # --- taking ---

    def __iter__(self) -> StreamingResponse:
        return self

    def __next__(self) -> str | int:
        if not self._detokenize:
            return self._next_id()
        had_ended = self.eos
        while (delta := self._take(None)) is not None:
            if not delta.reasoning and not delta.call:
                return delta.text
        if had_ended:
            raise StopIteration
        return ''

    def _next_id(self) -> int:
        while (
            self._num_ids_given >= self._taken.num_tokens
        ):  # a piece may cover several ids, and the end some without text
            if self._take(None) is None and self._num_ids_given >= self._taken.num_tokens:
                raise StopIteration
        with self._lock:
            if self._num_ids_given >= self._taken.num_tokens:  # stopped in the meantime
                raise StopIteration
            self._num_ids_given += 1
            return self._request.progress.new_ids[self._num_ids_given - 1]

    def deltas(self) -> Iterator[TextDelta]:
        """Iterate over all text as it arrives, including reasoning and calls of tools, which are marked."""
        while (delta := self._take(None)) is not None:
            yield delta

    def deltas_and_pauses(self, pause: float) -> Iterator[TextDelta | None]:
        """Iterate over all text as it arrives, with None each time that nothing has arrived for `pause`
        seconds.
        """
        timeout: float | None = pause
        while True:
            try:
                delta = self._take(timeout)
            except queue.Empty:
                timeout = None  # only one None per pause, however long it lasts
                yield None
                continue
            if delta is None:
                return
            timeout = pause
            yield delta

    pieces = deltas
    """The older name of `deltas`."""

    def _take(self, timeout: float | None) -> TextDelta | None:
        """Wait for the next piece and count it as handed out; None at the end. Raises `queue.Empty` after
        `timeout` seconds.
        """
        output = self._request.signals.output
        while self.finish_reason is None:
            check_process(self._process)
            item = output.get(timeout=timeout)
            with self._lock:
                if self.finish_reason is not None:
                    output.put(None)  # for the next reader, if several threads wait
                    break
                if isinstance(item, TextDelta):
                    self._taken.add(item)
                    return item
                if isinstance(item, End):
                    self._taken.end(item, self._detokenize)
                    self.error = item.detail
                    self._end(item.reason)
                    output.put(None)
        return None

    def wait(self, timeout: float | None = None) -> StreamingResponse:
        """Wait for the whole reply and return this object. Until then, `text` grows ten times a second.

        Args:
            timeout: Seconds to wait; None for no limit.

        Raises:
            TimeoutError: The time is up. The text so far stays, and the reply goes on.
        """
        until, ended = None if timeout is None else time.monotonic() + timeout, self._request.signals.ended
        while True:
            left = _LONG if until is None else min(_LONG, max(0.0, until - time.monotonic()))
            try:
                while self._take(left if ended.is_set() else 0.0) is not None:
                    pass
                return self
            except queue.Empty:
                if left == 0.0:
                    raise TimeoutError(
                        f'the reply has not ended within {timeout} s; stop() ends it'
                    ) from None
            # waking for each token delays the model on a busy processor
            ended.wait(min(left, _NAP))

    # --- stopping ---

    def stop(self, reason: FinishReason | str = FinishReason.CANCELLED) -> None:
        """End the reply at what was handed out. Any thread, any number of times.

        Returns at once; the model is free within one step.

        Args:
            reason: The `finish_reason` of the reply.

        Raises:
            ValueError: The reason is not a `FinishReason`.
        """
        try:
            reason = FinishReason(reason)
        except ValueError:
            raise ValueError(
                f'stop(reason={reason!r}) is not valid: one of {", ".join(FinishReason)}'
            ) from None
        with self._lock:
            if self.finish_reason is None:
                if not self._detokenize:
                    self._taken.cut(self._num_ids_given)
                self._request.signals.delivered_tokens = self._taken.num_tokens
                self._end(reason)
        self._request.signals.cancel(reason)
        self._request.signals.output.put(None)  # wakes the reader

    def _end(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self._drop.detach()
        if reason.failed and not self._taken.num_tokens:
            self.kv_cache.settle(*self._before)  # the prompt was refused: the next one does not follow it
        else:
            self._taken.settle(self._request, self.kv_cache, reason)

    # --- what there is ---

    @property
    def text(self) -> str:
        """The answer that was handed out so far."""
        return self._taken.text

    @property
    def reasoning(self) -> str:
        """The text between the model's reasoning marks that was handed out so far."""
        return self._taken.reasoning

    @property
    def calls(self) -> tuple[WrittenCall, ...]:
        """The calls of tools at the end of the reply, once it has ended; only if they are complete."""
        return self._taken.calls if self.finish_reason is not None else ()

    @property
    def tokens(self) -> list[int]:
        """The ids that were handed out, including the reasoning and its marks, without the end token. The ids
        of a last character that is not whole are also left out, except with `detokenize=False`.
        """
        return self._request.progress.new_ids[: self._taken.num_tokens]

    @property
    def eos(self) -> bool:
        """Whether the reply has ended."""
        return self.finish_reason is not None

    @property
    def valid(self) -> bool:
        """Whether the answer is complete and in the form that `response_format` asked for."""
        form = self._request.progress.answer_form
        if form is None or self.finish_reason is not FinishReason.STOP:
            return False
        with self._lock:  # a long answer takes a while to match: only once
            if self._valid is None:
                self._valid = form.matches(self.text)
            return self._valid

    @property
    def parsed(self) -> Any:
        """The answer as `ResponseFormat.parse` returns it; None unless it is `valid`.

        Raises:
            ValueError: The class that was given as the form does not accept the value.
        """
        form = self._request.progress.answer_form
        return form.response_format.parse(self.text) if form is not None and self.valid else None

    @property
    def probabilities(self) -> dict[str, float] | None:
        """The probability of each alternative of a choice, summing to 1; None unless requested."""
        scores = self._request.progress.scores
        return None if scores is None else scores.probabilities

    @property
    def usage(self) -> Usage:
        """Tokens and times so far."""
        return self._request.usage

    @property
    def served_by(self) -> str:
        """What answers: the model's name (`name@address` if a server runs it); empty until it starts."""
        return self._request.progress.served_by

    @property
    def trace(self) -> list[tuple[str, float]]:
        """The events of this request, as `(event, time.monotonic())`."""
        return list(self._request.progress.trace)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        reason = None if self.finish_reason is None else self.finish_reason.value
        return f'StreamingResponse({self.text!r}, finish_reason={reason!r})'


def _end_dropped(request: Request, kv_cache: KVCache, taken: Taken) -> None:
    """End a reply whose last reference was dropped, at what was handed out."""
    if kv_cache.content is request.asked.goal:
        request.signals.delivered_tokens = taken.num_tokens
        taken.settle(request, kv_cache, FinishReason.CANCELLED)
    request.signals.cancel(FinishReason.CANCELLED)
