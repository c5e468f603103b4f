"""A call of a tool as it is published, and who performs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ros2_nanochat.robot.tool_policy import ToolPolicy
from ros2_nanochat.tools import Tool, ToolCall


@dataclass(frozen=True)
class CallRecord:
    """A call as it is published and written down.

    Attributes:
        call: The call.
        turn_id: The turn in which the model wrote it.
        background: It goes on while the conversation continues.
        dry_run: Nothing was called.
    """

    call: ToolCall
    turn_id: str = ''
    background: bool = False
    dry_run: bool = False


class Reports(Protocol):
    """What a performer reports about a call, from any thread.

    Attributes:
        handle: For the performer.
        stopping: Whether the call was asked to end.
        timeout: Seconds that the call may take.
    """

    handle: Any
    timeout: float

    @property
    def stopping(self) -> bool: ...
    def taken(self) -> None: ...
    def tell(self, feedback: str) -> None: ...
    def succeed(self, text: str) -> None: ...
    def fail(self, text: str) -> None: ...
    def was_cancelled(self, text: str) -> None: ...


class Performer(Protocol):
    """Performs the calls of one tool. No method blocks; each may raise, which fails the call.

    Attributes:
        acts_on: What a call did goes on until `undo`: a velocity that was published.
    """

    acts_on: bool

    def start(self, arguments: Mapping[str, Any], run: Reports) -> None:
        """Begin. `run.taken`, then `run.succeed`, `run.fail` or `run.was_cancelled` follow, from any
        thread.
        """

    def lost(self, run: Reports) -> str:
        """Return why no answer will come any more, '' if it may."""

    def stop(self, run: Reports) -> None:
        """Ask the other side to stop."""

    def undo(self, again: bool = False) -> None:
        """Do what the file names as `on_cancel`; nothing without it. `again`: the call has ended since."""

    def follow(self) -> None:
        """Look at the other side. Called now and then."""

    def preview(self, arguments: Mapping[str, Any]) -> str:
        """Return what would be called."""

    def close(self) -> None:
        """Free what it holds. No call runs."""


@dataclass(frozen=True)
class RobotTool:
    """A tool that a robot's model may use.

    Attributes:
        tool: What the model reads.
        policy: How it may be used.
        performer: Performs its calls.
    """

    tool: Tool
    policy: ToolPolicy
    performer: Performer
