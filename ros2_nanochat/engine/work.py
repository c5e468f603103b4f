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
        refused: Requests that end, and why.
    """

    batch: list[Work]
    refused: list[tuple[Request, str]]


@dataclass(eq=False, slots=True)
class Work:
    """The part of one request in a forward.

    Attributes:
        request: The request.
        chunk: Its entries.
        num_entries: Their number.
        decoding: Whether it continues the reply (no prefill).
        draft: The guessed ids at the chunk's end.
    """

    request: Request
    chunk: Chunk
    num_entries: int
    decoding: bool
    draft: list[int]
