"""From logits to the next id: a batch of rows at a time, each with its own options and random stream. NumPy
only.

The steps and their order are those of transformers (`generation/logits_process.py`): repetition penalty, no
end tokens before `min_new_tokens`, the caller's processors, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ros2_nanochat.backends.logits import Logits
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.answer_form import AnswerForm
from ros2_nanochat.engine.calling import CallingForm

_LEAST_TEMPERATURE = 1e-30  # below it float32 overflows; sampling already always gives the likeliest id


class Sampler:
    """Chooses the ids of one reply.

    Args:
        config: Its options.
        end_ids: Tokens that would end the reply.
        form: The form that the answer must have, or None.
    """

    def __init__(
        self,
        config: GenerationConfig,
        end_ids: frozenset[int],
        form: AnswerForm | CallingForm | None = None,
    ):
        self.config = config
        self.form = form
        self._end_ids = np.fromiter(sorted(end_ids), np.int64)
        self._random = np.random.Generator(np.random.PCG64(None if config.greedy else config.seed))
        self._unprocessed = (
            config.repetition_penalty == 1.0 and not config.min_new_tokens and not config.logits_processors
        )
        self.simple = self._unprocessed and (config.greedy or not (config.top_k or config.min_p))
        """Whether nothing but temperature and top-p, and a form if there is one, affects the choice."""

    def draw(self) -> float:
        """Return the next random number, in [0, 1)."""
        return self._random.random()

    def choose(self, logits: np.ndarray, context: np.ndarray, num_new: int, strict: bool = False) -> int:
        """Return the next id.

        If the form is free, the id is chosen without it. Then pass the id to the form's `allows`, and if that
        rejects it, choose again, `strict`.

        Args:
            logits: [v] float32.
            context: [n]: the ids so far.
            num_new: How many of them, at the end, belong to the reply.
            strict: Apply the form even if it is free.

        Raises:
            ValueError: The logits are not valid, or a processor returned another shape.
        """
        config = self.config
        if self.form is not None and config.greedy and self._unprocessed and (strict or not self.form.free):
            ids = np.flatnonzero(self.form.allowed(len(logits)))  # mostly few: no copy of all logits
            if len(ids):
                best = int(ids[logits[ids].argmax()])
                _check(min(logits[best], np.float32(0)))
                return best
        if self.form is not None:
            logits = self.form.mask(logits, strict)
        if not self._unprocessed:
            logits = self._process(logits, context, num_new)
        if self.form is not None and config.logits_processors:
            logits = self.form.mask(logits, strict)
        if not config.greedy:
            return self._draw(logits)
        best = int(logits.argmax())
        _check(min(logits[best], np.float32(0)))
        return best

    def _process(self, logits: np.ndarray, context: np.ndarray, num_new: int) -> np.ndarray:
        config = self.config
        logits = logits.astype(np.float32)  # a copy, as the backend owns the row
        if config.repetition_penalty != 1.0:
            seen = np.unique(context[context >= 0])
            scores = logits[seen]
            logits[seen] = np.where(
                scores < 0, scores * config.repetition_penalty, scores / config.repetition_penalty
            )
        if num_new < config.min_new_tokens:
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
        and (rows.can_mask or sampler.form is None or sampler.form.free)
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
