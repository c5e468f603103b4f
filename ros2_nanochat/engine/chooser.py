"""Chooses the next ids of replies from the logits of a forward.

Runs on the engine's thread. Ends a reply only through the function that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ros2_nanochat.backends.logits import Logits
from ros2_nanochat.engine.request import Request
from ros2_nanochat.engine.sampler import Sampler, choose_largest, choose_there, places_there
from ros2_nanochat.errors import one_line


class Chooser:
    """Chooses ids with the samplers of the replies.

    Args:
        fail: Ends replies with an error, whose text is the second argument.
    """

    def __init__(self, fail: Callable[[Sequence[Request], str], None]):
        self._fail = fail

    def choose(self, requests: list[Request], rows: Logits) -> Sequence[int | None]:
        """Choose the next id of each reply from its row of the logits; None for a reply that failed. If that
        is possible, the ids are chosen where the logits are.
        """
        if not requests:
            return []
        rejected: list[int] = []
        try:
            if all(request.progress.sampler.plain for request in requests):
                chosen = choose_largest(rows)
            else:
                samplers = [request.progress.sampler for request in requests]
                chosen, rejected = self._choose_there(requests, samplers, rows)
        except BaseException as error:  # a library in Rust that panics raises no Exception
            self._fail(requests, f'choosing the next token failed: {one_line(error, 1000)}')
            return [None] * len(requests)
        if None in chosen:  # one copy to the host serves all of them
            here = rows.numpy()
            chosen = [
                self.choose_here(request, here[i], i in rejected) if token_id is None else token_id
                for i, (request, token_id) in enumerate(zip(requests, chosen))
            ]
        return chosen

    def _choose_there(
        self, requests: list[Request], samplers: list[Sampler], rows: Logits
    ) -> tuple[list[int | None], list[int]]:
        """Choose ids where the logits are; None where that is not possible. Return them, and the places whose
        forms have rejected an id.
        """
        places = self._unscored(requests, places_there(samplers, rows))
        # a device may still compute the logits, so that time for masks is free
        masked = [i for i in places if samplers[i].masked or (rows.can_mask and samplers[i].held)]
        places = self._mask(requests, rows, places, masked)
        chosen = choose_there(samplers, rows, places)
        rejected = [i for i in places if self._rejects(requests[i], chosen[i])]
        again = self._mask(requests, rows, rejected, rejected) if rows.can_mask else []
        second = choose_there(samplers, rows, again)
        for i in rejected:
            chosen[i] = second[i]
        return chosen, rejected

    @staticmethod
    def _unscored(requests: list[Request], places: list[int]) -> list[int]:
        """Leave out the places whose whole row is needed on the host, for the probabilities of a choice."""
        scores = {i: requests[i].progress.scores for i in places}
        return [i for i, scored in scores.items() if scored is None or scored.started]

    def _mask(self, requests: list[Request], rows: Logits, places: list[int], masked: list[int]) -> list[int]:
        """Rule out what the forms of the `masked` do not allow, where the logits are; return the places whose
        forms could be followed.
        """
        allowed: dict[int, np.ndarray] = {}
        for i in masked:
            progress = requests[i].progress
            try:
                allowed[i] = progress.sampler.allowed(rows.shape[1], len(progress.new_ids))
            except ValueError as error:
                self._fail([requests[i]], str(error))
        if allowed:
            rows.mask(list(allowed), np.stack(list(allowed.values())))
        return [i for i in places if i not in masked or i in allowed]

    def _rejects(self, request: Request, token_id: int | None) -> bool:
        """Whether an id that was chosen without a mask may not come, so that it is chosen again with one."""
        progress = request.progress
        if token_id is None:  # a logit is not finite, perhaps of an id that is not allowed
            return progress.sampler.held
        try:
            return not progress.sampler.may_come(token_id, len(progress.new_ids))
        except ValueError as error:
            self._fail([request], str(error))
            return True

    def choose_here(self, request: Request, row: np.ndarray, strict: bool = False) -> int | None:
        """Choose the next id of a reply on the host; None if it has ended or failed.

        Args:
            request: The reply.
            row: Its logits [v].
            strict: Its form rejected an id that was chosen without a mask: mask the logits first.
        """
        progress = request.progress
        if request.signals.ended.is_set():
            return None
        try:
            if progress.scores is not None and not progress.scores.started:
                progress.scores.take((), row)
            return progress.sampler.choose(row, request.context(), len(progress.new_ids), strict)
        except BaseException as error:
            self._fail([request], f'choosing the next token failed: {one_line(error, 1000)}')
            return None
