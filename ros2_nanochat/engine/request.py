"""One reply on its way, in three parts by who may write them: what was asked (nobody any more), how far it is
(the engine's thread), and the signals between that thread and the others.
"""

from __future__ import annotations

import functools
import math
import queue
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.answer_form import AnswerForm
from ros2_nanochat.engine.choice_scores import ChoiceScores
from ros2_nanochat.engine.inbox import Inbox
from ros2_nanochat.engine.reply_text import ReplyText, TextDelta
from ros2_nanochat.engine.sampler import Sampler
from ros2_nanochat.engine.sequence import EntryBuffer, Sequence
from ros2_nanochat.engine.speculation import NGramDraft
from ros2_nanochat.engine.usage import Usage
from ros2_nanochat.prompt import EmbeddingSpan, Prompt
from ros2_nanochat.states import FinishReason

_FEW = 8  # entries that a decoding reply may have ahead of its KV: a caller's function may add some


@dataclass(frozen=True)
class End:
    """The last thing a request puts out.

    num_tokens: ids that the reply has in the end. exact: whether they spell its text. detail: what was wrong
    and what to do, if something was.
    """

    reason: FinishReason
    num_tokens: int
    exact: bool = True
    detail: str | None = None


@dataclass(frozen=True, eq=False)
class Asked:
    """What the caller wants.

    goal: everything the sequence is to hold before the reply, from its first entry. end_ids: tokens that end
        the reply.
    priority: higher goes first. deadline: `time.monotonic()` by which the reply ends with what it has.
    prefix: the goal as one span, for a model that takes a prompt only so: then its entries in the KV are
        those of the span.
    """

    goal: Prompt
    config: GenerationConfig
    end_ids: frozenset[int]
    priority: int = 0
    deadline: float | None = None
    speculate: bool = False
    prefix: EmbeddingSpan | None = None
    submitted: float = field(default_factory=time.monotonic)

    @functools.cached_property
    def spans(self) -> tuple[tuple[int, EmbeddingSpan], ...]:
        """The spans as the model gets them."""
        return self.goal.spans if self.prefix is None else ((0, self.prefix),)

    def limit(self, context_length: int) -> int:
        """Entries that the sequence will hold at most."""
        if self.config.max_new_tokens < 0:
            return context_length
        return min(context_length, len(self.goal) + self.config.max_new_tokens)

    def span_at(self, position: int) -> tuple[int | None, EmbeddingSpan | None]:
        """`(where the next span starts or the present one started, span that covers position or None)`; the
        first is None if no span follows.
        """
        for start, span in self.spans:
            if position < start:
                return start, None
            if position < start + len(span):
                return start, span
        return None, None

    def whole(self, position: int) -> int:
        """The nearest position, not after `position`, where no span that must stay whole is cut."""
        start, span = self.span_at(position)
        return position if start is None or span is None or not span.whole else start


class Progress:
    """How far a reply is. Written by the engine's thread only; others may read it."""

    def __init__(self, asked: Asked, text: ReplyText, form: AnswerForm | None, scores: ChoiceScores | None):
        start = asked.goal.entries if asked.prefix is None else asked.prefix.entries
        self.entries = EntryBuffer(start, room=256)
        self.new_ids: list[int] = []
        self.text = text
        self.form = form
        self.scores = scores
        self.sampler = Sampler(asked.config, asked.end_ids, form)
        self.draft = NGramDraft() if asked.speculate else None
        self.solo = False
        """A forward with others failed: try it alone."""
        self.reused = self.shared = 0
        self.started: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.trace: list[tuple[str, float]] = [('submitted', asked.submitted)]
        """What happened when: `(event, time.monotonic())`."""

    def mark(self, event: str) -> float:
        """Put an event into the trace; return its time."""
        now = time.monotonic()
        self.trace.append((event, now))
        return now


class Signals:
    """What the engine's thread and the others tell each other while a reply runs.

    A stream that is dropped cancels from within the garbage collector, at any point of any thread, so nothing
    here takes a lock: a `SimpleQueue` may be filled even then, and each field is written in one step.
    """

    def __init__(self):
        self.output: queue.SimpleQueue[TextDelta | End | None] = queue.SimpleQueue()
        """What the engine hands out; None wakes the reader."""
        self.ended = threading.Event()
        """Set by the engine when it is done with the request."""
        self.cancelled: tuple[FinishReason, float] | None = None
        """Why it was cancelled, and when; the first reason holds."""
        self.delivered_tokens: int | None = None
        """Ids that the conversation keeps of a reply that was stopped."""
        self.inbox: Inbox | None = None
        """Where the engine is woken; set when the request is submitted."""

    def cancel(self, reason: FinishReason) -> None:
        """End the reply as soon as the engine gets to it. Any thread, any number of times."""
        if self.cancelled is None:
            self.cancelled = (reason, time.monotonic())
            if self.inbox is not None:
                self.inbox.wake()


class Request:
    """A prompt to continue, made by the caller and driven by the engine's thread.

    sequence: the conversation's place in the model. text: turns the ids of the reply into text. form: what
        the answer is held to. scores: of its alternatives, if they are wanted.
    """

    def __init__(
        self,
        asked: Asked,
        sequence: Sequence,
        text: ReplyText,
        form: AnswerForm | None = None,
        scores: ChoiceScores | None = None,
    ):
        self.asked = asked
        self.sequence = sequence
        self.progress = Progress(asked, text, form, scores)
        self.signals = Signals()

    @property
    def priority(self) -> int:
        return self.asked.priority

    @property
    def num_prompt(self) -> int:
        return len(self.asked.goal)

    @property
    def remaining(self) -> int:
        """Entries that the KV does not hold yet."""
        return self.progress.entries.length - self.sequence.held.length

    @property
    def decoding(self) -> bool:
        """Whether the KV holds all but the last few ids."""
        return bool(self.progress.new_ids) and self.remaining <= _FEW

    @functools.cached_property
    def order(self) -> tuple:
        """Sorts requests: by priority, then by deadline, then by arrival."""
        asked = self.asked
        due = math.inf if asked.deadline is None else asked.deadline
        return (-asked.priority, due, asked.submitted, self.sequence.serial)

    def context(self) -> np.ndarray:
        """[n] int64: the entries so far, those of the goal as the caller knows them."""
        entries, goal = self.progress.entries, self.asked.goal
        if self.asked.prefix is None:
            return entries.view()
        return np.concatenate([goal.entries, entries.view(len(goal))])

    @property
    def usage(self) -> Usage:
        """What it has taken so far."""
        progress, submitted = self.progress, self.asked.submitted
        new, rows = len(progress.new_ids), self.asked.goal.entries < 0
        first, last = progress.first_token, progress.last_token
        span = last - first if first is not None and last is not None else 0.0
        return Usage(
            prompt_tokens=self.num_prompt,
            reused_tokens=progress.reused,
            shared_tokens=progress.shared,
            image_tokens=int(rows.sum()),
            reused_image_tokens=int(rows[: progress.reused].sum()),
            new_tokens=new,
            queue_time=None if progress.started is None else progress.started - submitted,
            time_to_first_token=None if first is None else first - submitted,
            tokens_per_second=(new - 1) / span if new > 1 and span > 0 else None,
        )
