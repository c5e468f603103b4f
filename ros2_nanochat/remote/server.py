"""One server of a fleet: its connection, what it can do, whether it works, and how busy it is.

Used on the loop's thread; `status` may be read from any.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from ros2_nanochat.errors import one_line
from ros2_nanochat.remote.capabilities import Capabilities
from ros2_nanochat.remote.connection import Connection
from ros2_nanochat.remote.failures import ServerError, Unavailable
from ros2_nanochat.remote.kept_pictures import KeptPictures
from ros2_nanochat.remote.questions import Questions
from ros2_nanochat.remote.reading import models_in

_FAILURES = 3  # in a row, after which a server is given no more replies until it answers a check
_RAISE_SECONDS = 5.0  # after which an overloaded server is given one more reply at once
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0  # seconds between two checks of a server that does not work


class Server:
    """One server.

    Args:
        connection: The connection to it.
        prepare: Finds out what it can do, and whether it fits the others.

    Attributes:
        can: What it can do; None until it was asked.
        running: Replies that it works on.
        works: Whether it is given replies: the circuit is closed.
        reason: Why not.
        trouble: The error of the last check that failed.
        pictures: Those that it holds.
    """

    def __init__(self, connection: Connection, prepare: Callable[[Server], Awaitable[Capabilities]]):
        self.connection = connection
        self.can: Capabilities | None = None
        self.running = self.served = self.failed = 0
        self.works = False
        self.reason = 'it has not answered yet'
        self.trouble: Exception | None = None
        self.pictures = KeptPictures()
        self._prepare = prepare
        self._failures = 0
        self._blocked_until = 0.0
        self._most: int | None = None  # replies at once, once it has refused some
        self._most_since = 0.0
        self._pause = _FIRST_PAUSE
        self._next_check = 0.0

    @property
    def url(self) -> str:
        """Its address."""
        return self.connection.url

    def is_free(self) -> bool:
        """Whether it can take a reply now."""
        slots = self.can.slots if self.can is not None else None
        if not self.works or self.blocked_for() > 0 or (slots is not None and self.running >= slots):
            return False
        if self._most is not None and time.monotonic() > self._most_since + _RAISE_SECONDS:
            self._most, self._most_since = self._most + 1, time.monotonic()
        return self._most is None or self.running < self._most

    def blocked_for(self) -> float:
        """Return the seconds for which it asked to get no replies."""
        return self._blocked_until - time.monotonic()

    def block(self, seconds: float) -> None:
        """Give it no replies for a while, and then fewer at once: it refused the latest of those that run."""
        self._most, self._most_since = max(1, self.running - 1), time.monotonic()
        self._blocked_until = max(self._blocked_until, time.monotonic() + seconds)

    def note_success(self) -> None:
        """Note that it completed a reply."""
        self.served += 1
        self._failures = 0

    def note_failure(self, error: Unavailable, decisive: bool) -> None:
        """Note that it failed.

        Args:
            error: How.
            decisive: One such failure is enough to stop using it.
        """
        self.failed += 1
        self._failures += 1
        if decisive or self._failures >= _FAILURES:
            self.stop_using(one_line(error))

    def stop_using(self, reason: str) -> None:
        """Open the circuit."""
        self.works, self.reason = False, reason
        self._pause = _FIRST_PAUSE
        self._next_check = time.monotonic() + self._pause

    @property
    def check_is_due(self) -> bool:
        """Whether it is time to ask again if it works."""
        return not self.works and time.monotonic() >= self._next_check

    async def check(self) -> bool:
        """Ask if it works; the circuit closes if it does. Returns whether it does; if not, `trouble` has the
        error. It raises none: a server that cannot be asked must not keep others from being asked.
        """
        try:
            if self.can is None:
                self.can = await self._prepare(self)
            else:
                listing = await self._listing(self.can)
                names = [each['id'] for each in models_in(listing)]
                if listing is not None and self.can.listed and self.can.model not in names:
                    raise Unavailable(f'{self.url} no longer has the model {self.can.model}')
        except Exception as error:
            self.reason, self.trouble = one_line(error), error
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._next_check = time.monotonic() + self._pause
            return False
        self.works, self.reason, self._failures, self._pause = True, '', 0, _FIRST_PAUSE
        return True

    async def _listing(self, can: Capabilities) -> Any:
        """The list of models; None if the server works without giving one."""
        try:
            return await self.connection.get(f'{self.url}/models')
        except ServerError as error:
            status = getattr(error, 'status', None)
            if status in (404, 405, 500, 501) and not can.listed:
                return None  # it answers, as it did when it was opened
            if status not in (500, 502, 504):
                raise
        # A router may ask a worker that is gone for the list, and have others that reply.
        await Questions(self.connection, can.model).after_message({})
        return None

    @property
    def status(self) -> str:
        """Its state in one line."""
        counts = f'{self.running} running, {self.served} served, {self.failed} failed'
        if not self.works:
            return f'down: {self.reason} ({counts})'
        wait = self.blocked_for()
        return f'overloaded for {wait:.1f} s more ({counts})' if wait > 0 else f'up ({counts})'
