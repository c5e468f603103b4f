"""From logits to the next id: a batch of rows at a time, each with its own options and random stream. NumPy
only.

The steps and their order are those of transformers (`generation/logits_process.py`): repetition penalty, no
end tokens before `min_new_tokens`, the caller's processors, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from ros2_nanochat.backends.logits import Logits
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.held_form import HeldForm

_TRIES = 6  # of the likeliest ids, before a mask is computed
_FEW = 0.1  # of the vocabulary: with more allowed ids, looking at all is faster than gathering them
_MINUS_INFINITY = np.array(-np.inf, np.float32).view(np.int32)
_LEAST_TEMPERATURE = 1e-30  # below it float32 overflows; sampling already always gives the likeliest id


class Sampler:
    """Chooses the ids of one reply.

    Args:
        config: Its options.
        end_ids: Tokens that would end the reply.
        form: The form that the answer must have, or None.
    """

    def __init__(self, config: GenerationConfig, end_ids: frozenset[int], form: HeldForm | None = None):
        self.config = config
        self.form = form
        self._ends = end_ids
        self._end_ids = np.fromiter(sorted(end_ids), np.int64)
        self._as_computed = config.repetition_penalty == 1.0 and not config.logits_processors
        self.simple = self._as_computed and (
            config.greedy or not (config.top_k or config.min_p or config.min_new_tokens)
        )
        """Whether the id can be chosen from the logits as they are, with temperature and top-p only, and then
        checked with `may_come`."""
        self.plain = self.simple and config.greedy and form is None and not config.min_new_tokens
        """Whether the next id is always the one with the largest logit."""

    @functools.cached_property
    def _random(self) -> np.random.Generator:
        # Created on first use: servers do the sampling themselves.
        return np.random.Generator(np.random.PCG64(self.config.seed))

    def draw(self) -> float:
        """Return the next random number, in [0, 1)."""
        return self._random.random()

    @property
    def held(self) -> bool:
        """Whether a form applies to the next id."""
        return self.form is not None and not self.form.free

    @property
    def masked(self) -> bool:
        """Whether the next id can only be chosen with the form's mask.

        The likeliest id of all is also the likeliest of those that the form allows, if it is one of them. So
        a greedy reply needs the mask only if it is not.
        """
        return self.held and not (self.config.greedy and self._as_computed)

    def may_come(self, token_id: int, num_new: int) -> bool:
        """Return whether an id that was chosen without a mask may come next.

        Args:
            token_id: The id.
            num_new: Number of ids of the reply so far.

        Raises:
            ValueError: Following the form takes too much work.
        """
        if num_new < self.config.min_new_tokens and token_id in self._ends:
            return False
        return self.form is None or self.form.allows(token_id)

    def allowed(self, size: int, num_new: int) -> np.ndarray:
        """Return which ids the form and `min_new_tokens` allow, [size] bool. Do not change the array.

        Raises:
            ValueError: Following the form takes too much work.
        """
        ids = np.ones(size, bool) if self.form is None else self.form.allowed(size)
        if num_new < self.config.min_new_tokens:
            ids = ids.copy()
            ids[self._end_ids] = False
        return ids

    def choose(self, logits: np.ndarray, context: np.ndarray, num_new: int, strict: bool = False) -> int:
        """Return the next id.

        Args:
            logits: [v] float32.
            context: [n]: the ids so far.
            num_new: How many of them, at the end, belong to the reply.
            strict: The form was not applied to an id that was chosen, and rejected it: apply it first.

        Raises:
            ValueError: The logits are not valid, a processor returned another shape, or following the form
                takes too much work.
        """
        masked = self.form is not None and (strict or self.masked)
        if masked and not self.masked and (likely := self._try_likeliest(logits, num_new)) is not None:
            return likely
        if masked and self.config.logits_processors:
            logits = np.where(self.allowed(len(logits), num_new), logits, np.float32(-np.inf))
        early = num_new < self.config.min_new_tokens
        if not self._as_computed or (early and not masked):
            logits = self._process(logits, context, early)
        if masked:
            return self._pick_allowed(logits, self.allowed(len(logits), num_new))
        token_id = self._pick(logits)
        if self.form is None or self.form.allows(token_id):
            return token_id
        return self.choose(logits, context, num_new, strict=True)

    def _try_likeliest(self, logits: np.ndarray, num_new: int) -> int | None:
        """The likeliest id that may come, if it is one of the first few, at a lower cost than a mask."""
        if not self.held:
            return None
        rest = logits.copy()
        for _ in range(_TRIES):
            token_id = int(rest.argmax())
            if not np.isfinite(rest[token_id]):
                return None
            if self.may_come(token_id, num_new):
                return token_id
            rest[token_id] = -np.inf
        return None

    def _pick_allowed(self, logits: np.ndarray, allowed: np.ndarray) -> int:
        if np.count_nonzero(allowed) > _FEW * len(allowed):
            try:
                return self._pick(logits + _bias(allowed))
            except ValueError:  # a logit is not finite, perhaps of an id that is not allowed
                pass
        ids = np.flatnonzero(allowed)
        return int(ids[self._pick(logits[ids])])

    def _pick(self, logits: np.ndarray) -> int:
        """The index of the next id among some logits, possibly none."""
        if not len(logits):
            _check(-np.inf)
        if not self.config.greedy:
            return self._draw(logits)
        best = int(logits.argmax())
        _check(min(logits[best], np.float32(0)))
        return best

    def _process(self, logits: np.ndarray, context: np.ndarray, early: bool) -> np.ndarray:
        config = self.config
        logits = logits.astype(np.float32)  # a copy, as the backend owns the row
        if config.repetition_penalty != 1.0:
            seen = np.unique(context[context >= 0])
            scores = logits[seen]
            logits[seen] = np.where(
                scores < 0, scores * config.repetition_penalty, scores / config.repetition_penalty
            )
        if early:
            logits[self._end_ids] = -np.inf
        for processor in config.logits_processors:
            shape = logits.shape
            logits = np.asarray(processor(context.copy(), logits), dtype=np.float32)
            if logits.shape != shape:
                raise ValueError(
                    f'{getattr(processor, "__name__", processor)!r} returned logits of shape {logits.shape},'
                    f' not {shape}'
                )
        return logits

    def _draw(self, logits: np.ndarray) -> int:
        config = self.config
        ids = None
        most = logits.max()
        _check(most)
        if config.top_k and config.top_k < len(logits):
            ids = np.flatnonzero(
                logits >= np.partition(logits, -config.top_k)[-config.top_k]
            )  # including all that tie with the last one
            logits = logits[ids]
        scores = (logits - most) * np.float32(1 / max(config.temperature, _LEAST_TEMPERATURE))
        weights = np.exp(scores, dtype=np.float32).astype(np.float64)
        if config.top_p < 1:
            weights, ids = _nucleus(weights, ids, config.top_p)
        if config.min_p:
            weights = np.where(weights >= config.min_p * weights.max(), weights, 0)
        cumulative = np.cumsum(weights)
        point = min(
            self.draw() * cumulative[-1], np.nextafter(cumulative[-1], 0)
        )  # stay below the sum, which rounding might reach
        index = int(np.searchsorted(cumulative, point, side='right'))
        return int(index if ids is None else ids[index])


def _bias(allowed: np.ndarray) -> np.ndarray:
    """What rules out ids if it is added to their logits: 0 where [v] bool is true, else minus infinity.

    Made of bits: `np.where` would take ten times as long.
    """
    return ((allowed.astype(np.int32) - 1) & _MINUS_INFINITY).view(np.float32)


def _check(largest: float) -> None:
    """Raise a ValueError if the largest logit shows that no token can be chosen."""
    if not np.isfinite(largest):
        raise ValueError(
            f'the largest logit is {largest}: the model failed, or logits_processors ruled out every token'
        )


def _nucleus(weights: np.ndarray, ids: np.ndarray | None, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest weights that make up `top_p` of the sum, largest first, and their ids."""
    total = weights.sum()
    # all weights below this one sum to less than what is left out: no need to sort them
    likely = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    largest = likely[np.argsort(-weights[likely], kind='stable')]
    keep = largest[: int(np.searchsorted(np.cumsum(weights[largest]), top_p * total)) + 1]
    return weights[keep], (keep if ids is None else ids[keep])


