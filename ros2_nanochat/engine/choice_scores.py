"""The probability of each alternative of a choice: the product over its ids, including the end token, at
temperature 1 and before penalties, renormalized over the alternatives.

Beginnings that alternatives share are scored once. Runs on the engine's thread; knows nothing of requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ros2_nanochat.backends.base import Backend, Chunk
from ros2_nanochat.errors import BackendError

MAX_ALTERNATIVES = 256

_Ids = tuple[int, ...]


class ChoiceScores:
    """The tree of the alternatives' ids, filled with probabilities.

    Args:
        alternatives: The ids of each text, the end token last.
    """

    def __init__(self, alternatives: Mapping[str, Sequence[int]]):
        self._alternatives = {text: tuple(ids) for text, ids in alternatives.items()}
        self._children: dict[_Ids, set[int]] = {}
        for ids in self._alternatives.values():
            for n in range(len(ids)):
                self._children.setdefault(ids[:n], set()).add(ids[n])
        self._log_probabilities: dict[_Ids, float] = {}
        self.started = False
        """Whether `run` was called."""
        self.error: str | None = None
        """Why there are no probabilities, if there are none."""

    def take(self, beginning: _Ids, logits: np.ndarray) -> None:
        """Record the logits [v] of what follows a beginning."""
        scores = logits.astype(np.float64)
        log_total = float(scores.max() + np.log(np.exp(scores - scores.max()).sum()))
        for token_id in self._children[beginning]:
            self.note(beginning, token_id, float(scores[token_id]) - log_total)

    def note(self, beginning: _Ids, token_id: int, log_probability: float) -> None:
        """Record the log probability of an id that follows a beginning."""
        self._log_probabilities[beginning + (token_id,)] = log_probability

    @property
    def beginnings(self) -> Mapping[_Ids, set[int]]:
        """The ids that may follow each beginning of an alternative."""
        return self._children

    def run(self, backend: Backend, seq: int, length: int, spare: int) -> None:
        """Compute what is missing after the first `length` entries of a sequence, which keep their KV.

        Args:
            backend: The model.
            seq: Handle of the sequence.
            length: Entries before the answer.
            spare: How many sequences may be created in addition to those that exist. If there are any, the
                beginnings run in one forward or a few; if not, one after the other in the sequence itself.

        Raises:
            BackendError: The model failed, or can neither fork nor trim the sequence.
        """
        self.started = True
        paths = self._paths()
        if not paths:
            return
        if spare:
            for group in _groups(paths, spare, backend.max_batch_tokens):
                self._run_forks(backend, seq, length, group)
        elif backend.trims_exactly:
            for path in paths:
                try:
                    self._take_rows(path, backend.forward([_chunk(seq, path)]).numpy())
                finally:
                    backend.trim(seq, length)
        else:
            raise BackendError('no sequence is free to score the alternatives in: raise max_sequences')

    def _run_forks(self, backend: Backend, seq: int, length: int, paths: Sequence[_Ids]) -> None:
        forks: list[int] = []
        try:
            for _ in paths:
                handle, kept = backend.fork(seq, length)
                forks.append(handle)
                if kept != length:
                    raise BackendError('this model cannot fork a conversation to score the alternatives')
            rows = backend.forward([_chunk(fork, path) for fork, path in zip(forks, paths)]).numpy()
            at = 0
            for path in paths:
                self._take_rows(path, rows[at : at + len(path)])
                at += len(path)
        finally:
            for fork in forks:
                backend.free(fork)

    def _take_rows(self, path: _Ids, rows: np.ndarray) -> None:
        for n in range(len(path)):
            self.take(path[: n + 1], rows[n])

    def _paths(self) -> list[_Ids]:
        """The longest beginnings that something follows; they cover all others but the empty one."""
        inner = {beginning[:-1] for beginning in self._children if beginning}
        return sorted(beginning for beginning in self._children if beginning and beginning not in inner)

    @property
    def probabilities(self) -> dict[str, float] | None:
        """The probability of each alternative, summing to 1; None until they are known."""
        if not self.started or self.error is not None:
            return None
        logs = {
            text: sum(self._log_probabilities[ids[: n + 1]] for n in range(len(ids)))
            for text, ids in self._alternatives.items()
        }
        most = max(logs.values())
        total = sum(math.exp(log - most) for log in logs.values())
        return {text: math.exp(log - most) / total for text, log in logs.items()}


def _chunk(seq: int, path: _Ids) -> Chunk:
    return Chunk(seq, ids=np.array(path, np.int64), num_logits=len(path))


def _groups(paths: Sequence[_Ids], spare: int, most: int):
    """Paths that fit into one forward each: at most `spare` paths, with at most `most` ids."""
    group: list[_Ids] = []
    for path in paths:
        if len(group) == spare or len(path) + sum(map(len, group)) > most:
            yield group
            group = []
        group.append(path)
    yield group
