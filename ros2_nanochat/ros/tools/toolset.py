"""The tools of one robot in ROS: checks its tools file against the interfaces, and opens and closes what
performs the calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ros2_nanochat.answer.grammars import check_schema
from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.mcp_tools import McpTools
from ros2_nanochat.robot.observations import Observations
from ros2_nanochat.robot.observing import Observing, described, observing_tool
from ros2_nanochat.robot.tool_entries import NO_UNDOING, ToolEntry, ToolsFile
from ros2_nanochat.robot.tool_policy import ToolKind
from ros2_nanochat.robot.tool_record import Performer, RobotTool
from ros2_nanochat.robot.toolbox import Toolbox
from ros2_nanochat.ros.message_schema import message_schema
from ros2_nanochat.ros.tools.arguments import Arguments, arguments_of, numbers_of
from ros2_nanochat.ros.tools.goals import ActionGoals
from ros2_nanochat.ros.tools.interfaces import declared_type, interface_class, request_part
from ros2_nanochat.ros.tools.services import ParameterReads, ParameterSets, ServiceCalls
from ros2_nanochat.ros.tools.topics import Publishing, Reading
from ros2_nanochat.ros.tools.undoing import message_of
from ros2_nanochat.ros.tools.values import check_fields
from ros2_nanochat.tools import Tool

_LOOK = 0.1  # seconds between two looks at the graph


@dataclass
class _Planned:
    """A tool whose interface is known.

    Attributes:
        tool: What the model reads.
        make: Opens what performs the calls.
    """

    tool: Tool
    make: Callable[[], Performer]


class Toolset:
    """The tools of one robot.

    Args:
        node: The node.
        file: What the tools file holds.
        box: Gets the tools while they are open.
        log: Has `info`, `warning` and `error`.
        until: `time.monotonic()` until which types are waited for that are not known yet.
        servers: The MCP servers of the robot.
        observations: Returns what the robot's standing questions saw, None if it has none.

    Raises:
        ValueError: The file does not fit an interface. One line with the file and the key.
    """

    def __init__(
        self,
        node: Any,
        file: ToolsFile,
        box: Toolbox,
        log: Any,
        until: float = 0.0,
        servers: Sequence[McpTools] = (),
        observations: Callable[[], Observations | None] = lambda: None,
    ):
        self._node, self._file, self._box, self._log = node, file, box, log
        self._observations = observations
        self._servers = list(servers)
        self._planned: dict[str, _Planned] = {}
        self._open: dict[str, RobotTool] = {}
        self._active = False
        self._missing = list(file.tools)  # of unknown type
        self._plan_missing()
        while self._missing and time.monotonic() < until:  # the node has just joined the graph
            time.sleep(_LOOK)
            self._plan_missing()
        self._listed(until)
        if self._missing:
            names = ', '.join(f'{entry.name} ({entry.target})' for entry in self._missing)
            log.info(f'tools whose type is not known yet, they are added when it is: {names}')

    def _plan_missing(self) -> None:
        for entry in list(self._missing):
            planned = self._plan(entry)
            if planned is not None:
                self._check_examples(planned.tool)
                self._planned[entry.name] = planned
                self._missing.remove(entry)

    def _plan(self, entry: ToolEntry) -> _Planned | None:
        """Check a tool against its interface. None if its type is not known yet."""
        if entry.kind is ToolKind.OBSERVATIONS:
            tool = observing_tool(entry)
            return _Planned(tool, lambda: Observing(entry, self._observations))
        if entry.kind is ToolKind.PARAMETER:
            return self._plan_parameter(entry)
        name = entry.type or declared_type(self._node, entry.target, entry.kind, entry.where)
        if not name:
            return None
        cls = interface_class(name, entry.kind, entry.where)
        if entry.kind is ToolKind.READ:
            check_fields(cls, entry.fields, entry.where)
            about = described(entry, f'The newest message of {entry.target}')
            tool = Tool(entry.name, about)
            return _Planned(tool, lambda: Reading(self._node, entry, cls))
        arguments = arguments_of(entry, request_part(cls, entry.kind))
        self._check_undoing(entry, cls)
        about = described(entry, arguments.about or f'{str(entry.kind).capitalize()} {entry.target}')
        tool = self._tool(entry, about, arguments.schema, arguments.unlimited)
        return _Planned(tool, lambda: self._performer(entry, cls, arguments))

    def _plan_parameter(self, entry: ToolEntry) -> _Planned:
        what = f'the parameter {entry.parameter} of {entry.target}'
        if not entry.arguments:
            return _Planned(
                Tool(entry.name, described(entry, f'Read {what}')), lambda: ParameterReads(self._node, entry)
            )
        schema = {'type': 'object', 'properties': {**entry.arguments}, 'required': ['value']}
        limits = entry.arguments['value'].keys()
        limited = 'enum' in limits or {'minimum', 'maximum'} <= limits
        tool = self._tool(
            entry, described(entry, f'Set {what}'), schema, [] if limited else list(numbers_of(schema))
        )
        return _Planned(tool, lambda: ParameterSets(self._node, entry))

    def _tool(self, entry: ToolEntry, about: str, schema: dict, unlimited: Sequence[str]) -> Tool:
        """Return what the model reads about a tool with arguments."""
        if unlimited:
            self._log.warning(
                f'{entry.where}: {", ".join(unlimited)} has no minimum and maximum: the model may write any'
                ' value that the type allows'
            )
        try:
            # without arguments, all kinds of tools look the same in the prompt
            tool = Tool(entry.name, about, schema) if schema['properties'] else Tool(entry.name, about)
            check_schema(tool.schema, 'the arguments')
        except ValueError as error:
            raise ValueError(f'{entry.where}: {one_line(error)}') from None
        return tool

    def _check_examples(self, tool: Tool) -> None:
        for example in self._file.examples:
            if example.call == tool.name:
                try:
                    tool.check(example.arguments)
                except ValueError as error:
                    raise ValueError(f'{example.where}.arguments: {one_line(error)}') from None

    def _performer(self, entry: ToolEntry, cls: Any, arguments: Arguments) -> Performer:
        made: Any = {
            ToolKind.SERVICE: ServiceCalls,
            ToolKind.ACTION: ActionGoals,
            ToolKind.PUBLISH: Publishing,
        }[entry.kind]
        return made(self._node, entry, cls, arguments)

    @staticmethod
    def _check_undoing(entry: ToolEntry, cls: Any) -> None:
        """Check `on_cancel`, without which nothing may be published that could go on acting."""
        given = entry.on_cancel
        if given is None and entry.kind is ToolKind.PUBLISH and any(numbers_of(message_schema(cls))):
            raise ValueError(
                f'{entry.where}.on_cancel is missing: {cls.__name__} holds numbers, which may go on acting'
                f' after they are published: the message that stops it ({{}} for zeros), or {NO_UNDOING}'
            )
        if isinstance(given, dict) and not {'publish', 'service'} & given.keys():
            message_of(request_part(cls, entry.kind), given, f'{entry.where}.on_cancel')

    # --- while the robot's topics are open ---

    def open(self) -> None:
        """Open the services, actions and topics, and let the model use the tools."""
        self._active = True
        self._open_planned()

    def _open_planned(self) -> None:
        for entry in self._file.tools:
            planned = self._planned.get(entry.name)
            if planned is not None and entry.name not in self._open:
                self._open[entry.name] = RobotTool(planned.tool, entry.policy, planned.make())
        names = [entry.name for entry in self._file.tools if entry.name in self._open]
        self._box.set_tools([*(self._open[name] for name in names), *self._listed()])

    def _listed(self, until: float = 0.0) -> list[RobotTool]:
        """The tools that the MCP servers have listed so far."""
        taken = {entry.name for entry in self._file.tools}
        return [tool for server in self._servers for tool in server.tools(taken, until)]

    def follow(self) -> None:
        """Look for the tools whose type is not known yet. Call this now and then."""
        for tool in self._open.values():
            tool.performer.follow()
        before = len(self._planned)
        try:
            self._plan_missing()
        except ValueError as error:
            self._log.error(f'{error}; the tool is left out', throttle_duration_sec=60.0)
        expected = len(self._open) + len(self._listed())
        if self._active and (len(self._planned) > before or expected != len(self._box.tools)):
            self._open_planned()

    def close(self) -> None:
        """Close the services, actions and topics. No call may run."""
        self._active = False
        self._box.set_tools([])
        for tool in self._open.values():
            tool.performer.close()
        self._open = {}
