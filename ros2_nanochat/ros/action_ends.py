"""What both ends of the action `chat` have in common."""

from __future__ import annotations

from rclpy.qos import QoSProfile

SERVICE_DEPTH = 1000
"""Goals and questions for results that may arrive at once; with rclpy's 10 the others are lost silently."""
FEEDBACK_DEPTH = 1000
CLIENT_BYTES = 12
"""The first bytes of the id of a `ChatClient`'s goal are those of its end of the feedback topic, so that a
goal knows its client. That much is the same for all ends of a process in the middleware we know."""


def service_qos() -> QoSProfile:
    """Of the services of the action."""
    return QoSProfile(depth=SERVICE_DEPTH)
