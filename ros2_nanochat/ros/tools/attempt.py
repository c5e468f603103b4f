"""One request to the other side of a tool: held back until that side is there, and watched until it answers.

Used only on the thread of its call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_PATIENCE = 2.0  # seconds for the other side to appear: discovery takes a while
_GONE = 1.0  # seconds without the other side, after which its answer is not awaited any more


class Attempt:
    """One request. A request that is sent before the other side is known would be lost.

    Args:
        send: Sends the request, and returns what belongs to it.
        is_there: Whether the other side is there.
        what: What it is, for messages.

    Attributes:
        sent: What `send` returned; None before.
    """

    def __init__(self, send: Callable[[], Any], is_there: Callable[[], bool], what: str):
        self._send, self._is_there, self._what = send, is_there, what
        self._until = time.monotonic() + _PATIENCE
        self._missing: float | None = None
        self.sent: Any = None
        self.lost()

    def lost(self) -> str:
        """Send the request if that is possible now. Return why no answer will come, '' if it may."""
        now = time.monotonic()
        if self._is_there():
            self._missing = None
            if self.sent is None:
                self.sent = self._send()
            return ''
        if self.sent is None:
            return f'{self._what} is not there' if now >= self._until else ''
        self._missing = now if self._missing is None else self._missing
        return f'{self._what} has gone before it answered' if now - self._missing >= _GONE else ''
