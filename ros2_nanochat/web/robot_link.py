"""One robot's topics and services, open while a page shows the robot."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from nanochat.msg import Observation, Token, ToolCall, Turn, Watch, Watches
from nanochat.srv import Approve, GetHistory, SetWatch

from ros2_nanochat.ros.client import ChatClient, NodeGone
from ros2_nanochat.web.as_json import to_value
from ros2_nanochat.web.taps import Tap

_ANSWER = 10.0  # seconds
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
        self._history, self._approve, self._set_watch = self._clients = [
            node.create_client(kind, f'{prefix}/{name}')
            for kind, name in ((GetHistory, 'history'), (Approve, 'approve'), (SetWatch, 'set_watch'))
        ]

        def tap(kind: type, name: str, **options) -> Tap:
            return Tap(
                node,
                kind,
                f'{prefix}/{name}',
                lambda message: put((name, prefix, to_value(message))),
                **options,
            )

        self._taps = [
            tap(Token, 'tokens'),
            tap(Turn, 'turn'),
            tap(ToolCall, 'tool_calls', past=True),
            tap(Watches, 'watches', depth=10, past=True),
            tap(Observation, 'observations', past=True),
        ]

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
        for left in reversed(range(tries)):
            try:
                return to_value(self._call(self._history, GetHistory.Request(), _TRY_AGAIN))
            except NodeGone:
                if not left:
                    raise
        raise AssertionError

    def approve(self, call: str, yes: bool, reason: str) -> str:
        """Answer for a tool that waits. Return what happened; RuntimeError if it fails.

        Args:
            call: Id of the call.
            yes: Whether it may run.
            reason: Why not; the model is told.
        """
        return self._succeed(self._approve, Approve.Request(id=call, approve=yes, reason=reason))

    def set_watch(self, command: str, **watch) -> str:
        """Change a standing question. Return what happened; RuntimeError if it fails.

        Args:
            command: As in nanochat/srv/SetWatch.
            **watch: Fields of its nanochat/msg/Watch.
        """
        return self._succeed(self._set_watch, SetWatch.Request(command=command, watch=Watch(**watch)))

    def _succeed(self, client, request) -> str:
        response = self._call(client, request, _ANSWER)
        if not response.success:
            raise RuntimeError(response.message)
        return response.message

    def _call(self, client, request, timeout: float):
        if not client.wait_for_service(timeout):
            raise NodeGone(f'{client.srv_name} is not there')
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout):
            client.remove_pending_request(future)
            raise NodeGone(f'{client.srv_name} has not answered within {timeout:g} s')
        return future.result()

    def close(self) -> None:
        """Close everything."""
        for tap in self._taps:
            tap.close()
        self.chat.close()
        for client in self._clients:
            self._node.destroy_client(client)
