"""The input of a model, entry by entry: token ids and rows of embeddings in one list, which can be compared
with the contents of a KV cache.

Shared by `chat` (makes prompts) and `engine` (runs them); knows neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeAlias

import numpy as np

Ids: TypeAlias = 'Sequence[int] | np.ndarray'
"""Token ids, as a list or an array [n]."""

Rewrite: TypeAlias = 'Callable[[Any], tuple[Prompt, list[int | str]]]'
"""See `Prompt.rewrite`."""

_CHARACTERS_PER_TOKEN = 16  # above the average in any language


class Preceding(Enum):
    """What comes before a text that is tokenized.

    Some SentencePiece vocabularies add a space before the first word, depending on what comes before it.
    """

    START = 'start'
    """Nothing: the text begins the prompt."""
    SPECIAL_TOKEN = 'special token'
    """A special token or an image."""
    TEXT = 'text'
    """Other text, for example the model's own; no vocabulary adds a space in this case."""


@dataclass(frozen=True, eq=False)
class EmbeddingSpan:
    """Rows of embeddings that form one piece of a prompt, for example an image.

    Attributes:
        rows: [k, d] float32.
        digest: Identifies the content; equal spans are equal entries.
        positions: [k] or [axes, k], relative to the position where the span starts; None counts on by one.
        advance: Positions that the span takes (what follows it starts that much later); None means k.
        bidirectional: The rows attend to one another in both directions; the span is never cut.
        deepstack: [layers, k, d] float32: added to the rows after each of the model's first layers
            (arXiv:2406.04334); the span is never cut.
    """

    rows: np.ndarray
    digest: bytes
    positions: np.ndarray | None = None
    advance: int | None = None
    bidirectional: bool = False
    deepstack: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Memory of the embeddings, in bytes."""
        return self.rows.nbytes + (0 if self.deepstack is None else self.deepstack.nbytes)

    @property
    def whole(self) -> bool:
        """Whether the span must reach the backend as one chunk."""
        return self.bidirectional or self.positions is not None or self.deepstack is not None

    @property
    def entries(self) -> np.ndarray:
        """[k] int64, all negative: represent the rows in a list of ids."""
        base = int.from_bytes(hashlib.blake2b(self.digest, digest_size=8).digest(), 'big')
        offsets = np.arange(len(self.rows), dtype=np.uint64) + np.uint64(base >> 2)
        return -(offsets & np.uint64((1 << 62) - 1)).astype(np.int64) - 1


@dataclass(frozen=True, eq=False)
class Prompt:
    """Entries that follow the first `position` entries of a KV cache.

    As an array it looks like its embeddings, `[1, n, d]`, if `embed` is set, else like its ids, `[1, n]`.

    Attributes:
        entries: [n] int64: an id if not negative, else a row of a span.
        spans: `(start, span)` in order; start is an index into `entries`.
        position: How many entries of the cache stay; those after them are trimmed.
        embed: Turns ids into embeddings [n, d], if the model can.
        rewrite: Makes the prompt of the same conversation for another model, with the ids and strings that
            end a reply there.
    """

    entries: np.ndarray
    spans: tuple[tuple[int, EmbeddingSpan], ...] = ()
    position: int = 0
    embed: Callable[[Ids], np.ndarray] | None = field(default=None, repr=False)
    rewrite: Rewrite | None = field(default=None, repr=False)

    @classmethod
    def join(cls, parts: Iterable[Sequence[int] | EmbeddingSpan], embed: Callable | None = None) -> Prompt:
        """Make a prompt from lists of ids and spans of embeddings, in order.

        Args:
            parts: The lists and spans.
            embed: See the class.
        """
        entries, spans, length = [], [], 0
        for part in parts:
            if isinstance(part, EmbeddingSpan):
                spans.append((length, part))
                entries.append(part.entries)
            else:
                entries.append(np.asarray(part, dtype=np.int64).reshape(-1))
            length += len(part)
        return cls(np.concatenate(entries) if entries else np.empty(0, np.int64), tuple(spans), embed=embed)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def token_ids(self) -> np.ndarray:
        """[m] int64: only the ids, without rows of embeddings."""
        return self.entries[self.entries >= 0]

    @property
    def shape(self) -> tuple[int, ...]:
        """`(1, n, d)` if `embed` is set, else `(1, n)`."""
        if self.embed is None:
            return (1, len(self))
        return (1, len(self), np.asarray(self.embed([0])).shape[-1])

    @property
    def ndim(self) -> int:
        """Number of axes of `shape`."""
        return len(self.shape)

    def __array__(self, dtype=None, copy=None):
        if self.embed is None:
            array = self.entries[None]
        else:
            array = np.concatenate(
                [
                    part.rows if isinstance(part, EmbeddingSpan) else np.asarray(self.embed(part))
                    for part in self.parts()
                ]
                or [np.empty((0, self.shape[-1]), np.float32)]
            )[None]
        return array if dtype is None else array.astype(dtype)

    def parts(self) -> Iterable[np.ndarray | EmbeddingSpan]:
        """Return runs of ids and spans, in order."""
        end = 0
        for start, span in self.spans:
            if start > end:
                yield self.entries[end:start]
            yield span
            end = start + len(span)
        if end < len(self):
            yield self.entries[end:]

    def as_span(self, embed: Callable[[Ids], np.ndarray]) -> EmbeddingSpan:
        """Return the whole prompt as one span whose rows attend to one another in both directions.

        Args:
            embed: Turns ids into embeddings [n, d].
        """
        name = hashlib.blake2b(
            self.entries.tobytes() + b''.join(span.digest for _, span in self.spans), digest_size=16
        ).digest()
        return EmbeddingSpan(np.asarray(replace(self, embed=embed))[0], name, bidirectional=True)

    def after(self, position: int) -> Prompt:
        """Return what follows the first `position` entries of this prompt, which must start at 0.

        A span is never cut: if `position` is inside one, the result starts at that span.
        """
        for start, span in self.spans:
            if start < position < start + len(span):
                position = start
        spans = tuple((start - position, span) for start, span in self.spans if start >= position)
        return Prompt(self.entries[position:], spans, position, self.embed)


def surely_longer(tokenize: Callable[[str], Sequence[int]], text: str, limit: int) -> bool:
    """Return whether a text has more than `limit` tokens, without tokenizing much more of it than that.

    Args:
        tokenize: Turns a text into ids.
        text: The text.
        limit: Number of tokens.

    Returns:
        False if it is not certain; then tokenize the whole text.
    """
    count = _CHARACTERS_PER_TOKEN * limit
    while count < len(text):
        if len(tokenize(text[:count])) > 2 * limit:  # twice: the cut itself may add tokens
            return True
        count *= 4
    return False


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Return the number of leading entries that two int64 arrays share."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def head(prompt: Prompt, stop: int) -> Prompt:
    """Return the first `stop` entries. A span that `stop` would cut is left out."""
    for start, span in prompt.spans:
        if start < stop < start + len(span):
            stop = start
    return Prompt(prompt.entries[:stop], tuple(s for s in prompt.spans if s[0] < stop), 0, prompt.embed)


def tail(prompt: Prompt, start: int) -> Prompt:
    """Return the entries from `start` on. A span that `start` would cut is left out."""
    for at, span in prompt.spans:
        if at < start < at + len(span):
            start = at + len(span)
    return Prompt(
        prompt.entries[start:],
        tuple((at - start, span) for at, span in prompt.spans if at >= start),
        0,
        prompt.embed,
    )


def concatenate(a: Prompt, b: Prompt) -> Prompt:
    """Return both prompts in a row, at position 0."""
    spans = a.spans + tuple((start + len(a), span) for start, span in b.spans)
    return Prompt(np.concatenate([a.entries, b.entries]), spans, 0, a.embed or b.embed)
