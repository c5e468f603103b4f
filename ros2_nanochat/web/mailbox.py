"""Hands what ROS threads learn to the server's event loop, in batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

_EVERY = 0.04  # seconds between batches: pieces of replies arrive at browsers 25 times a second at most


class Mailbox:
    """Calls `deliver` on the event loop with what was put in since the last call.

    Args:
        loop: The event loop.
        deliver: Called with a list.
        every: Seconds between two calls at least.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deliver: Callable[[list[Any]], None], every: float = _EVERY
    ):
        self._loop, self._deliver, self._every = loop, deliver, every
        self._items: list[Any] = []
        self._lock = threading.Lock()

    def put(self, item: Any) -> None:
        """Add an item. Can be called from any thread."""
        with self._lock:
            first = not self._items
            self._items.append(item)
        if first:
            try:
                self._loop.call_soon_threadsafe(self._loop.call_later, self._every, self._open)
            except RuntimeError:
                pass  # the loop has ended, and with it every page

    def _open(self) -> None:
        with self._lock:
            items, self._items = self._items, []
        self._deliver(items)
