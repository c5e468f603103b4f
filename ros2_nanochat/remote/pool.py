"""Chooses the server of each reply: the one that holds the conversation's KV if it works, else the least
busy. What no server can take now waits here, by priority.

Used on the loop's thread.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ros2_nanochat.engine.request import Request
from ros2_nanochat.engine.sequence import Sequence as Conversation
from ros2_nanochat.errors import BackendError
from ros2_nanochat.remote.failures import Overloaded, Unavailable
from ros2_nanochat.remote.server import Server

_log = logging.getLogger(__name__)
_CHECK_SECONDS = 0.25
_AFTER_A_BUG = 5.0
_RETRY_SECONDS = 0.3  # between two tries of a server when the model is opened
_GRACE_SECONDS = 5.0  # for the others, once one server works
_SHOWN_AFTER, _SHOWN_EVERY = 3.0, 5.0  # seconds until what is waited for is logged


@dataclass(eq=False)
class _Waiting:
    request: Request
    avoid: frozenset[Server]
    chosen: asyncio.Future[Server]


class Pool:
    """The servers of one model.

    Args:
        servers: The servers.
    """

    def __init__(self, servers: Sequence[Server]):
        self.servers = list(servers)
        self._waiting: list[_Waiting] = []
        self._homes: weakref.WeakKeyDictionary[Conversation, Server] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._waiting)

    async def acquire(
        self, request: Request, avoid: frozenset[Server] = frozenset(), ask_again: bool = True
    ) -> Server:
        """Wait for a server and take one of its places; give it back with `release`.

        Args:
            request: The reply.
            avoid: Servers to take only if no other works.
            ask_again: If no server works, ask them all first if they do now.

        Raises:
            Unavailable: No server works.
        """
        if ask_again and not any(server.works for server in self.servers):
            await self.check_all()
        self._raise_if_none_works()
        waiting = _Waiting(request, avoid, asyncio.get_running_loop().create_future())
        bisect.insort(self._waiting, waiting, key=lambda each: each.request.order)
        self.dispatch()
        try:
            return await waiting.chosen
        except asyncio.CancelledError:
            if waiting.chosen.done() and not waiting.chosen.cancelled() and not waiting.chosen.exception():
                self.release(waiting.chosen.result())
            raise
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def release(self, server: Server) -> None:
        """Give back a place."""
        server.running -= 1
        self.dispatch()

    def dispatch(self) -> None:
        """Give free servers to those that wait."""
        for waiting in list(self._waiting):
            server = self._choose(waiting)
            if server is not None and not waiting.chosen.done():
                self._waiting.remove(waiting)
                server.running += 1
                self._homes[waiting.request.sequence] = server
                waiting.chosen.set_result(server)

    def _choose(self, waiting: _Waiting) -> Server | None:
        working = [server for server in self.servers if server.works]
        allowed = [server for server in working if server not in waiting.avoid] or working
        free = [server for server in allowed if server.is_free()]
        home = self._homes.get(waiting.request.sequence)
        if home in free:
            return home
        homes = list(self._homes.values())
        return min(free, key=lambda server: (server.running, homes.count(server)), default=None)

    def block(self, server: Server, seconds: float) -> None:
        """Give a server no replies for a while."""
        server.block(seconds)
        asyncio.get_running_loop().call_later(seconds + 0.001, self.dispatch)

    def note_failure(self, server: Server, error: Unavailable, decisive: bool) -> None:
        """Note that a server failed. If none is left, those that wait get the error."""
        worked = server.works
        server.note_failure(error, decisive)
        if worked and not server.works:
            _log.warning('%s is not used until it works again: %s', server.url, server.reason)
        if not any(each.works for each in self.servers):
            for waiting in list(self._waiting):
                if not waiting.chosen.done():
                    waiting.chosen.set_exception(self._none_works())

    def _none_works(self) -> Unavailable:
        if len(self.servers) == 1:
            return Unavailable(self.servers[0].reason)
        reasons = '; '.join(server.reason for server in self.servers)
        return Unavailable(f'no server works: {reasons}')

    def _raise_if_none_works(self) -> None:
        if not any(server.works for server in self.servers):
            raise self._none_works()

    async def begin(self, connect_seconds: float, answer_seconds: float) -> None:
        """Ask the servers for the first time, again and again until one works or time does not help.

        Args:
            connect_seconds: For how long to try one that cannot be reached.
            answer_seconds: For how long to try one that says that it is not ready.

        Raises:
            ValueError: An option is not valid.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        limits = connect_seconds, answer_seconds
        tries = {asyncio.ensure_future(self._persist(server, began, limits)) for server in self.servers}
        until, shown = math.inf, began + _SHOWN_AFTER
        try:
            while tries and loop.time() < until:
                pause = min(shown, until) - loop.time()
                done, tries = await asyncio.wait(
                    tries, timeout=max(0.0, pause), return_when=asyncio.FIRST_COMPLETED
                )
                for each in done:
                    each.result()
                if until == math.inf and any(server.works for server in self.servers):
                    until = loop.time() + _GRACE_SECONDS
                if tries and loop.time() >= shown:
                    shown = loop.time() + _SHOWN_EVERY
                    self._show_waiting()
        finally:
            for each in tries:
                each.cancel()
            await asyncio.gather(*tries, return_exceptions=True)

    async def _persist(self, server: Server, began: float, limits: tuple[float, float]) -> None:
        loop = asyncio.get_running_loop()
        while not await server.check() and not any(each.works for each in self.servers):
            trouble, limit = server.trouble, limits[0]
            if trouble is not None and not isinstance(trouble, BackendError):  # an option is not valid
                raise trouble
            if not isinstance(trouble, (Unavailable, Overloaded)):
                return
            if isinstance(trouble, Overloaded) or trouble.status == 503:
                limit = max(limits)
            if loop.time() + _RETRY_SECONDS > began + limit:
                return
            await asyncio.sleep(_RETRY_SECONDS)

    def _show_waiting(self) -> None:
        for server in self.servers:
            if not server.works:
                _log.warning('waiting for %s: %s', server.url, server.reason)

    async def check_all(self, due: Callable[[Server], bool] = lambda server: True) -> None:
        """Ask the servers that do not work if they do now."""
        down = {server: server.reason for server in self.servers if not server.works and due(server)}
        for server, works in zip(down, await asyncio.gather(*[server.check() for server in down])):
            if not works and not isinstance(server.trouble, BackendError) and server.reason != down[server]:
                # An option is not valid for a server that is back, or a bug of ours: told once.
                _log.error('%s cannot be asked', server.url, exc_info=server.trouble)
            if works:
                _log.info('%s works: %s', server.url, server.can.described() if server.can else '')
                self.dispatch()

    async def watch(self) -> None:
        """Ask servers that do not work from time to time, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            try:
                await self.check_all(lambda server: server.check_is_due)
            except Exception:  # a bug of ours
                _log.exception('servers that may be back cannot be asked')
                await asyncio.sleep(_AFTER_A_BUG)
