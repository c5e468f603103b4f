"""Cuts a batch into calls that fit the sizes of a library's buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ros2_nanochat.backends.base import Chunk


@dataclass
class ChunkSlice:
    """Entries [start, stop) of a chunk that run together with others.

    Attributes:
        index: Index of the chunk.
        start: First entry.
        stop: End of the entries.
        rows: Number of logits needed, of their last positions.
    """

    index: int
    start: int
    stop: int
    rows: int


def split(
    chunks: Sequence[Chunk], most_sequences: int, most_tokens: int, most_rows: int
) -> Iterator[list[ChunkSlice]]:
    """Cut chunks into calls of limited size. Rows of logits come in the order of the chunks.

    Args:
        chunks: The chunks.
        most_sequences: Maximum number of sequences in a call.
        most_tokens: Maximum number of tokens in a call.
        most_rows: Maximum number of rows of logits in a call.

    Yields:
        The slices of each call, in order.
    """
    slices: list[ChunkSlice] = []
    tokens = rows = 0
    for index, chunk in enumerate(chunks):
        at, n = 0, len(chunk)
        quiet = n - chunk.num_logits  # entries before the first row that is needed
        while at < n:
            take = min(n - at, most_tokens - tokens, max(0, quiet - at) + most_rows - rows)
            if take <= 0 or len(slices) == most_sequences:
                yield slices
                slices, tokens, rows = [], 0, 0
                continue
            wanted = max(0, at + take - max(at, quiet))
            slices.append(ChunkSlice(index, at, at + take, wanted))
            at, tokens, rows = at + take, tokens + take, rows + wanted
    if slices:
        yield slices
