"""One robot's topics and services, open while a page shows the robot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from nanochat.msg import Token, Turn
from nanochat.srv import GetHistory

from ros2_nanochat.ros.client import ChatClient, NodeGone
from ros2_nanochat.web.as_json import to_value
from ros2_nanochat.web.taps import Tap

_TRY_AGAIN = 1.0  # seconds; a service that does not know us yet loses its first answer


class RobotLink:
    """What a page needs of a robot.

    Args:
        node: The node, which somebody spins.
        prefix: Prefix of the robot's topics.
        put: Called with what was heard, as (kind, prefix, value).

    Attributes:
        chat: The robot's action and services.
    """

    def __init__(self, node, prefix: str, put: Callable[[tuple[str, str, Any]], None]):
        self._node, self._prefix = node, prefix
        self.chat = ChatClient(prefix, node=node)
        self._history = node.create_client(GetHistory, f'{prefix}/history')

        def tap(kind: type, name: str, **options) -> Tap:
            return Tap(
                node,
                kind,
                f'{prefix}/{name}',
                lambda message: put((name, prefix, to_value(message))),
                **options,
            )

        self._taps = [tap(Token, 'tokens'), tap(Turn, 'turn')]

    def take(self) -> None:
        """Hand on what has arrived."""
        for tap in self._taps:
            tap.take()

    def history(self, tries: int = 5) -> dict[str, Any]:
        """Return the robot's conversation. Waits, so call it on a thread of its own.

        Args:
            tries: How often to ask, a second apart.

        Raises:
            NodeGone: The robot does not answer.
        """
        for _ in range(tries):
            if self._history.wait_for_service(_TRY_AGAIN):
                done = threading.Event()
                future = self._history.call_async(GetHistory.Request())
                future.add_done_callback(lambda _, done=done: done.set())
                if done.wait(_TRY_AGAIN):
                    return to_value(future.result())
                self._history.remove_pending_request(future)
        raise NodeGone(f'{self._prefix}/history does not answer')

    def close(self) -> None:
        """Close everything."""
        for tap in self._taps:
            tap.close()
        self.chat.close()
        self._node.destroy_client(self._history)
