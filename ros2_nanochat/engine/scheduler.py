"""What runs next: which requests have a sequence in the model, and which of their entries go into the next
forward.

Runs on the engine's thread. Knows the backend's sequences and limits; nothing of logits, text or streams.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ros2_nanochat.backends.base import Backend, Chunk
from ros2_nanochat.config import EngineConfig
from ros2_nanochat.engine.cost import StepCost
from ros2_nanochat.engine.metrics import Metrics
from ros2_nanochat.engine.request import Request
from ros2_nanochat.engine.residency import Residency

_FIRST_CHUNK = 32  # entries of a prefill before its cost is known
_CAUTION = (
    0.9  # part of the time allowed for a prefill that is planned: a step may take longer than was thought
)
_DRAFTING_SEQUENCES = 4  # with more in the batch a forward is busy enough without guesses


@dataclass(eq=False)
class Work:
    """What one request gets in a forward. decoding: it continues its reply. draft: ids at the chunk's end
    that are guesses.
    """

    request: Request
    chunk: Chunk
    decoding: bool
    draft: list[int]

    @property
    def num_entries(self) -> int:
        return len(self.chunk)


class Scheduler:
    """Keeps the requests that wait and those that run, and puts together the next batch."""

    def __init__(
        self, backend: Backend, config: EngineConfig, metrics: Metrics, refuse: Callable[[Request, str], None]
    ):
        self.waiting: list[Request] = []
        self.active: list[Request] = []
        self.decode_cost, self.mixed_cost, self.verify_cost = StepCost(), StepCost(), StepCost()
        self._backend = backend
        self._config = config
        self._metrics = metrics
        self._refuse = refuse
        self._placement = Residency(backend, config, metrics, self.prefill_seconds)
        self._longest_chunk = backend.max_chunk_tokens or backend.max_batch_tokens
        self._credit = 0.0  # seconds by which running replies may still be slowed for a prefill

    @property
    def sequences(self):
        """Sequences whose KV is in the model."""
        return self._placement.sequences

    @property
    def room(self) -> int:
        """Entries that one sequence may hold."""
        return self._placement.room

    def __bool__(self) -> bool:
        return bool(self.waiting or self.active)

    # --- who is there ---

    def add(self, request: Request) -> None:
        """Take a request, or refuse it where it can never fit or too many wait."""
        longest = self._backend.info.context_length
        widest = max((len(span) for _, span in request.spans if span.whole), default=0)
        if len(request.goal) >= longest:
            self._refuse(
                request,
                f'the prompt has {len(request.goal)} tokens and the context holds {longest}, of which at'
                ' least one is for the reply: shorten it, or open the model with a larger max_context_len',
            )
        elif len(request.goal) >= self._backend.kv_capacity:
            self._refuse(
                request,
                f'the prompt has {len(request.goal)} tokens and the KV cache holds'
                f' {self._backend.kv_capacity}: raise kv_tokens',
            )
        elif widest > self._backend.max_batch_tokens:
            self._refuse(
                request,
                f'an image takes {widest} tokens in one piece and a batch holds'
                f' {self._backend.max_batch_tokens}: use a smaller image',
            )
        elif len(self.waiting) >= self._config.max_queued_requests:
            self._refuse(
                request,
                f'{len(self.waiting)} requests wait already and max_queued_requests is'
                f' {self._config.max_queued_requests}: try again later',
            )
        else:
            self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request that has ended; its sequence stays, idle."""
        for requests in (self.waiting, self.active):
            if request in requests:
                requests.remove(request)
        if request.sequence.request is request:
            self._placement.release(request)

    def _admit(self) -> None:
        """Give waiting requests a sequence, the most urgent first."""
        self.waiting.sort(key=lambda request: request.order)
        for request in list(self.waiting):
            if (
                request.sequence.request is not None
            ):  # an earlier reply of the same conversation is still being ended
                continue
            if self._placement.prefix_is_coming(request, self.active):
                continue
            try:
                placed = self._placement.place(request, self.active)
                while (
                    not placed
                    and self.active
                    and (victim := max(self.active, key=lambda other: other.order)).priority
                    < request.priority
                ):
                    self._swap_out(victim)
                    placed = self._placement.place(request, self.active)
            except Exception as error:
                self._refuse(request, f'its KV cache cannot be prepared: {error}')
                continue
            if not placed:
                break  # who comes later must not overtake
            self.waiting.remove(request)
            self.active.append(request)
            if request.started is None:
                request.started = request.mark('started')
                self._metrics.observe('queue_wait', request.started - request.submitted)

    def _swap_out(self, victim: Request) -> None:
        self._metrics.count('preemptions')
        victim.mark('preempted')
        self.active.remove(victim)
        self._placement.swap_out(victim)
        self.waiting.append(victim)

    # --- what they run ---

    def next(self) -> list[Work]:
        """The next batch; empty when nothing can run."""
        self._admit()
        if not self.active:
            return []
        urgent = max(request.priority for request in self.active)
        running = sorted((r for r in self.active if r.priority == urgent), key=lambda request: request.order)
        solo = next((request for request in running if request.solo), None)
        if solo:
            running = [solo]
        decoding = [request for request in running if request.decoding]
        prefilling = [request for request in running if not request.decoding]
        batch = [self._work(request, remaining := request.remaining, remaining) for request in decoding]
        if not prefilling:
            if len(batch) <= _DRAFTING_SEQUENCES:
                self._draft(batch)
            return batch
        taken = sum(work.num_entries for work in batch)
        room = self._prefill_room(taken, bool(batch))
        for request in prefilling:
            if room <= 0:
                break
            work = self._work(request, min(room, self._longest_chunk), self._backend.max_batch_tokens - taken)
            if work is not None:
                batch.append(work)
                taken += work.num_entries
                room -= work.num_entries
        return batch

    def _work(self, request: Request, room: int, most: int) -> Work | None:
        """The next entries of a request: about `room` of them, and never over `most`, which only a span that
        comes whole needs.
        """
        start = request.sequence.held.length
        boundary, span = request.span_at(start)
        if span is None:
            stop = min(start + room, boundary, len(request.entries))
            chunk = Chunk(request.sequence.handle, ids=request.entries.view()[start:stop])
        else:
            first = start - boundary
            last = len(span) if span.whole else min(first + room, len(span))
            if last - first > most:
                return None
            stop = boundary + last
            chunk = Chunk(
                request.sequence.handle,
                embeddings=span.rows[first:last],
                positions=span.positions,
                advance=span.advance,
                bidirectional=span.bidirectional,
                deepstack=span.deepstack,
            )
        chunk.num_logits = int(stop == request.entries.length)
        return Work(request, chunk, request.decoding, [])

    def _prefill_room(self, decoding: int, beside_running: bool) -> int:
        most = self._backend.max_batch_tokens - decoding
        if not beside_running:
            self._credit = 0.0
            return max(_FIRST_CHUNK, self.mixed_cost.most(0, self._config.max_step, most, _FIRST_CHUNK))
        alone = self.decode_cost.seconds(decoding) or self.mixed_cost.seconds(decoding)
        if alone is None:
            return 1
        allowance = _CAUTION * alone * (1 / self._config.running_share - 1)
        self._credit = min(self._credit + allowance, 4 * allowance)
        if self._credit < allowance:
            return 0  # earlier chunks took longer than was thought
        return max(1, self.mixed_cost.most(decoding, alone + allowance, most, 2, least=(decoding, alone)))

    def _draft(self, batch: list[Work]) -> None:
        room = self._backend.max_batch_tokens - sum(work.num_entries for work in batch)
        seconds = functools.partial(self._decode_seconds, len(batch))
        for work in batch:
            request = work.request
            if request.draft is None or not work.chunk.num_logits:
                continue
            left = min(request.limit(self.room) - len(request.entries) - 1, room)
            work.draft = request.draft.propose(request.context(), left, len(batch), seconds)
            if work.draft:
                work.chunk.ids = np.concatenate([work.chunk.ids, work.draft])
                work.chunk.num_logits += len(work.draft)
                room -= len(work.draft)

    # --- what it cost ---

    def record(self, batch: list[Work], seconds: float) -> None:
        """Learn from a step."""
        entries = sum([work.num_entries for work in batch])
        if entries == len(batch) and all(work.decoding for work in batch):
            self.decode_cost.record(entries, seconds)
            return
        if any(work.draft for work in batch):
            self.verify_cost.record(entries, seconds)
            return
        self.mixed_cost.record(entries, seconds)
        decoding = sum(work.num_entries for work in batch if work.decoding)
        if decoding and decoding < entries:
            self._credit -= max(0.0, seconds - (self.decode_cost.seconds(decoding) or seconds))

    def _decode_seconds(self, rows: int, entries: int) -> float | None:
        """Cost of a step in which `rows` sequences decode, with so many entries in its batch."""
        alone = self.decode_cost.seconds(rows)
        if alone is None or entries <= rows:
            return alone
        known = self.verify_cost if self.verify_cost.seconds(entries) is not None else self.mixed_cost
        return known.seconds(entries, least=(rows, alone))

    def prefill_seconds(self, tokens: int) -> float | None:
        """What it would take to prefill so many tokens; None where that was never measured."""
        chunk = min(tokens, self._backend.max_batch_tokens, 64)
        step = self.mixed_cost.seconds(chunk) if chunk else 0.0
        return None if step is None else step * tokens / max(1, chunk)
