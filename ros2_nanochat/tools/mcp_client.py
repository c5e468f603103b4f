"""`McpClient`: one MCP server, reached through the official SDK on a thread of its own.

A server that goes away is started or reached again. Knows nothing of robots and limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from ros2_nanochat.errors import one_line, require

_CONNECT_SECONDS = 30.0
_PING_SECONDS = 10.0  # between two looks at whether the server is still there
_RETRY_SECONDS = (1.0, 30.0)  # the first and the longest pause between two attempts
_MOST_TOOLS = 200


class McpClient:
    """A connection to one MCP server.

    Args:
        command: The program of the server and its arguments; () if it is reached by `url`.
        url: Its address.
        env: Environment variables of the program, in addition to those that the SDK passes on.

    Attributes:
        failure: Why there is no connection, '' if there is one or none was tried yet.

    Raises:
        MissingDependency: The SDK is not installed.
    """

    def __init__(self, command: Sequence[str] = (), url: str = '', env: Mapping[str, str] | None = None):
        require('mcp', 'mcp')
        self.failure = ''
        self._command, self._url, self._env = list(command), url, dict(env or {})
        self._session: Any = None
        self._tools: list[dict[str, Any]] = []
        self._listed = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._broken = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name='mcp', daemon=True)
        self._thread.start()

    def wait(self, timeout: float) -> bool:
        """Wait for the list of tools. Return whether it has come."""
        return self._listed.wait(timeout)

    @property
    def connected(self) -> bool:
        """Whether the server can be called now."""
        return self._session is not None

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tools that the server listed last, with `name`, `description` and `inputSchema`."""
        return list(self._tools)

    def call(self, name: str, arguments: Mapping[str, Any]) -> Future:
        """Call a tool. Cancelling the future stops waiting for it.

        Args:
            name: Name of the tool.
            arguments: Its arguments.

        Returns:
            A future of (whether it succeeded, text). Its callbacks run on the thread of the client.
        """
        return asyncio.run_coroutine_threadsafe(self._call(name, dict(arguments)), self._loop)

    def close(self, timeout: float = 2.0) -> None:
        """End the connection and the server's program."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(timeout)

    # --- the client's thread ---

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        pause, longest = _RETRY_SECONDS
        while not self._closing.is_set():
            try:
                await self._connect()
                pause = _RETRY_SECONDS[0]
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # the SDK raises groups of exceptions
                self.failure = one_line(_innermost(error))
            finally:
                self._session = None
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
            pause = min(2 * pause, longest)

    async def _connect(self) -> None:
        """Connect, and return when the connection is to end or is broken."""
        from mcp import ClientSession

        self._broken.clear()
        async with contextlib.AsyncExitStack() as stack:
            streams = await stack.enter_async_context(self._streams())
            session = await stack.enter_async_context(ClientSession(*streams[:2]))
            await asyncio.wait_for(session.initialize(), _CONNECT_SECONDS)
            self._tools = await asyncio.wait_for(self._list(session), _CONNECT_SECONDS)
            self._session, self.failure = session, ''
            self._listed.set()
            await self._stay(session)

    def _streams(self) -> Any:
        if self._url:
            from mcp.client import streamable_http

            # Its older name was streamablehttp_client.
            connect = getattr(streamable_http, 'streamable_http_client', None)
            return (connect or streamable_http.streamablehttp_client)(self._url)
        from mcp import StdioServerParameters
        from mcp.client.stdio import get_default_environment, stdio_client

        environment = {**get_default_environment(), **self._env}
        return stdio_client(
            StdioServerParameters(command=self._command[0], args=self._command[1:], env=environment)
        )

    @staticmethod
    async def _list(session: Any) -> list[dict[str, Any]]:
        found = (await session.list_tools()).tools[:_MOST_TOOLS]
        return [tool.model_dump(by_alias=True, mode='json') for tool in found]

    async def _stay(self, session: Any) -> None:
        while not self._closing.is_set() and not self._broken.is_set():
            waiting = [asyncio.ensure_future(event.wait()) for event in (self._closing, self._broken)]
            await asyncio.wait(waiting, timeout=_PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            if not self._closing.is_set() and not self._broken.is_set():
                await asyncio.wait_for(session.send_ping(), _PING_SECONDS)

    async def _call(self, name: str, arguments: dict[str, Any]) -> tuple[bool, str]:
        session = self._session
        if session is None:
            return False, f'the MCP server cannot be reached: {self.failure or "it is not connected yet"}'
        try:
            result = (await session.call_tool(name, arguments)).model_dump(by_alias=True, mode='json')
        except Exception as error:
            self._broken.set()  # if it is only this call, reconnecting does no harm
            return False, f'the MCP server failed: {one_line(error)}'
        blocks = [_text(block) for block in result.get('content') or ()]
        return not result.get('isError'), '\n'.join(blocks) or 'done'


def _text(block: dict[str, Any]) -> str:
    return block['text'] if block.get('type') == 'text' else f'({block.get("type", "something")})'


def _innermost(error: BaseException) -> BaseException:
    while getattr(error, 'exceptions', None):
        error = error.exceptions[0]  # type: ignore[attr-defined]
    return error
