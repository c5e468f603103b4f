"""One reply in progress, in three parts by who may write them: what was asked (no one), the progress (the
engine's thread), and the signals between that thread and others.
"""

from __future__ import annotations

import functools
import math
import queue
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from ros2_nanochat.answer.call_form import CallForm
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.answer_form import AnswerForm
from ros2_nanochat.engine.choice_scores import ChoiceScores
from ros2_nanochat.engine.held_form import HeldForm
from ros2_nanochat.engine.inbox import Inbox
from ros2_nanochat.engine.reply_text import ReplyText
from ros2_nanochat.engine.sampler import Sampler
from ros2_nanochat.engine.sequence import EntryBuffer, Sequence
from ros2_nanochat.engine.speculation import NGramDraft
from ros2_nanochat.engine.text_delta import TextDelta
from ros2_nanochat.engine.usage import Usage
from ros2_nanochat.prompt import EmbeddingSpan, Prompt, Rewrite
from ros2_nanochat.states import FinishReason

BACKGROUND = -1000
"""Requests of a lower priority are background work: they evict no conversation while they can wait."""

_FEW = 8  # entries by which a decoding reply may be ahead of its KV: a caller's function may add some


@dataclass(frozen=True)
class End:
    """The last output of a request.

    Attributes:
        reason: Why the reply ended.
        num_tokens: Number of ids in the complete reply.
        exact: Whether they spell exactly its text.
        detail: What was wrong and what to do, if something was.
        num_partial: Number of further ids, which spell only a part of a character.
    """

    reason: FinishReason
    num_tokens: int
    exact: bool = True
    detail: str | None = None
    num_partial: int = 0


@dataclass(frozen=True, eq=False)
class Asked:
    """What the caller wants.

    Attributes:
        goal: Everything the sequence is to hold before the reply, from its first entry.
        config: How to generate.
        end_ids: Tokens that end the reply.
        priority: Higher runs first.
        deadline: `time.monotonic()` at which the reply ends with the text it has.
        speculate: Whether to guess ids.
        prefix: The goal as one span, for a model that takes a prompt only in this form; its entries in the KV
            are then those of the span.
        rewrite: See `Prompt.rewrite`.
        submitted: `time.monotonic()` of the call.
    """

    goal: Prompt
    config: GenerationConfig
    end_ids: frozenset[int]
    priority: int = 0
    deadline: float | None = None
    speculate: bool = False
    prefix: EmbeddingSpan | None = None
    rewrite: Rewrite | None = None
    submitted: float = field(default_factory=time.monotonic)

    @functools.cached_property
    def spans(self) -> tuple[tuple[int, EmbeddingSpan], ...]:
        """The spans as they are passed to the model."""
        return self.goal.spans if self.prefix is None else ((0, self.prefix),)

    def limit(self, context_length: int) -> int:
        """Return the maximum number of entries that the sequence will hold."""
        if self.config.max_new_tokens < 0:
            return context_length
        return min(context_length, len(self.goal) + self.config.max_new_tokens)

    def span_at(self, position: int) -> tuple[int | None, EmbeddingSpan | None]:
        """Return `(start, span)` of the span that covers a position.

        If none covers it, the span is None and the start is that of the next span, or None if there is no
        next one.
        """
        for start, span in self.spans:
            if position < start:
                return start, None
            if position < start + len(span):
                return start, span
        return None, None

    def whole(self, position: int) -> int:
        """Return the last position up to `position` at which no uncuttable span would be cut."""
        start, span = self.span_at(position)
        return position if start is None or span is None or not span.whole else start


class Progress:
    """The progress of a reply. Only the engine's thread writes it; other threads may read it.

    Args:
        asked: What the caller wants.
        text: Turns the ids of the reply into text.
        form: The form that the answer must have, or None.
        scores: Computes the probabilities of its alternatives, or None.
    """

    def __init__(
        self,
        asked: Asked,
        text: ReplyText,
        form: HeldForm | None,
        scores: ChoiceScores | None,
    ):
        start = asked.goal.entries if asked.prefix is None else asked.prefix.entries
        self.entries = EntryBuffer(start, room=256)
        self.new_ids: list[int] = []
        self.text = text
        self.form = form
        self.scores = scores
        self.sampler = Sampler(asked.config, asked.end_ids, form)
        self.draft = NGramDraft() if asked.speculate else None
        config = asked.config
        self.only_text = (
            form is None and scores is None and not config.functions and config.max_new_tokens != 0
        )
        """Whether an id that is added to it has no effect but its text."""
        self.solo = False
        """A forward with others failed: run this one by itself."""
        self.reused: int | None = 0
        """Entries of the prompt that were not recomputed; None if unknown."""
        self.shared = 0
        self.prompt_tokens: int | None = None
        """Tokens of the prompt, if they are not its entries."""
        self.served_by = ''
        """The model that works on it; empty until it starts."""
        self.seconds = 0.0
        """Time of forwards, shared among those in a batch by their entries."""
        self.started: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.trace: list[tuple[str, float]] = [('submitted', asked.submitted)]
        """What happened when: `(event, time.monotonic())`."""

    @property
    def answer_form(self) -> AnswerForm | None:
        """The form of the answer; None without one, or if the reply is held to calls."""
        return self.form if isinstance(self.form, AnswerForm) else None

    def mark(self, event: str) -> float:
        """Add an event to the trace; return its time."""
        now = time.monotonic()
        self.trace.append((event, now))
        return now


