"""Tools of MCP servers as tools of a robot, under the robot's limits."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ros2_nanochat.answer.grammars import check_schema
from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.tool_entries import ServerEntry
from ros2_nanochat.robot.tool_policy import ToolKind, ToolPolicy
from ros2_nanochat.robot.tool_record import Reports, RobotTool
from ros2_nanochat.tools import Tool

if TYPE_CHECKING:
    from ros2_nanochat.tools.mcp_client import McpClient

_LONGEST = 1000  # characters of a description


class McpServers:
    """The MCP servers of a node. Robots that name the same server share it."""

    def __init__(self) -> None:
        self._clients: dict[tuple, McpClient] = {}

    def client(self, entry: ServerEntry) -> McpClient:
        """Return the client of a server.

        Raises:
            MissingDependency: The SDK is not installed.
        """
        key = entry.command, entry.url, tuple(sorted(entry.env.items()))
        if key not in self._clients:
            from ros2_nanochat.tools.mcp_client import McpClient  # takes 0.02 s, with asyncio

            self._clients[key] = McpClient(entry.command, entry.url, entry.env)
        return self._clients[key]

    def close(self) -> None:
        """End all connections."""
        for client in self._clients.values():
            client.close()
        self._clients = {}


class McpCalls:
    """Performs the calls of one tool of an MCP server.

    Args:
        client: The server.
        name: The tool's name there.
    """

    acts_on = False

    def __init__(self, client: McpClient, name: str):
        self._client, self._name = client, name

    def start(self, arguments: Mapping[str, Any], run: Reports) -> None:
        """Send the call."""
        run.handle = self._client.call(self._name, arguments)
        run.taken()
        run.handle.add_done_callback(lambda future: self._answered(future, run))

    @staticmethod
    def _answered(future: Any, run: Reports) -> None:
        if future.cancelled():
            return
        try:
            succeeded, text = future.result()
        except Exception as error:
            run.fail(one_line(error))
            return
        (run.succeed if succeeded else run.fail)(text)

    def lost(self, run: Reports) -> str:
        """Return '': the connection reports its end itself."""
        return ''

    def stop(self, run: Reports) -> None:
        """Wait for the answer no longer."""
        run.was_cancelled('its answer is no longer awaited, the server may still do it')
        run.handle.cancel()

    def undo(self, again: bool = False) -> None:
        """Do nothing: MCP has no undoing."""

    def follow(self) -> None:
        """Do nothing: the connection looks after itself."""

    def preview(self, arguments: Mapping[str, Any]) -> str:
        """Return what would be called."""
        return f'the MCP tool {self._name} would be called with {json.dumps(dict(arguments), default=str)}'

    def close(self) -> None:
        """Do nothing: the connection belongs to all robots."""


class McpTools:
    """The tools that a robot may use of one MCP server.

    Args:
        entry: The server in the tools file.
        client: The connection.
        log: Has `info` and `warning`.
    """

    def __init__(self, entry: ServerEntry, client: McpClient, log: Any):
        self._entry, self._client, self._log = entry, client, log
        self._made: list[RobotTool] | None = None
        self._told = ''

    def tools(self, taken: set[str], until: float = 0.0) -> list[RobotTool]:
        """Return the tools, empty while the server has not listed them.

        Args:
            taken: Names that other tools have.
            until: `time.monotonic()` until which the list is waited for.
        """
        if self._made is None and self._client.wait(max(0.0, until - time.monotonic())):
            self._made = self._make(taken)
        elif self._made is None and self._client.failure not in ('', self._told):
            self._told = self._client.failure
            self._log.warning(f'{self._entry.where} cannot be reached, it is tried again: {self._told}')
        return self._made or []

    def _make(self, taken: set[str]) -> list[RobotTool]:
        made, wanted = [], self._entry.tools
        listed = {str(tool.get('name')): tool for tool in self._client.tools}
        for name, tool in listed.items():
            if wanted is not None and name not in wanted:
                continue
            policy = (wanted or {}).get(name) or ToolPolicy(timeout=ToolKind.MCP.timeout)
            called = re.sub(r'[^A-Za-z0-9_-]', '_', name)[:64]
            if called in taken:
                called = f'{self._entry.name}_{called}'[:64]
            try:
                schema = tool.get('inputSchema') or {}
                check_schema(schema, f'the parameters of {name}')
                text = ' '.join(str(tool.get('description') or '').split())[:_LONGEST]
                made.append(RobotTool(Tool(called, text, schema), policy, McpCalls(self._client, name)))
                taken.add(called)
            except ValueError as error:
                self._log.warning(f'{self._entry.where}: {name} is left out: {one_line(error)}')
        absent = set(wanted or ()) - set(listed)
        if absent:
            self._log.warning(f'{self._entry.where}: the server has no tool {", ".join(sorted(absent))}')
        return made
