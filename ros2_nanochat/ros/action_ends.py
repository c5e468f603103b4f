"""Settings that the server and the client of the action `chat` share."""

from __future__ import annotations

from rclpy.qos import QoSProfile

SERVICE_DEPTH = 1000
"""Goals and result requests that may arrive at once. With rclpy's 10, further ones are silently lost."""
FEEDBACK_DEPTH = 1000
CLIENT_BYTES = 12
"""The id of a `ChatClient`'s goal begins with the first bytes of the GID of its feedback subscription, so
that the server knows the goal's client. In the middlewares we know, a whole process shares these bytes."""


def service_qos() -> QoSProfile:
    """Return the QoS of the action's services."""
    return QoSProfile(depth=SERVICE_DEPTH)
