"""What the robot's standing questions saw, as a tool: "what happened since ten?"."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ros2_nanochat.robot.observations import Observations
from ros2_nanochat.robot.tool_entries import ToolEntry
from ros2_nanochat.robot.tool_record import Reports
from ros2_nanochat.tools import Tool

_DAY = 86400
_SINCE = {
    'type': 'string',
    'pattern': '^([01][0-9]|2[0-3]):[0-5][0-9]$',
    'description': 'Time of day, such as 10:00. Without it, everything that is remembered',
}


def described(entry: ToolEntry, otherwise: str) -> str:
    """Return what the model reads about a tool."""
    return otherwise if entry.description is None else entry.description


def observing_tool(entry: ToolEntry) -> Tool:
    """Return what the model reads about the tool."""
    about = described(entry, 'What the cameras saw, and when')
    return Tool(entry.name, about, {'type': 'object', 'properties': {'since': dict(_SINCE)}})


def last_time(clock: str, now: float) -> float:
    """Return when a time of day was last, in seconds since the epoch.

    Args:
        clock: The time of day, as HH:MM.
        now: Seconds since the epoch.
    """
    hour, minute = map(int, clock.split(':'))
    today = time.localtime(now)
    found = time.mktime((today.tm_year, today.tm_mon, today.tm_mday, hour, minute, 0, 0, 0, -1))
    return found if found <= now else found - _DAY


class Observing:
    """Performs the calls of a tool that tells what was seen.

    Args:
        entry: The tool.
        observations: Returns what was seen, None if the robot does not watch.
    """

    acts_on = False

    def __init__(self, entry: ToolEntry, observations: Callable[[], Observations | None]):
        self._entry, self._observations = entry, observations

    def start(self, arguments: Mapping[str, Any], run: Reports) -> None:
        """Answer at once."""
        run.taken()
        observations = self._observations()
        if observations is None:
            run.fail('this robot does not watch: its model has no vision')
            return
        clock = arguments.get('since')
        since = None if clock is None else last_time(clock, time.time())
        run.succeed(observations.text(since, self._entry.watches))

    def lost(self, run: Reports) -> str:
        """Return '': the answer comes at once."""
        return ''

    def stop(self, run: Reports) -> None:
        """Do nothing: the answer comes at once."""

    def undo(self, again: bool = False) -> None:
        """Do nothing: reading changes nothing."""

    def follow(self) -> None:
        """Do nothing."""

    def preview(self, arguments: Mapping[str, Any]) -> str:
        """Return what would be done."""
        return 'what the cameras saw would be told'

    def close(self) -> None:
        """Do nothing."""
