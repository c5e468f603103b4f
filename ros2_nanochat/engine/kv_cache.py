"""`KVCache`: what a model remembers of one conversation, as the caller holds it."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

import numpy as np

from ros2_nanochat.engine.sequence import Sequence
from ros2_nanochat.prompt import Prompt, concatenate, head, tail


@dataclass(frozen=True)
class LastReply:
    """The last reply that was put into a cache: the text of the answer, the reasoning before it, and the ids
    of both, end token left out.
    num_reasoning: how many of the ids belong to the reasoning and its marks.
    """

    text: str
    reasoning: str
    tokens: tuple[int, ...]
    num_reasoning: int = 0


class KVCache:
    """What a model remembers of one conversation, to be passed on from one `generate` to the next.

    It is a list of entries (ids, and negative numbers for rows of images). The keys and values behind them
    belong to the engine, which may give them up while the conversation is idle and compute them again when it
    goes on: that costs time, never content.
    """

    def __init__(self):
        self.sequence = Sequence()
        self.reply: LastReply | None = None
        self._content = Prompt(np.empty(0, np.int64))
        self._writer: weakref.ref | None = None
        self._lock = threading.RLock()
        self._engine: weakref.ref | None = None
        self._abandon = weakref.finalize(self, _abandon, self.sequence)
        self._abandon.atexit = False

    def __len__(self) -> int:
        return len(self._content)

    def __repr__(self) -> str:
        return f'KVCache({len(self)} entries)'

    @property
    def num_tokens(self) -> int:
        """How many entries it holds."""
        return len(self)

    @property
    def content(self) -> Prompt:
        """The entries with the embeddings behind them, as a prompt at position 0."""
        return self._content

    @property
    def entries(self) -> np.ndarray:
        """[n] int64: ids where not negative, rows of images else."""
        return self._content.entries

    def pop(self, count: int) -> int:
        """Forget the last `count` entries; return how many are left."""
        if not 0 <= count <= len(self):
            raise ValueError(f'pop({count}) is not possible: the KV cache holds {len(self)} entries')
        return self.remove(len(self) - count, len(self))

    def remove(self, start: int, stop: int) -> int:
        """Forget the entries from `start` up to `stop`; what follows moves up and is computed again on use.
        Return how many are left.
        """
        if not 0 <= start <= stop <= len(self):
            raise ValueError(
                f'remove({start}, {stop}) is not possible: the KV cache holds {len(self)} entries'
            )
        self.check_idle()
        self._content = concatenate(head(self._content, start), tail(self._content, stop))
        self.reply = None
        return len(self)

    def free(self) -> None:
        """Let the engine have the room that the keys and values take; the entries stay, and are computed
        again on use.
        """
        self.check_idle()
        self._abandon()
        self.sequence = Sequence()
        self._abandon = weakref.finalize(self, _abandon, self.sequence)
        self._abandon.atexit = False

    def bind(self, engine) -> None:
        """Make sure that keys and values which another engine has computed are not taken for this one's."""
        if self._engine is None or self._engine() is not engine:
            if self._engine is not None:
                self.free()
            self._engine = weakref.ref(engine)

    def check_idle(self) -> None:
        """Raise a ValueError while a reply is being written into this cache."""
        writer = self._writer() if self._writer else None
        if writer is not None and not writer.eos:
            raise ValueError(
                'the reply that fills this KV cache has not ended: iterate it to its end, wait() for it or'
                ' stop() it first'
            )

    def claim(self, goal: Prompt, writer) -> tuple[Prompt, LastReply | None]:
        """Let one stream write what follows `goal`, for the engine's streams; return what was held.
        ValueError where another one writes.
        """
        with self._lock:
            self.check_idle()
            before = self._content, self.reply
            self.settle(goal, writer=writer)
            return before

    def settle(self, content: Prompt, reply: LastReply | None = None, writer=None) -> None:
        """Set what the conversation holds, and who writes to it (for the engine's streams)."""
        with self._lock:
            self._content, self.reply = content, reply
            self._writer = weakref.ref(writer) if writer is not None else None


def _abandon(sequence: Sequence) -> None:
    sequence.abandoned = (
        True  # the engine takes it first when it needs room; until then it serves as a prefix for others
    )
