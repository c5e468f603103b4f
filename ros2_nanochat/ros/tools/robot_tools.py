"""Everything about the tools of one robot of the node: its file, what performs the calls, and its topics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.mcp_tools import McpServers, McpTools
from ros2_nanochat.robot.observations import Observations
from ros2_nanochat.robot.tool_journal import ToolJournal
from ros2_nanochat.robot.toolbox import Toolbox
from ros2_nanochat.robot.tools_file import read_tools_file
from ros2_nanochat.ros.tools.port import ToolPort
from ros2_nanochat.ros.tools.toolset import Toolset


class RobotTools:
    """The tools of one robot.

    Args:
        node: The node.
        path: The tools file.
        robot: The robot's name, '' if the node serves only itself.
        store: The robot's `ConversationStore`, or None.
        log: Has `info`, `warning` and `error`.
        servers: The MCP servers of the node.
        until: `time.monotonic()` until which interfaces are waited for that are not known yet.
        observations: Returns what the robot's standing questions saw, None if it has none.

    Attributes:
        box: What the model may call.

    Raises:
        ValueError: The file is not valid. One line with the file and the key.
        MissingDependency: The file names MCP servers, and their SDK is not installed.
    """

    def __init__(
        self,
        node: Any,
        path: str,
        robot: str,
        store: Any,
        log: Any,
        servers: McpServers,
        until: float = 0.0,
        observations: Callable[[], Observations | None] = lambda: None,
    ):
        self._node, self._robot, self._log = node, robot, log
        file = read_tools_file(path, robot)
        journal = None if store is None else ToolJournal(store.path.with_suffix('.calls'))
        try:
            self.box = Toolbox(robot, file.limits, log, journal, file.examples)
        except ValueError as error:
            raise ValueError(f'tools_file={file.path}: {error}') from None
        listed = [McpTools(entry, servers.client(entry), log) for entry in file.servers]
        self._set = Toolset(node, file, self.box, log, until, listed, observations)
        self._port: ToolPort | None = None

    def open(self, prefix: str) -> None:
        """Open the topics, and let the model use the tools. `prefix`: of the robot's names."""
        self._port = ToolPort(self._node, prefix, self._robot, self.box)
        self._set.open()

    def follow(self) -> None:
        """Look for interfaces that were not there before. Call this now and then."""
        self._set.follow()

    def close(self) -> None:
        """Stop what runs, wait a bounded time for it, and close everything."""
        if self._port is None:
            return
        self.box.stop('the node is being deactivated')
        if not self.box.wait():
            names = ', '.join(run.record.call.name for run in self.box.open_runs())
            self._log.warning(f'{self._robot or "chat"}: {names} did not stop in time')
        try:
            self._set.close()
        except Exception as error:  # the context may be shut down meanwhile
            self._log.warning(f'closing tools: {one_line(error)}')
        self._port.close()
        self._port = None
