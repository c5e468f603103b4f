"""Which clients of an action have left the graph.

The goal of a `ChatClient` names its client. Any other goal came from one of those that listened to its
feedback at that time, and its client has left when all of them have.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ros2_nanochat.ros.action_ends import CLIENT_BYTES

_Of = TypeVar('_Of')  # what a goal stands for
_DISCOVERY = 2.0  # seconds after a goal in which its client may still appear on the graph


class GoalClients:
    """The clients of one action server, as far as the graph shows them. Any thread.

    Args:
        node: The node.
        action: Name of the action.
    """

    def __init__(self, node, action: str):
        self._node = node
        self._topic = node.resolve_topic_name(f'{action}/_action/feedback')
        self._goals: dict[bytes, _Goal] = {}
        self._heard = False
        self._lock = threading.Lock()

    def met(self, key: bytes) -> None:
        """Take note of the clients as a goal arrives: its own may leave before `gone` is called.
        Call this once the goal is among those that are open.

        Args:
            key: The id of the goal.
        """
        clients = self._there()
        with self._lock:
            self._goals.setdefault(key, _Goal(key)).has_client(clients)

    def _there(self) -> set[bytes]:
        ends = self._node.get_subscriptions_info_by_topic(self._topic)
        return {bytes(end.endpoint_gid[:CLIENT_BYTES]) for end in ends}

    def gone(self, open_goals: Callable[[], Mapping[bytes, _Of]]) -> list[_Of]:
        """Return the open goals whose clients have left the graph. Call this regularly.

        Args:
            open_goals: Returns what is open now, by the ids of the goals.
        """
        with self._lock:
            goals = open_goals()  # under the lock, so that no goal is forgotten that was met after this
            self._goals = {key: self._goals.get(key) or _Goal(key) for key in goals}
            if not goals:
                self._heard = False
                return []
            clients = self._there()
            silent = self._heard and not clients
            self._heard = bool(clients)
            return [goals[key] for key, goal in self._goals.items() if not goal.has_client(clients) or silent]


@dataclass
class _Goal:
    """One goal, and who may be its client."""

    key: bytes
    since: float = field(default_factory=time.monotonic)
    named: bool = False  # its client was seen on the graph
    among: set[bytes] = field(default_factory=set)  # who listened at that time

    def has_client(self, clients: set[bytes]) -> bool:
        """Whether its client may be among those on the graph. False only if it was there before."""
        own = self.key[:CLIENT_BYTES]
        if own in clients:
            self.named = True
            return True
        if not self.among or time.monotonic() - self.since < _DISCOVERY:
            self.among |= clients
        return not self.named and not (self.among and self.among.isdisjoint(clients))
