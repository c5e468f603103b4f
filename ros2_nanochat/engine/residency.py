"""Which conversations have their KV in the model: finds the longest prefix that is already computed, makes
room, evicts and restores.

Runs on the engine's thread. Knows sequences and the backend; nothing of batches.
"""

from __future__ import annotations

import logging
import time

from ros2_nanochat.backends.base import Backend
from ros2_nanochat.config import EngineConfig
from ros2_nanochat.engine.cost import StepCosts
from ros2_nanochat.engine.metrics import Metrics
from ros2_nanochat.engine.request import Request
from ros2_nanochat.engine.sequence import EntryBuffer, Parked, Sequence
from ros2_nanochat.prompt import common_prefix

_log = logging.getLogger(__name__)
_WORTH_SHARING = 16  # entries by which another conversation's prefix must exceed the conversation's own


class Residency:
    """The sequences that have a handle in the backend, in no particular order.

    Args:
        backend: The model.
        config: The options of the engine.
        metrics: Counts evictions and the like.
        costs: What steps cost on this backend.
    """

    def __init__(self, backend: Backend, config: EngineConfig, metrics: Metrics, costs: StepCosts):
        self.sequences: list[Sequence] = []
        self.room = min(backend.info.context_length, backend.kv_capacity)
        """Maximum number of entries of one sequence."""
        self._backend = backend
        self._config = config
        self._metrics = metrics
        self._costs = costs
        self._parked: list[Sequence] = []
        self._load_seconds_per_byte: float | None = None

    # --- coming ---

    def coming_prefix(self, request: Request, active: list[Request]) -> tuple[Request, int] | None:
        """Return a request that is being prefilled and will soon hold a longer prefix of this one than any
        sequence does now, and the length of that prefix; None if there is none.
        """
        entries = request.progress.entries.view()
        held = max((self._common(sequence, request) for sequence in self.sequences), default=0)
        for other in active:
            if other.priority >= request.priority and not other.decoding:
                promised = request.asked.whole(
                    min(common_prefix(other.progress.entries.view(), entries), len(entries) - 1)
                )
                if promised >= max(held, len(other.sequence.held)) + _WORTH_SHARING:
                    return other, promised
        return None

    def place(self, request: Request, active: list[Request]) -> bool:
        """Give a request's sequence a handle whose KV holds as many of its entries as possible.

        Args:
            request: The request.
            active: The requests that run.

        Returns:
            False if there is no room now.

        Raises:
            Exception: Whatever the backend raises; the sequence then holds nothing.
        """
        try:
            return self._place(request, active)
        except Exception:
            self._forget(request.sequence)
            raise

    def _place(self, request: Request, active: list[Request]) -> bool:
        sequence = request.sequence
        own = self._common(sequence, request) if sequence.handle is not None else 0
        source = max(self.sequences, key=lambda other: self._common(other, request), default=None)
        shared = self._common(source, request) if source is not None and source is not sequence else 0
        if shared < own + _WORTH_SHARING:
            source, shared = None, 0
        if sequence.parked is not None and not self._unpark_pays(sequence.parked, max(own, shared), request):
            self._drop_parked(sequence)
        if not self._make_room(request, active, source):
            return False
        sequence.request, sequence.background = request, request.background
        if sequence.parked is not None:
            self._unpark(sequence, sequence.parked)
        elif source is not None and source.handle is not None:
            self._fork(source, sequence, shared)
        if sequence.handle is None:
            self._attach(sequence, self._backend.new_sequence(), EntryBuffer())
        kept = self._common(sequence, request)
        if kept < len(sequence.held):
            sequence.held.cut(self._backend.trim(sequence.placed, kept))
        if source is not None:
            request.progress.shared = len(sequence.held)
        if request.progress.started is None:
            request.progress.reused = len(sequence.held)
            self._metrics.count('shared_tokens', request.progress.shared)
            self._metrics.count('reused_tokens', len(sequence.held))
            self._metrics.count('prompt_tokens', request.num_prompt)
        return True

    def _common(self, sequence: Sequence, request: Request) -> int:
        """Entries of a request that a sequence's KV holds. At least one is left to compute, which then gives
        logits.
        """
        same = common_prefix(sequence.held.view(), request.progress.entries.view())
        return request.asked.whole(min(same, len(request.progress.entries) - 1))

    def _fork(self, source: Sequence, sequence: Sequence, n: int) -> None:
        if sequence.handle is not None:
            self._detach(sequence)
        handle, kept = self._backend.fork(source.placed, n)
        self._attach(sequence, handle, EntryBuffer(source.held.view()[:kept]))

    def _attach(self, sequence: Sequence, handle: int, held: EntryBuffer) -> None:
        sequence.handle, sequence.held = handle, held
        self.sequences.append(sequence)

    def _detach(self, sequence: Sequence) -> None:
        self._backend.free(sequence.placed)
        sequence.handle, sequence.held = None, EntryBuffer()
        self.sequences.remove(sequence)

    def _forget(self, sequence: Sequence) -> None:
        """Drop the KV of a sequence with which the backend failed: its contents are unknown."""
        handle, sequence.handle, sequence.held, sequence.request = sequence.handle, None, EntryBuffer(), None
        self._drop_parked(sequence)
        if sequence in self.sequences:
            self.sequences.remove(sequence)
        if handle is not None:
            try:
                self._backend.free(handle)
            except Exception:
                _log.exception('a sequence could not be evicted')

    # --- room ---

    def _make_room(self, request: Request, active: list[Request], source: Sequence | None) -> bool:
        """Evict idle conversations until this request has a handle, and room for its tokens."""
        limit = request.asked.limit(self.room)
        promised = sum(other.asked.limit(self.room) for other in active)
        if promised + limit > self._backend.kv_capacity and active:
            return False
        sequence = request.sequence
        while True:
            idle = [s for s in self.sequences if s.request is None and s is not sequence]
            tokens = promised + limit + sum(len(s.held) for s in idle)
            handles = len(self.sequences) + (sequence.handle is None)
            if tokens <= self._backend.kv_capacity and handles <= self._backend.max_sequences:
                return True
            if not idle:
                return not active and handles <= self._backend.max_sequences
            spared = {id(s) for s in idle if request.background and not s.background}
            victim = min(idle, key=lambda s: (id(s) in spared, s is source, not s.abandoned, s.last_used))
            if id(victim) in spared and active:
                return False
            if victim is source and sequence.handle is None:
                self._hand_over(source, sequence)
            else:
                self._give_up(victim)

    def _hand_over(self, source: Sequence, sequence: Sequence) -> None:
        """Give a sequence the KV of another, whose room was the one available and whose KV begins the
        same.
        """
        sequence.handle, sequence.held = source.handle, source.held
        source.handle, source.held = None, EntryBuffer()
        self.sequences[self.sequences.index(source)] = sequence
        self._metrics.count('evictions')

    def _give_up(self, victim: Sequence) -> None:
        self._metrics.count('evictions')
        if not victim.abandoned:
            self._park(victim, self._config.park_bytes)
        self._detach(victim)

    def swap_out(self, victim: Request) -> None:
        """Take the handle of a running request. Its KV is parked if the backend can, else recomputed
        later.
        """
        sequence = victim.sequence
        self._park(sequence, None)
        self._detach(sequence)
        sequence.request = None

    def release(self, request: Request) -> None:
        """Make the sequence of a finished request idle. It keeps no more than what was delivered."""
        sequence = request.sequence
        sequence.request = None
        sequence.last_used = time.monotonic()
        if sequence.handle is None:
            return
        if request.signals.delivered_tokens is not None:
            wanted = request.asked.whole(request.num_prompt + request.signals.delivered_tokens)
            if wanted < len(sequence.held):
                try:
                    sequence.held.cut(self._backend.trim(sequence.placed, wanted))
                except Exception:
                    _log.exception(
                        'what was not delivered could not be cut off: the conversation is computed again'
                    )
                    self._forget(sequence)

    # --- parking ---

    def _park(self, sequence: Sequence, budget: int | None) -> None:
        """Keep the KV of a sequence in host memory, if all parked KV stays within `budget` bytes (None: no
        limit).
        """
        if budget == 0 or not len(sequence.held):
            return
        try:
            data = self._backend.save(sequence.placed)
        except Exception as error:  # for example no memory: then it is recomputed
            _log.warning('a conversation was not parked: %s', error)
            return
        if data is None or (budget is not None and len(data) > budget):
            return
        if budget is not None:
            while self._parked and self._parked_bytes + len(data) > budget:
                self._drop_parked(min(self._parked, key=lambda s: s.last_used))
        sequence.parked = Parked(data, sequence.held.view().copy())
        self._parked.append(sequence)
        self._metrics.count('parked')

    @property
    def _parked_bytes(self) -> int:
        return sum(len(s.parked.data) for s in self._parked if s.parked is not None)

    def _unpark_pays(self, parked: Parked, already: int, request: Request) -> bool:
        """Whether loading the parked KV is faster than prefilling what it would save, according to
        measurements.
        """
        gained = common_prefix(parked.entries, request.progress.entries.view()) - already
        if gained <= 0:
            return False
        prefill = self._costs.prefill_seconds(gained)
        if prefill is None or self._load_seconds_per_byte is None:
            return True  # load it once, to measure
        return self._load_seconds_per_byte * len(parked.data) < prefill

    def _unpark(self, sequence: Sequence, parked: Parked) -> None:
        self._drop_parked(sequence)
        if sequence.handle is not None:
            self._detach(sequence)
        began = time.perf_counter()
        handle = self._backend.load(parked.data)
        if handle is None:
            return
        self._load_seconds_per_byte = (time.perf_counter() - began) / len(parked.data)
        self._attach(sequence, handle, EntryBuffer(parked.entries))
        self._metrics.count('unparked')

    def _drop_parked(self, sequence: Sequence) -> None:
        sequence.parked = None
        if sequence in self._parked:
            self._parked.remove(sequence)