class Signals:
    """What the engine's thread and other threads signal to each other while a reply runs.

    When a stream is dropped, the garbage collector cancels it, at any point of any thread, so nothing here
    takes a lock: a `SimpleQueue` may be filled even then, and each field is written in one step.
    """

    def __init__(self):
        self.output: queue.SimpleQueue[TextDelta | End | None] = queue.SimpleQueue()
        """The engine's output; None wakes the reader."""
        self.ended = threading.Event()
        """Set by the engine when it has finished the request."""
        self.cancelled: tuple[FinishReason, float] | None = None
        """Why and when it was cancelled; the first reason counts."""
        self.delivered_tokens: int | None = None
        """Number of ids that the conversation keeps of a stopped reply."""
        self.inbox: Inbox | None = None
        """Wakes the engine; set when the request is submitted."""

    def end(self, end: End) -> None:
        """Put the last output, and wake who waits for it."""
        self.ended.set()
        self.output.put(end)

    def cancel(self, reason: FinishReason) -> None:
        """End the reply as soon as the engine gets to it. Any thread, any number of times."""
        if self.cancelled is None:
            self.cancelled = (reason, time.monotonic())
            if self.inbox is not None:
                self.inbox.wake()


class Request:
    """A prompt to continue, made by the caller and run by the engine's thread.

    Args:
        asked: What the caller wants.
        sequence: The conversation's place in the model.
        text: Turns the ids of the reply into text.
        form: The form that the answer must have, or None.
        scores: Computes the probabilities of its alternatives, or None.
        calls: Reads the calls of tools, or None.
    """

    def __init__(
        self,
        asked: Asked,
        sequence: Sequence,
        text: ReplyText,
        form: HeldForm | None = None,
        scores: ChoiceScores | None = None,
        calls: CallForm | None = None,
    ):
        self.asked = asked
        self.calls = calls
        self.sequence = sequence
        self.progress = Progress(asked, text, form, scores)
        self.signals = Signals()

    @property
    def priority(self) -> int:
        """Higher runs first."""
        return self.asked.priority

    @property
    def background(self) -> bool:
        """Whether it is background work."""
        return self.asked.priority < BACKGROUND

    @property
    def num_prompt(self) -> int:
        """Number of entries of the prompt."""
        return len(self.asked.goal)

    @property
    def remaining(self) -> int:
        """Number of entries that the KV does not hold yet."""
        return self.progress.entries.length - self.sequence.held.length

    @property
    def decoding(self) -> bool:
        """Whether the KV holds all but the last few ids."""
        return bool(self.progress.new_ids) and self.remaining <= _FEW

    @functools.cached_property
    def order(self) -> tuple:
        """Sort key of requests: by priority, then by deadline, then by arrival."""
        asked = self.asked
        due = math.inf if asked.deadline is None else asked.deadline
        return (-asked.priority, due, asked.submitted, self.sequence.serial)

    def context(self) -> np.ndarray:
        """Return the entries so far, [n] int64; the prompt's entries are as the caller knows them."""
        entries, goal = self.progress.entries, self.asked.goal
        if self.asked.prefix is None:
            return entries.view()
        return np.concatenate([goal.entries, entries.view(len(goal))])

    @property
    def usage(self) -> Usage:
        """Tokens and times so far."""
        progress, submitted = self.progress, self.asked.submitted
        new, rows = len(progress.new_ids), self.asked.goal.entries < 0
        first, last = progress.first_token, progress.last_token
        span = last - first if first is not None and last is not None else 0.0
        return Usage(
            prompt_tokens=self.num_prompt if progress.prompt_tokens is None else progress.prompt_tokens,
            reused_tokens=progress.reused,
            shared_tokens=progress.shared,
            image_tokens=int(rows.sum()),
            reused_image_tokens=int(rows[: progress.reused or 0].sum()),
            new_tokens=new,
            model_time=progress.seconds,
            queue_time=None if progress.started is None else progress.started - submitted,
            time_to_first_token=None if first is None else first - submitted,
            tokens_per_second=(new - 1) / span if new > 1 and span > 0 else None,
        )
