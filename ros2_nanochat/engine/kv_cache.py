"""`KVCache`: the caller's handle for what a model remembers of one conversation."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass

import numpy as np

from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.engine.sequence import Sequence
from ros2_nanochat.prompt import Prompt, concatenate, head, tail


@dataclass(frozen=True)
class LastReply:
    """The last reply in a cache.

    Attributes:
        text: The text of the answer.
        reasoning: The reasoning before it.
        tokens: The ids of both, without the end token.
        num_reasoning: How many of the ids belong to the reasoning and its marks.
        calls: The calls of tools at its end.
    """

    text: str
    reasoning: str
    tokens: tuple[int, ...]
    num_reasoning: int = 0
    calls: tuple[WrittenCall, ...] = ()


class KVCache:
    """What a model remembers of one conversation, to be passed from one `generate` to the next.

    It is a list of entries (ids, and negative numbers for rows of images). The engine owns the keys and
    values behind them. It may evict them while the conversation is idle, and recompute them when it resumes:
    that costs time, but no content.
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
        """Number of entries that it holds."""
        return len(self)

    @property
    def content(self) -> Prompt:
        """The entries with their embeddings, as a prompt at position 0."""
        return self._content

    @property
    def entries(self) -> np.ndarray:
        """[n] int64: an id if not negative, else a row of an image."""
        return self._content.entries

    def pop(self, count: int) -> int:
        """Forget the last `count` entries.

        Returns:
            The number of entries left.

        Raises:
            ValueError: There are fewer entries, or a reply is being written.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f'pop({count}) is not possible: the KV cache holds {len(self)} entries')
        return self.remove(len(self) - count, len(self))

    def remove(self, start: int, stop: int) -> int:
        """Forget the entries from `start` up to `stop`. What follows moves up and is recomputed on use.

        Returns:
            The number of entries left.

        Raises:
            ValueError: There are no such entries, or a reply is being written.
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
        """Free the memory of the keys and values. The entries stay, and are recomputed on use.

        Raises:
            ValueError: A reply is being written.
        """
        self.check_idle()
        self._abandon()
        self.sequence = Sequence()
        self._abandon = weakref.finalize(self, _abandon, self.sequence)
        self._abandon.atexit = False

    def bind(self, engine) -> None:
        """Make sure that keys and values of another engine are not used by this one."""
        if self._engine is None or self._engine() is not engine:
            if self._engine is not None:
                self.free()
            self._engine = weakref.ref(engine)

    def check_idle(self) -> None:
        """Check that no reply is being written into this cache.

        Raises:
            ValueError: A reply is being written.
        """
        writer = self._writer() if self._writer else None
        if writer is not None and not writer.eos:
            raise ValueError(
                'the reply that fills this KV cache has not ended: iterate it to its end, wait() for it or'
                ' stop() it first'
            )

    def claim(self, goal: Prompt, writer) -> tuple[Prompt, LastReply | None]:
        """Let one stream write what follows `goal`. For the engine's streams.

        Args:
            goal: Everything before the reply.
            writer: The stream.

        Returns:
            What the cache held before.

        Raises:
            ValueError: Another stream is writing.
        """
        with self._lock:
            self.check_idle()
            before = self._content, self.reply
            self.settle(goal, writer=writer)
            return before

    def settle(self, content: Prompt, reply: LastReply | None = None, writer=None) -> None:
        """Set what the conversation holds. For the engine's streams.

        Args:
            content: The entries.
            reply: The last reply in it, or None.
            writer: The stream that writes to it, or None.
        """
        with self._lock:
            self._content, self.reply = content, reply
            self._writer = weakref.ref(writer) if writer is not None else None


def _abandon(sequence: Sequence) -> None:
    sequence.abandoned = (
        True  # evicted first when the engine needs room; until then others can use it as a prefix
    )
