"""What the ends of actions share: settings and goals of the action `chat`, and a client for any thread."""

from __future__ import annotations

import threading
from typing import Any

from nanochat.action import Chat
from rclpy.action import ActionClient
from rclpy.qos import QoSProfile

from ros2_nanochat.errors import one_line, shown
from ros2_nanochat.ros.spinning import close_action

SERVICE_DEPTH = 1000
"""Goals, result requests and calls of a service that may arrive at once. With rclpy's 10, further ones are
silently lost."""
FEEDBACK_DEPTH = 1000
CLIENT_BYTES = 12
"""The id of a `ChatClient`'s goal begins with the first bytes of the GID of its feedback subscription, so
that the server knows the goal's client. In the middlewares we know, a whole process shares these bytes."""


def service_qos() -> QoSProfile:
    """Return the QoS of services, also those of actions."""
    return QoSProfile(depth=SERVICE_DEPTH)


def chat_goal(**fields) -> Chat.Goal:
    """Make a goal. From Jazzy on, rclpy ignores unknown fields, and takes values of wrong types.

    Raises:
        ValueError: There is no such field, or its value does not fit.
    """
    types = Chat.Goal.get_fields_and_field_types()
    for name, value in fields.items():
        if name not in types:
            raise ValueError(f'a goal has no field {shown(name)}, only {", ".join(types)}')
        if types[name] in ('float', 'double') and isinstance(value, int):
            fields[name] = float(value)
    checks = {'check_fields': True} if '_check_fields' in Chat.Goal.__slots__ else {}
    try:
        return Chat.Goal(**fields, **checks)
    except AssertionError as error:
        raise ValueError(f'a goal cannot have such a field: {one_line(error)}') from None


class AnyThreadActionClient(ActionClient):
    """An ActionClient for any thread.

    Hold `sending` while you send: rclpy records a request after sending it, and may drop the response.
    """

    def __init__(self, *args, **kwargs):
        self.sending = threading.RLock()
        super().__init__(*args, **kwargs)

    def send_goal_async(self, *args, **kwargs):
        """Send a goal; see `ActionClient.send_goal_async`.

        Kilted's makes two futures for each goal, and would keep the first one for ever.
        """
        with self.sending:
            before = list(self._futures)
            future = super().send_goal_async(*args, **kwargs)
            for each in list(self._futures):
                if each is not future and each not in before:
                    self.remove_future(each)
            return future

    async def execute(self, taken_data):
        """Process what the executor took, once no request is being sent."""
        with self.sending:
            pass
        await super().execute(taken_data)


class StreamingActionClient(AnyThreadActionClient):
    """An AnyThreadActionClient with room for many goals and much feedback.

    Args:
        node: The node.
        kind: The type of the action.
        name: Name of the action.
        callback_group: Group of everything that arrives.
    """

    def __init__(self, node, kind: Any, name: str, callback_group):
        super().__init__(
            node,
            kind,
            name,
            callback_group=callback_group,
            goal_service_qos_profile=service_qos(),
            result_service_qos_profile=service_qos(),
            cancel_service_qos_profile=service_qos(),
            feedback_sub_qos_profile=QoSProfile(depth=FEEDBACK_DEPTH),
        )

    def close(self) -> None:
        """Close everything. Responses that have not arrived are lost."""
        close_action(self._node, self, 0.0)
