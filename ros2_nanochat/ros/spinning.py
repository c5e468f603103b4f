"""Spinning an executor while other threads close what it waits for."""
from __future__ import annotations

from rclpy.exceptions import InvalidHandle
from rclpy.executors import Executor, ExternalShutdownException, ShutdownException


def spin(executor: Executor) -> None:
    """Run an executor's callbacks until it, or its context, is shut down."""
    while True:
        try:
            executor.spin()
        except InvalidHandle:
            continue  # rclpy (to Kilted) puts an entity into its next wait although another thread destroyed it just now: that round is lost, no callback is
        except (ExternalShutdownException, ShutdownException):
            pass
        return
