"""What the server knows of one robot."""

from __future__ import annotations

import asyncio
from typing import Any

from ros2_nanochat.web.robot_link import RobotLink
from ros2_nanochat.web.turn_log import TurnLog


class RobotView:
    """One robot.

    Args:
        prefix: Prefix of its topics.

    Attributes:
        log: Its conversation.
        present: Whether its topics are on the graph.
        known: Whether its history has been read.
        learning: The task that reads it.
        has_camera: Whether somebody publishes its camera.
        asking: How many questions of pages have not been answered yet.
        link: The topics and services that were open when it was read.
        looking: How many of these may take a camera picture with them.
    """

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.log = TurnLog()
        self.present = self.known = self.has_camera = False
        self.learning: asyncio.Task | None = None
        self.asking = self.looking = self._messages = 0
        self.link: RobotLink | None = None

    @property
    def name(self) -> str:
        """Its name: `r1` for /r1/nanochat, else that of its node."""
        parts = self.prefix.strip('/').split('/')
        return '/'.join(parts[:-1]) or parts[-1]

    def shrank(self, messages: str) -> bool:
        """Take over the number of its messages. Return whether there were more before."""
        before, self._messages = self._messages, int(messages) if messages.isdigit() else self._messages
        return self._messages < before

    def tagged(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return an event with the robot's prefix."""
        return {'robot': self.prefix, **event}

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the events that show everything to a new page."""
        return [self.log.conversation(), *self.others()]

    def others(self) -> list[dict[str, Any]]:
        """Return those beside the conversation."""
        return []
