"""How other threads reach the engine's thread: messages in order, until the inbox is closed."""

from __future__ import annotations

import queue
import threading
from typing import Generic, TypeVar

Message = TypeVar('Message')


class Inbox(Generic[Message]):
    """A queue that accepts nothing once it is closed. Thread-safe."""

    def __init__(self):
        self._queue: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing is put in after it is closed
        self.closed = False

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, message: Message) -> bool:
        """Add a message; False if the inbox is closed."""
        with self._lock:
            if not self.closed:
                self._queue.put(message)
            return not self.closed

    def wake(self) -> None:
        """Make `take` return. Takes no lock, so the garbage collector may call it."""
        self._queue.put(None)

    def take(self) -> Message | None:
        """Wait for the next message; None after a `wake`."""
        return self._queue.get()

    def close(self) -> bool:
        """Accept no more messages; False if it was closed before. Wakes no one."""
        with self._lock:
            before, self.closed = self.closed, True
        return not before
