"""One robot's topics and services, open while a page shows the robot."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from nanochat.msg import Observation, Token, ToolCall, Turn, Watch, Watches
from nanochat.srv import Approve, GetHistory, SetWatch
from rcl_interfaces.srv import GetParameters
from rclpy.expand_topic_name import expand_topic_name
from rclpy.validate_full_topic_name import validate_full_topic_name

from ros2_nanochat.robot.watch import IMAGE
from ros2_nanochat.ros.client import ChatClient, NodeGone
from ros2_nanochat.web.as_json import to_value
from ros2_nanochat.web.taps import Tap
from ros2_nanochat.web.turn_log import joined

_ANSWER = 10.0  # seconds
_MAX_CAMERAS = 32
_LONG_NAME = 200  # characters
_TRY_AGAIN = 1.0  # seconds; a service that does not know us yet loses its first answer


class RobotLink:
    """What a page needs of a robot.

    Args:
        node: The node, which somebody spins.
        prefix: Prefix of the robot's topics.
        owner: Name of the robot's node.
        put: Called with what was heard, as (kind, prefix, value).
        report: Called with the error of a message that could not be converted.

    Attributes:
        chat: The robot's action and services.
    """

    def __init__(
        self,
        node,
        prefix: str,
        owner: str,
        put: Callable[[tuple[str, str, Any]], None],
        report: Callable[[Exception], None],
    ):
        self._node, self._prefix, self._owner = node, prefix, ''
        self.chat = ChatClient(prefix, node=node, pieces=False)  # they come on `tokens`
        self._history, self._approve, self._set_watch = self._clients = [
            node.create_client(kind, f'{prefix}/{name}')
            for kind, name in ((GetHistory, 'history'), (Approve, 'approve'), (SetWatch, 'set_watch'))
        ]
        self._parameters: Any = None
        self.follow(owner)

        def tap(kind: type, name: str, values=functools.partial(map, to_value), **options) -> Tap:
            def receive(messages: Sequence[Any]) -> None:
                try:
                    converted = list(values(messages))
                except Exception as error:
                    if len(messages) == 1:
                        report(error)
                    else:  # one of them costs no other
                        for message in messages:
                            receive([message])
                    return
                for value in converted:
                    put((name, prefix, value))

            return Tap(node, kind, f'{prefix}/{name}', receive, **options)

        self._taps = [
            tap(Token, 'tokens', joined),
            tap(Turn, 'turn'),
            tap(ToolCall, 'tool_calls', past=True),
            tap(Watches, 'watches', depth=10, past=True),
            tap(Observation, 'observations', past=True),
        ]

    def follow(self, owner: str) -> None:
        """Take over the name of the robot's node, which the graph may show later than its topics."""
        if owner != self._owner:
            before, self._owner = self._parameters, owner
            self._parameters = self._node.create_client(GetParameters, f'{owner}/get_parameters')
            if before is not None:
                self._node.destroy_client(before)

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
        return to_value(self._read(self._history, GetHistory.Request(), tries))

    def cameras(self) -> dict[str, str]:
        """Return the topics of the robot's cameras by name. Waits, so call it on a thread of its own.

        Raises:
            NodeGone: The node does not answer.
        """
        space, _, leaf = self._owner.rpartition('/')
        robot = self._prefix.removeprefix(f'{space}/').removesuffix(leaf).strip('/')
        given = (robot and self._texts(f'{robot}.cameras')) or self._texts('cameras')
        topics = {IMAGE: f'{self._prefix}/{IMAGE}'}
        for text in given[:_MAX_CAMERAS]:
            name, found, topic = text.partition(':=')
            if not found or not name.isprintable() or not 0 < len(name) <= _LONG_NAME:
                continue
            try:
                full = expand_topic_name(topic.replace('{robot}', robot), leaf, space or '/')
                validate_full_topic_name(full)
            except Exception:
                # Of several kinds, by distro: this one is no topic. The other cameras are shown.
                continue
            topics[name] = full
        return topics

    def _texts(self, parameter: str) -> list[str]:
        """The texts of a parameter of the robot's node; none if it is not set."""
        values = self._read(self._parameters, GetParameters.Request(names=[parameter])).values
        return list(values[0].string_array_value) if values else []

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

    def _read(self, client, request, tries: int = 5):
        """Call a service that changes nothing, so that it may be asked again."""
        for _ in range(tries - 1):
            try:
                return self._call(client, request, _TRY_AGAIN)
            except NodeGone:
                pass
        return self._call(client, request, _TRY_AGAIN)

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
        for client in (*self._clients, self._parameters):
            self._node.destroy_client(client)
