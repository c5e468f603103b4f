"""Cuts what is to run into calls that keep within the sizes a library's buffers were planned for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ros2_nanochat.backends.base import Chunk


@dataclass
class ChunkSlice:
    """Entries [start, stop) of the chunk at `index` that run together with others; rows: logits wanted, of
    their last positions.
    """

    index: int
    start: int
    stop: int
    rows: int


def split(
    chunks: Sequence[Chunk], most_sequences: int, most_tokens: int, most_rows: int
) -> Iterator[list[ChunkSlice]]:
    """Calls, in order, of at most so many sequences, tokens and rows of logits each. Rows come in the order
    of the chunks.
    """
    slices: list[ChunkSlice] = []
    tokens = rows = 0
    for index, chunk in enumerate(chunks):
        at, n = 0, len(chunk)
        quiet = n - chunk.num_logits  # entries before the first row that is wanted
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
