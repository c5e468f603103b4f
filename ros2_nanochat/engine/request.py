"""One reply on its way: what it shall continue, what has been produced, how it may end. Made by the caller,
driven by the engine's thread.
"""

from __future__ import annotations

import functools
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.reply_text import Piece, ReplyText
from ros2_nanochat.engine.sampler import Sampler
from ros2_nanochat.engine.sequence import EntryBuffer, Sequence
from ros2_nanochat.engine.speculation import NGramDraft
from ros2_nanochat.prompt import EmbeddingSpan, Prompt
from ros2_nanochat.states import FinishReason


@dataclass(frozen=True)
class End:
    """The last thing a request puts out. num_tokens: ids that the reply has in the end. exact: whether they
    spell its text.
    detail: what was wrong and what to do, where something was.
    """

    reason: FinishReason
    num_tokens: int
    exact: bool = True
    detail: str | None = None


class Request:
    """A prompt to continue.

    goal: everything the sequence shall hold before the reply, from its first entry. end_ids: tokens that end
        the reply.
    prefix: the goal as one span, where the model takes a prompt only so: then its entries in the KV are those
        of the span.
    priority: higher goes first. deadline: `time.monotonic()` by which the reply ends with what it has, or
    None.
    """

    def __init__(
        self,
        goal: Prompt,
        sequence: Sequence,
        config: GenerationConfig,
        text: ReplyText,
        end_ids: frozenset[int],
        priority: int = 0,
        deadline: float | None = None,
        speculate: bool = False,
        prefix: EmbeddingSpan | None = None,
    ):
        self.goal = goal
        self.spans = goal.spans if prefix is None else ((0, prefix),)
        self.sequence = sequence
        self.config = config
        self.text = text
        self.end_ids = end_ids
        self.priority = priority
        self.deadline = deadline
        self.entries = EntryBuffer(goal.entries if prefix is None else prefix.entries, room=256)
        self.new_ids: list[int] = []
        self.sampler = Sampler(config, end_ids)
        self.draft = NGramDraft() if speculate else None
        self.output: queue.SimpleQueue[Piece | End | None] = queue.SimpleQueue()
        self.cancelled: tuple[FinishReason, float] | None = None  # why, and when
        self.wake: Callable[[], None] | None = None  # tells the engine of a cancel
        self.delivered_tokens: int | None = None
        self.ended = threading.Event()
        self.solo = False  # a forward with others failed: try it alone
        self.reused = self.shared = 0
        self.started: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.submitted = time.monotonic()
        self.trace: list[tuple[str, float]] = [('submitted', self.submitted)]
        """What happened when: `(event, time.monotonic())`."""

    def mark(self, event: str) -> float:
        """Put an event into the trace; return its time."""
        now = time.monotonic()
        self.trace.append((event, now))
        return now

    @property
    def num_prompt(self) -> int:
        return len(self.goal)

    @property
    def remaining(self) -> int:
        """Entries that the KV does not hold yet."""
        return self.entries.length - self.sequence.held.length

    @property
    def decoding(self) -> bool:
        """Whether the KV holds all but the last few ids."""
        return bool(self.new_ids) and self.remaining <= 8

    def limit(self, context_length: int) -> int:
        """Entries that the sequence will hold at most."""
        if self.config.max_new_tokens < 0:
            return context_length
        return min(context_length, self.num_prompt + self.config.max_new_tokens)

    @functools.cached_property
    def order(self) -> tuple:
        """Sorts requests: by priority, then by deadline, then by arrival."""
        return (
            -self.priority,
            self.deadline if self.deadline is not None else math.inf,
            self.submitted,
            self.sequence.serial,
        )

    def span_at(self, position: int) -> tuple[int, EmbeddingSpan | None]:
        """`(where the next span starts or the present one started, span that covers position or None)`; the
        first is the length without one.
        """
        for start, span in self.spans:
            if position < start:
                return start, None
            if position < start + len(span):
                return start, span
        return len(self.entries), None

    def whole(self, position: int) -> int:
        """The nearest position, not after `position`, where no span that must stay whole is cut."""
        start, span = self.span_at(position)
        return start if span is not None and span.whole else position

    def context(self) -> np.ndarray:
        """[n] int64: the entries so far, those of the goal as the caller knows them."""
        if self.spans is self.goal.spans:
            return self.entries.view()
        return np.concatenate([self.goal.entries, self.entries.view(len(self.goal))])
