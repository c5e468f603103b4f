"""What the scheduler gives the engine: the next forward, and the part of each request in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ros2_nanochat.backends.base import Chunk
from ros2_nanochat.engine.request import Request


class Plan(NamedTuple):
    """What the engine does next.

    Attributes:
        batch: The work of one forward; empty if nothing can run.
        chunks: Its chunks.
        refused: Requests that end, and why.
        plain: Whether all its work is plain.
    """

    batch: list[Work]
    chunks: list[Chunk]
    refused: list[tuple[Request, str]]
    plain: bool = False

    def renew(self) -> bool:
        """Put the new entry of each request into its chunk. Return False unless each has exactly one.

        Most steps are like the one before, and the model waits while a plan is made.
        """
        for work in self.batch:
            progress, held = work.request.progress, work.request.sequence.held.length
            if progress.entries.length != held + 1 or progress.solo:
                return False
            work.chunk.ids = progress.entries.view(held)
        return True


@dataclass(eq=False, slots=True)
class Work:
    """The part of one request in a forward.

    Attributes:
        request: The request.
        chunk: Its entries.
        num_entries: Their number.
        decoding: Whether it continues the reply (no prefill).
        draft: The guessed ids at the chunk's end.
        plain: Whether it is just the newest id of a reply that is `Progress.only_text`.
    """

    request: Request
    chunk: Chunk
    num_entries: int
    decoding: bool
    draft: list[int]
    plain: bool = False
