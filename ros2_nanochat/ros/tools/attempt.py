"""One request to the other side of a tool: held back until that side is there, and watched until it answers.

Used only on the thread of its call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_PATIENCE = 4.0  # seconds for the other side to appear: Fast DDS announces a participant every 3 seconds
_MOST_WAITING = 0.9  # share of the time-out: before it is up, the call is told that nobody is there
_GONE = 1.0  # seconds without the other side, after which its answer is not awaited any more
_SETTLED = 0.3  # seconds in which two sides of which one sees the other find each other


class Sighting:
    """Since when the other side is there. What is sent in its first moments can be lost: it may be seen
    before it sees us.

    Args:
        is_there: Whether the other side is there.
    """

    def __init__(self, is_there: Callable[[], bool]):
        self._is_there = is_there
        self._since: float | None = None

    def look(self) -> bool:
        """Return whether the other side is there. Call this now and then."""
        if not self._is_there():
            self._since = None
            return False
        self._since = self._since or time.monotonic()
        return True

    def is_settled(self) -> bool:
        """Whether the other side knows us, too, as far as time tells."""
        return self._since is not None and time.monotonic() - self._since >= _SETTLED


class Attempt:
    """One request. A request that is sent before the other side is known would be lost.

    Args:
        send: Sends the request, and returns what belongs to it.
        is_there: Whether the other side is there.
        what: What it is, for messages.
        timeout: Seconds that all of it may take.
        knows_us: Whether the other side has found this one, too.

    Attributes:
        sent: What `send` returned; None before.
    """

    def __init__(
        self,
        send: Callable[[], Any],
        is_there: Callable[[], bool],
        what: str,
        timeout: float,
        knows_us: Callable[[], bool] = lambda: True,
    ):
        self._send, self._is_there, self._what, self._knows_us = send, is_there, what, knows_us
        self._until = time.monotonic() + min(_PATIENCE, _MOST_WAITING * timeout)
        self._missing: float | None = None
        self.sent: Any = None
        self.lost()

    def lost(self) -> str:
        """Send the request if that is possible now. Return why no answer will come, '' if it may."""
        now = time.monotonic()
        if self._is_there():
            self._missing = None
            if self.sent is None and self._knows_us():
                self.sent = self._send()
            return ''
        if self.sent is None:
            return f'{self._what} is not there' if now >= self._until else ''
        self._missing = now if self._missing is None else self._missing
        return f'{self._what} has gone before it answered' if now - self._missing >= _GONE else ''
