"""How other threads reach the engine's: messages in order, until it closes."""

from __future__ import annotations

import queue
import threading
from typing import Generic, TypeVar

Message = TypeVar('Message')


class Inbox(Generic[Message]):
    """A queue that takes nothing once it is closed. Any thread."""

    def __init__(self):
        self._queue: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing is put in once it was closed
        self.closed = False

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, message: Message) -> bool:
        """Hand in a message; False if the inbox is closed."""
        with self._lock:
            if not self.closed:
                self._queue.put(message)
            return not self.closed

    def wake(self) -> None:
        """Let `take` return. Takes no lock, so it may be called from within the garbage collector."""
        self._queue.put(None)

    def take(self) -> Message | None:
        """Wait for the next message; None after a `wake`."""
        return self._queue.get()

    def close(self) -> bool:
        """Take no more messages; False if it was closed before. Wakes nobody."""
        with self._lock:
            before, self.closed = self.closed, True
        return not before
