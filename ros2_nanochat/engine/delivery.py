"""Turns the ids that a forward gives into text, and ends replies.

Runs on the engine's thread. Knows requests, and the scheduler, which gets back the place of a finished reply;
nothing of what runs next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np

from ros2_nanochat.backends.base import Backend
from ros2_nanochat.backends.logits import Logits
from ros2_nanochat.engine.chooser import Chooser
from ros2_nanochat.engine.held_form import HeldForm
from ros2_nanochat.engine.metrics import Metrics
from ros2_nanochat.engine.request import End, Request
from ros2_nanochat.engine.scheduler import Scheduler
from ros2_nanochat.engine.work import Plan, Work
from ros2_nanochat.errors import one_line
from ros2_nanochat.prompt import Preceding, common_prefix
from ros2_nanochat.states import FinishReason

_log = logging.getLogger(__name__)


class Delivery:
    """Appends the next id to each reply, and passes its text to the reader.

    Args:
        backend: The model.
        scheduler: Gets back the place of a finished reply.
        metrics: Counts tokens and times.
    """

    def __init__(self, backend: Backend, scheduler: Scheduler, metrics: Metrics):
        self._backend = backend
        self._scheduler = scheduler
        self._metrics = metrics
        self._chooser = Chooser(self.fail)
        histograms = metrics.histograms
        self._sizes, self._times_per_token = histograms['batch_size'], histograms['time_per_token']
        self._to_score: list[tuple[Request, int]] = []

    # --- a batch ---

    def hand_out(self, plan: Plan, logits: Logits) -> None:
        """Process the result of a forward: update what the KV holds, and choose the next ids."""
        batch = plan.batch
        if plan.plain:
            self._go_on([work.request for work in batch], logits)
            return
        sampled, guessed = [], False
        for work in batch:
            if work.draft:
                guessed = True
            else:
                self._note_held(work)
            if work.chunk.num_logits:
                sampled.append(work.request)
        self._sizes.add(len(sampled))
        if not guessed:
            ids = self._chooser.choose(sampled, logits)
            for request, token_id in zip(sampled, ids):
                if token_id is not None:
                    self._accept(request, token_id)
        else:
            rows, at = logits.numpy(), 0
            for work in batch:
                self._verify(work, rows[at : at + work.chunk.num_logits])
                at += work.chunk.num_logits
        self._score_choices()

    def _go_on(self, requests: list[Request], logits: Logits) -> None:
        """Do what `hand_out` does after a plain plan, and nothing that only other replies need.

        Most steps are of this kind, and the model waits meanwhile.
        """
        for request in requests:
            request.sequence.held.follow(request.progress.entries)
            request.progress.solo = False
        self._sizes.add(len(requests))
        ids, now, room = self._chooser.choose(requests, logits), time.monotonic(), self._scheduler.room
        for request, token_id in zip(requests, ids):
            asked, progress = request.asked, request.progress
            if token_id is None:
                continue
            assert progress.last_token is not None  # the first id came of the prompt
            self._times_per_token.add(now - progress.last_token)
            progress.last_token = now
            if token_id in asked.end_ids:
                self.finish(request, FinishReason.STOP, end_id=token_id)
                continue
            self._metrics.counters['generated_tokens'] += 1
            progress.new_ids.append(token_id)
            progress.entries.append(token_id)
            for delta in progress.text.add(token_id):
                request.signals.output.put(delta)
            if progress.text.stopped:
                self.finish(request, FinishReason.STOP)
            elif 0 < asked.config.max_new_tokens <= len(progress.new_ids) or progress.entries.length >= room:
                self.finish(request, FinishReason.LENGTH)

    def _score_choices(self) -> None:
        """Accept the ids that wait for the probabilities of their choice. Must come last in a batch: the
        forwards that this runs invalidate the batch's logits.
        """
        waiting, self._to_score = self._to_score, []
        for request, token_id in waiting:
            scores, sequence, signals = request.progress.scores, request.sequence, request.signals
            if scores is None or sequence.handle is None or signals.ended.is_set() or signals.cancelled:
                continue  # a cancelled reply ends before the next step, which may be a person's
            spare = self._backend.max_sequences - len(self._scheduler.sequences)
            began = time.perf_counter()
            try:
                scores.run(self._backend, sequence.handle, len(sequence.held), spare)
            except BaseException as error:  # the answer itself is not affected
                scores.error = one_line(error)
                _log.warning('the probabilities of a choice are not known: %s', scores.error)
            request.progress.seconds += time.perf_counter() - began
            self._accept(request, token_id)

    def _note_held(self, work: Work) -> None:
        progress, held = work.request.progress, work.request.sequence.held
        if work.num_entries == 1:
            held.follow(progress.entries)
        else:
            held.extend(progress.entries.view(held.length)[: work.num_entries])
        progress.solo = False
        if not progress.new_ids:
            self._metrics.count('prefilled_tokens', work.num_entries)

    def _verify(self, work: Work, rows: np.ndarray) -> None:
        """Accept the guesses that equal what the model chooses, and the id that it chooses after them."""
        request, sequence = work.request, work.request.sequence
        if work.draft:
            sequence.held.extend(work.chunk.ids)
        known, new_ids = len(sequence.held) - len(work.draft), request.progress.new_ids
        start = len(new_ids)
        while (put := new_ids[start:]) == list(work.draft[: len(put)]) and len(put) < len(rows):
            token_id = self._chooser.choose_here(request, rows[len(put)])
            if token_id is None or not self._accept(request, token_id):
                break
        put = new_ids[start:]
        # One entry is left for the next forward, which then gives logits.
        accepted = max(0, min(common_prefix(np.asarray(work.draft), np.asarray(put)), len(put) - 1))
        if work.draft and request.progress.draft is not None:
            request.progress.draft.record(len(work.draft), accepted)
            self._metrics.count('drafted_tokens', len(work.draft))
            self._metrics.count('accepted_tokens', accepted)
            if sequence.handle is not None and known + accepted < len(sequence.held):
                kept = self._backend.trim(sequence.handle, known + accepted)
                sequence.held.cut(kept)
                if kept < known + accepted:  # recomputing that would cost more than guesses gain
                    self._scheduler.guesses = False

    # --- one reply ---

    def _accept(self, request: Request, token_id: int) -> bool:
        """Append an id to a reply; False if the reply ends with it."""
        asked, progress = request.asked, request.progress
        config, form, scores = asked.config, progress.form, progress.scores
        if scores is not None and not scores.started:
            answer = progress.answer_form
            if answer is not None and answer.begins_with(token_id):
                self._to_score.append((request, token_id))
                scores.started = True
                return False
        if config.max_new_tokens == 0:  # only the prompt was requested
            self.finish(request, FinishReason.LENGTH)
            return False
        now = time.monotonic()
        if progress.last_token is None:
            progress.first_token = now
            progress.trace.append(('first_token', now))
            self._metrics.observe('time_to_first_token', now - asked.submitted)
        else:
            self._times_per_token.add(now - progress.last_token)
        progress.last_token = now
        if token_id in asked.end_ids and (form is None or form.whole):
            self.finish(request, FinishReason.STOP, end_id=token_id)
            return False
        if not self._put(request, token_id):
            return False
        if not progress.text.stopped and config.functions:
            self._call_functions(request)
        if form is not None:
            self._put_forced(request, form)
        if progress.text.stopped or (form is not None and form.finished):
            self.finish(request, FinishReason.STOP)
        elif self._is_full(request):
            self.finish(request, FinishReason.LENGTH)
        return not request.signals.ended.is_set()

    def _is_full(self, request: Request) -> bool:
        progress = request.progress
        return (
            0 <= request.asked.config.max_new_tokens <= len(progress.new_ids)
            or progress.entries.length >= self._scheduler.room
        )

    def _put_forced(self, request: Request, form: HeldForm) -> None:
        """Append the ids that the form forces; the next forward reads them all at once."""
        for token_id in form.forced():
            if self._is_full(request) or request.progress.text.stopped or not self._put(request, token_id):
                return

    def _put(self, request: Request, token_id: int) -> bool:
        """Append an id to a reply and its text to the output; False if the form does not accept it."""
        progress, output = request.progress, request.signals.output
        if progress.form is not None:
            try:
                progress.form.accept(token_id)
            except ValueError as error:
                self.fail([request], str(error))
                return False
        self._metrics.counters['generated_tokens'] += 1
        progress.new_ids.append(token_id)
        progress.entries.append(token_id)
        for delta in progress.text.add(token_id):
            output.put(delta)
        return True

    def _call_functions(self, request: Request) -> None:
        progress = request.progress
        for function in request.asked.config.functions:
            try:
                added = function(progress.text.answer)
                ids = self._backend.tokenize(added, preceding=Preceding.TEXT) if added else []
            except BaseException as error:
                name = getattr(function, '__name__', function)
                self.fail([request], f'{name!r} in functions failed: {error!r}')
                return
            for token_id in ids[: self._scheduler.room - len(progress.entries)]:
                if not self._put(request, token_id):
                    return

    # --- ending ---

    def finish(
        self,
        request: Request,
        reason: FinishReason,
        detail: str | None = None,
        end_id: int | None = None,
    ) -> None:
        """End a reply: its last text goes out, and its place is free. Only the first call has an effect.

        Args:
            request: The reply.
            reason: Why it ends.
            detail: What was wrong and what to do, if something was.
            end_id: The end token with which it ends.
        """
        if request.signals.ended.is_set():
            return
        request.signals.ended.set()
        progress, output = request.progress, request.signals.output
        progress.mark(reason)
        try:
            for delta in progress.text.flush(end_id):
                output.put(delta)
            given = progress.text.given(len(progress.new_ids))
            end = End(reason, *given, detail, progress.text.num_partial)
        except BaseException as error:  # the reply ends all the same
            _log.exception('the end of a reply failed')
            end = End(FinishReason.ERROR, 0, False, detail or f'internal error: {error!r}')
        self._scheduler.remove(request)
        self._metrics.count(f'finished_{end.reason}')
        output.put(end)

    def fail(self, requests: Sequence[Request], detail: str) -> None:
        """End replies with an error.

        Args:
            requests: The replies.
            detail: What was wrong and what to do.
        """
        for request in list(requests):
            self.finish(request, FinishReason.ERROR, detail)