def choose_largest(rows: Logits) -> list[int | None]:
    """Return the id of the largest logit in each row; None if that logit is not finite."""
    return [token_id if token_id >= 0 else None for token_id in rows.argmax().tolist()]


def places_there(samplers: Sequence[Sampler], rows: Logits) -> list[int]:
    """Return the places in a batch whose ids can be chosen where the rows [k, v] are.

    If even one needs the logits on the host, and ids cannot be drawn on the device, there are none: one copy
    to the host then serves all.
    """
    places = [
        i
        for i, sampler in enumerate(samplers)
        if sampler.simple
        and (rows.can_sample or sampler.config.greedy)
        and (rows.can_mask or not sampler.masked)
    ]
    return places if rows.can_sample or len(places) == len(samplers) else []


def choose_there(
    samplers: Sequence[Sampler], rows: Logits, places: Sequence[int] | None = None
) -> list[int | None]:
    """Choose ids where the rows [k, v] are; None for all others, and for a row without a finite logit.

    The rest of the batch does not affect a reply: each draws one number from its own stream, and both ways
    turn the number into the same id.

    Args:
        samplers: One for each row.
        rows: The logits, with the forms applied.
        places: Some of `places_there`; None for all of them.
    """
    chosen: list[int | None] = [None] * len(samplers)
    places = places_there(samplers, rows) if places is None else places
    if not places:
        return chosen
    if all(samplers[i].config.greedy for i in places):
        largest = choose_largest(rows)
        for i in places:
            chosen[i] = largest[i]
        return chosen
    how = [
        (0.0, 1.0, 0.0)
        if samplers[i].config.greedy
        else (samplers[i].config.temperature, samplers[i].config.top_p, samplers[i].draw())
        for i in places
    ]
    temperature, top_p, uniform = zip(*how)
    for i, token_id in zip(places, rows.sample(places, temperature, top_p, uniform)):
        chosen[i] = int(token_id)
    return chosen
