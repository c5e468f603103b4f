"""What runs next: which requests have a sequence in the model, and which of their entries go into the next
forward.

Runs on the engine's thread. Knows the backend's sequences and limits; nothing of logits, text or streams.
"""

from __future__ import annotations

import functools

import numpy as np

from ros2_nanochat.backends.base import Backend, Chunk
from ros2_nanochat.config import EngineConfig
from ros2_nanochat.engine.cost import StepCosts
from ros2_nanochat.engine.metrics import Metrics
from ros2_nanochat.engine.request import Request
from ros2_nanochat.engine.residency import Residency
from ros2_nanochat.engine.work import Plan, Work

_FIRST_CHUNK = 32  # entries of a prefill before its cost is known
_CAUTION = 0.9  # share of the allowed prefill time that is planned: a step may take longer than expected
_DRAFTING_SEQUENCES = 4  # with more in the batch, guesses no longer pay


class Scheduler:
    """Holds the requests that wait and those that run, and composes the next batch.

    Args:
        backend: The model.
        config: The options of the engine.
        metrics: Counts steps and the like.
    """

    def __init__(self, backend: Backend, config: EngineConfig, metrics: Metrics):
        self.waiting: list[Request] = []
        self.active: list[Request] = []
        self.costs = StepCosts(backend.max_batch_tokens)
        self._backend = backend
        self._config = config
        self._metrics = metrics
        self._placement = Residency(backend, config, metrics, self.costs)
        self.guesses = backend.trims_exactly
        """Whether guesses are possible: the entries of a wrong one must be trimmed from the KV."""
        self._longest_chunk = backend.max_chunk_tokens or backend.max_batch_tokens
        self._awaited: dict[Request, int] = {}  # entries of a prompt for which others wait
        self._credit = 0.0  # seconds by which a prefill may still delay running replies
        self._steady: Plan | None = None  # the last plan, if the next step may repeat it

    @property
    def sequences(self):
        """Sequences whose KV is in the model."""
        return self._placement.sequences

    @property
    def room(self) -> int:
        """Maximum number of entries of one sequence."""
        return self._placement.room

    def __bool__(self) -> bool:
        return bool(self.waiting or self.active)

    # --- who is there ---

    def add(self, request: Request) -> str | None:
        """Add a request.

        Returns:
            Why it is refused: it can never fit, or too many wait. None if it was added.
        """
        backend, prompt = self._backend, request.num_prompt
        longest = backend.info.context_length
        widest = max((len(span) for _, span in request.asked.spans if span.whole), default=0)
        if prompt >= longest:
            return (
                f'the prompt has {prompt} tokens and the context holds {longest}, of which at least one is'
                ' for the reply: shorten it, or open the model with a larger max_context_len'
            )
        if prompt >= backend.kv_capacity:
            return (
                f'the prompt has {prompt} tokens and the KV cache holds {backend.kv_capacity}:'
                ' raise kv_tokens'
            )
        if widest > backend.max_batch_tokens:
            return (
                f'an image takes {widest} tokens in one piece and a batch holds {backend.max_batch_tokens}:'
                ' use a smaller image'
            )
        if len(self.waiting) >= self._config.max_queued_requests:
            return (
                f'{len(self.waiting)} requests wait already and max_queued_requests is '
                f'{self._config.max_queued_requests}: try again later'
            )
        self.waiting.append(request)
        return None

    def remove(self, request: Request) -> None:
        """Remove a request that has ended; its sequence stays, idle."""
        for requests in (self.waiting, self.active):
            if request in requests:
                requests.remove(request)
        self._steady = None
        if request.sequence.request is request:
            self._placement.release(request)

    def _admit(self) -> list[tuple[Request, str]]:
        """Give waiting requests a sequence, the most urgent first; return the refused ones, and why."""
        refused: list[tuple[Request, str]] = []
        self._awaited.clear()
        if not self.waiting:
            return refused
        self.waiting.sort(key=lambda request: request.order)
        for request in list(self.waiting):
            # an earlier reply of the same conversation has not ended yet
            if request.sequence.request is not None:
                continue
            if coming := self._placement.coming_prefix(request, self.active):
                self._awaited[coming[0]] = max(coming[1], self._awaited.get(coming[0], 0))
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
                self.waiting.remove(request)
                refused.append((request, f'its KV cache cannot be prepared: {error}'))
                continue
            if not placed:
                break  # later requests must not overtake it
            self.waiting.remove(request)
            self.active.append(request)
            progress = request.progress
            if progress.started is None:
                progress.started = progress.mark('started')
                progress.served_by = self._backend.info.name
                self._metrics.observe('queue_wait', progress.started - request.asked.submitted)
        return refused

    def _swap_out(self, victim: Request) -> None:
        self._metrics.count('preemptions')
        victim.progress.mark('preempted')
        self.active.remove(victim)
        self._placement.swap_out(victim)
        self.waiting.append(victim)

    # --- what they run ---

    def next(self) -> Plan:
        """Return the next batch, and the requests that cannot run."""
        if self._steady is not None and not self.waiting and self._steady.renew():
            return self._steady
        self._steady = None
        refused = self._admit()
        batch = self._batch() if self.active else []
        plan = Plan(batch, [work.chunk for work in batch], refused, all(work.plain for work in batch))
        all_run = 0 < len(batch) == len(self.active)
        if all_run and plan.plain and not refused and not self._may_draft(batch):
            self._steady = plan
        return plan

    def _may_draft(self, batch: list[Work]) -> bool:
        return (
            self.guesses
            and len(batch) <= _DRAFTING_SEQUENCES
            and any(work.request.progress.draft is not None for work in batch)
        )

    def _batch(self) -> list[Work]:
        running = self.active if len(self.active) == 1 else self._most_urgent()
        prefilling: list[Request] = []
        batch: list[Work] = []
        for request in running:
            progress, held = request.progress, request.sequence.held.length
            if progress.new_ids and progress.entries.length == held + 1:  # nearly always
                chunk = Chunk(request.sequence.placed, ids=progress.entries.view(held), num_logits=1)
                batch.append(Work(request, chunk, 1, True, [], progress.only_text))
            elif not request.decoding:
                prefilling.append(request)
            elif work := self._work(request, request.remaining, request.remaining):
                batch.append(work)
        if not prefilling:
            if self._may_draft(batch):
                self._draft(batch)
            return batch
        taken = sum(work.num_entries for work in batch)
        room = self._prefill_room(taken, bool(batch))
        for request in prefilling:
            if room <= 0:
                break
            longest = min(room, self._longest_chunk, self._unshared(request))
            work = self._work(request, longest, self._backend.max_batch_tokens - taken)
            if work is not None:
                batch.append(work)
                taken += work.num_entries
                room -= work.num_entries
        return batch

    def _most_urgent(self) -> list[Request]:
        """Return the running requests with the highest priority, in order; only one of them if it has to run
        by itself.
        """
        urgent = max([request.priority for request in self.active])
        running = [request for request in self.active if request.priority == urgent]
        running.sort(key=lambda request: request.order)
        solo = [request for request in running if request.progress.solo]
        return solo[:1] or running

    def _unshared(self, request: Request) -> int:
        """Entries of a prefill until those that wait for its beginning can start beside it."""
        left = self._awaited.get(request, 0) - request.sequence.held.length
        return left if left > 0 else self._longest_chunk

    def _work(self, request: Request, room: int, most: int) -> Work | None:
        """The next entries of a request: about `room` of them. Only a span that cannot be cut may exceed
        that, up to `most`.
        """
        entries, start = request.progress.entries, request.sequence.held.length
        handle = request.sequence.placed
        boundary, span = request.asked.span_at(start)
        if boundary is None:
            boundary = entries.length
        if span is None:
            stop = min(start + room, boundary, entries.length)
            chunk = Chunk(handle, ids=entries.view(start, stop))
        else:
            first = start - boundary
            last = len(span) if span.whole else min(first + room, len(span))
            if last - first > most:
                return None
            stop = boundary + last
            chunk = Chunk(
                handle,
                embeddings=span.rows[first:last],
                positions=span.positions,
                advance=span.advance,
                bidirectional=span.bidirectional,
                deepstack=span.deepstack,
            )
        chunk.num_logits = int(stop == entries.length)
        return Work(request, chunk, len(chunk), request.decoding, [])

    def _prefill_room(self, decoding: int, beside_running: bool) -> int:
        most = self._backend.max_batch_tokens - decoding
        if not beside_running:
            self._credit = 0.0
            return max(_FIRST_CHUNK, self.costs.mixed.most(0, self._config.max_step, most, _FIRST_CHUNK))
        alone = self.costs.decode.seconds(decoding) or self.costs.mixed.seconds(decoding)
        if alone is None:
            return 1
        allowance = _CAUTION * alone * (1 / self._config.running_share - 1)
        self._credit = min(self._credit + allowance, 4 * allowance)
        if self._credit < allowance:
            return 0  # earlier chunks took longer than expected
        return max(1, self.costs.mixed.most(decoding, alone + allowance, most, 2, least=(decoding, alone)))

    def _draft(self, batch: list[Work]) -> None:
        drafts = [(work, draft) for work in batch if (draft := work.request.progress.draft) is not None]
        room = self._backend.max_batch_tokens - sum(work.num_entries for work in batch)
        seconds = functools.partial(self.costs.decode_seconds, len(batch))
        for work, draft in drafts:
            if work.chunk.ids is None or not work.chunk.num_logits:
                continue
            request = work.request
            left = min(request.asked.limit(self.room) - len(request.progress.entries) - 1, room)
            work.draft = draft.propose(request.context(), left, len(batch), seconds)
            if work.draft:
                work.chunk.ids = np.concatenate([work.chunk.ids, work.draft])
                work.chunk.num_logits += len(work.draft)
                work.num_entries += len(work.draft)
                work.plain = False
                room -= len(work.draft)

    # --- what it cost ---

    def record(self, plan: Plan, seconds: float) -> None:
        """Record the time of a step."""
        batch = plan.batch
        if plan.plain:
            self.costs.decode.record(len(batch), seconds)
            return
        entries = sum([work.num_entries for work in batch])
        if entries == len(batch) and all(work.decoding for work in batch):
            self.costs.decode.record(entries, seconds)
            return
        if any(work.draft for work in batch):
            self.costs.verify.record(entries, seconds)
            return
        self.costs.mixed.record(entries, seconds)
        decoding = sum(work.num_entries for work in batch if work.decoding)
        if decoding and decoding < entries:
            self._credit -= max(0.0, seconds - (self.costs.decode.seconds(decoding) or seconds))
