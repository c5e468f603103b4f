"""How long a server is waited for."""

from __future__ import annotations

import asyncio

from ros2_nanochat.remote.failures import Unavailable

_LOOK_SECONDS = 0.2  # between two looks at the connection


class Watch:
    """Ends the current task's wait for a server that gives no sign of work for too long.

    Args:
        first: Seconds until the first sign.
        silence: Seconds between two signs.
        address: The server's address, for the message.
    """

    def __init__(self, first: float, silence: float, address: str):
        self._first, self._silence, self._address = first, silence, address
        self._begun = self._is_short = False
        self._expired = False
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.BaseTransport | None = None
        """The connection, once there is an answer."""
        self._was_closing = self._is_broken = False

    @property
    def limit(self) -> float:
        """Seconds that the server may be silent now."""
        return self._silence if self._begun else self._first

    def touch(self) -> None:
        """Note a sign of work. Bytes are none: some servers send comments while they are connected."""
        self._last = self._loop.time()

    def begin(self) -> None:
        """Note that the first token came: from now on the limit is `silence`."""
        if not self._begun:
            self._begun = True
            self._arm()

    def shorten(self, seconds: float) -> None:
        """Allow at most this many seconds of silence from now on. Only the first call has an effect."""
        if not self._is_short:
            self._is_short = self._begun = True
            self._silence = min(self._silence, seconds)
            self.touch()
            self._arm()

    def __enter__(self) -> Watch:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task and hasattr(self._task, 'cancelling') else 0
        self.touch()
        self._arm()
        return self

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(
            min(self._last + self.limit, self._loop.time() + _LOOK_SECONDS), self._check
        )

    def _check(self) -> None:
        # aiohttp closes the connection when an answer is malformed, and does not tell who reads it.
        is_closing = self.transport is not None and self.transport.is_closing()
        self._is_broken, self._was_closing = is_closing and self._was_closing, is_closing
        if not self._is_broken and self._loop.time() < self._last + self.limit - 0.001:
            self._arm()
        elif self._task is not None:
            self._expired = True
            self._task.cancel()

    def __exit__(self, kind, error, trace) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._expired and isinstance(error, asyncio.CancelledError):
            uncancel = getattr(self._task, 'uncancel', None)  # from Python 3.11 on
            if uncancel is not None and uncancel() > self._cancelling:
                return  # somebody else cancelled it too
            if self._is_broken:
                raise Unavailable(f'{self._address} broke off: its answer is no HTTP') from None
            what = 'was silent' if self._begun else 'did not answer'
            raise Unavailable(f'{self._address} {what} for {self.limit:g} s') from None
