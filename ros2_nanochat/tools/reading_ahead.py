"""Lets the model read a reply's calls while a tool runs, so that only the answer remains to be read then."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.stream import StreamingResponse

ReadAhead = Callable[[], StreamingResponse | None]

_SOON = 0.02  # seconds: a tool that answers sooner is not worth a step of the model


def reading_ahead(history: ChatHistory, priority: int = 0) -> ReadAhead | None:
    """Return what starts the reading of a history up to the next answer of a tool.

    Args:
        history: The conversation.
        priority: See `NanoLLM.generate`.

    Returns:
        The function, None if a server reads the prompts.
    """
    if history.model.info.api == 'openai':
        return None
    only_read = GenerationConfig(max_new_tokens=0)

    def start() -> StreamingResponse | None:
        prompt = history.embed_before_answer()
        if prompt is None:
            return None
        return history.model.generate(  # type: ignore[attr-defined]
            prompt, kv_cache=history.kv_cache, config=only_read, priority=priority
        )

    return start


class Ahead:
    """The reading during one turn. Used only on the thread of the turn.

    Args:
        start: Starts the reading, and returns it; None if nothing is to be read ahead.
        lock: Held while it starts.
    """

    def __init__(self, start: ReadAhead | None, lock: AbstractContextManager):
        self._start, self._lock = start, lock
        self._reading: StreamingResponse | None = None
        self.due = math.inf
        """`time.monotonic()` at which to call `look`."""

    def begin(self) -> None:
        """Take note that a call has begun."""
        self.due = math.inf if self._start is None else time.monotonic() + _SOON

    def look(self) -> None:
        """Start the reading if it is time."""
        if self._start is None or time.monotonic() < self.due:
            return
        self.due = math.inf
        with self._lock, contextlib.suppress(Exception):  # the next reply tells what is wrong, if it still is
            self._reading = self._start()

    def end(self) -> None:
        """Take note that the call has ended. What was read stays read."""
        self.due = math.inf
        if self._reading is not None:
            self._reading.stop()
            self._reading = None
