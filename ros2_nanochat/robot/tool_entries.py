"""What a tools file holds, once it is read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ros2_nanochat.robot.tool_policy import ToolKind, ToolLimits, ToolPolicy

NO_UNDOING = 'none'
"""Value of `on_cancel` that states: nothing goes on acting."""


@dataclass(frozen=True)
class ToolEntry:
    """One tool of the file.

    Attributes:
        name: How the model calls it.
        kind: What it does.
        target: Name of the service, action, topic or node; '' for observations.
        where: The file and the key, for messages.
        type: Name of the interface; '' looks it up in the running system.
        description: What the model reads about it; None: what the interface says.
        arguments: Limits of single fields, by their path; for a parameter that calls set, the schema of
            `value`.
        fields: Paths of the fields that a read message is cut to; () keeps all.
        max_age: Seconds; an older message is not used. None: any age.
        parameter: Name of the parameter that is read or set.
        on_cancel: What undoes the call: a message or request, or `{publish|service: name, ...}`. None if the
            file sets none, `NO_UNDOING` if it states that there is nothing to undo.
        policy: How it may be used.
        watches: Names of the standing questions that it tells about; () for all.
    """

    name: str
    kind: ToolKind
    target: str
    where: str
    type: str = ''
    description: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[str, ...] = ()
    max_age: float | None = None
    parameter: str = ''
    on_cancel: Any = None
    policy: ToolPolicy = ToolPolicy()
    watches: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServerEntry:
    """One MCP server of the file.

    Attributes:
        name: Its name.
        where: The file and the key, for messages.
        command: The program and its arguments, () if it is reached by `url`.
        url: Its address.
        env: Environment variables of the program.
        tools: The tools that the model may use: from name to the keys that the file sets; None: all.
    """

    name: str
    where: str
    command: tuple[str, ...] = ()
    url: str = ''
    env: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, ToolPolicy] | None = None


@dataclass(frozen=True)
class Example:
    """A command and the call that it means, which the model is shown.

    Attributes:
        say: What a person says.
        call: Name of the tool.
        arguments: Its arguments.
        answer: What the tool answers, '' to show only the call.
        reply: What the robot says then, '' for nothing.
        where: The file and the key, for messages.
    """

    say: str
    call: str
    arguments: Mapping[str, Any]
    answer: str
    reply: str
    where: str


@dataclass(frozen=True)
class ToolsFile:
    """What a tools file holds.

    Attributes:
        path: The file.
        tools: The tools.
        servers: The MCP servers.
        limits: The limits that they share.
        examples: Commands and calls that the model is shown.
    """

    path: str
    tools: tuple[ToolEntry, ...] = ()
    servers: tuple[ServerEntry, ...] = ()
    limits: ToolLimits = ToolLimits()
    examples: tuple[Example, ...] = ()
