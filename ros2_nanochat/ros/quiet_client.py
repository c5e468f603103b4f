"""A client of an action that takes no feedback.

rclpy's ActionClient wakes its executor for each feedback message of all clients' goals, which costs more than
the message: a page that only wants the results would take a noticeable share of a robot's processor.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.task import Future

from ros2_nanochat.ros.action_ends import service_qos
from ros2_nanochat.ros.endpoint_events import no_events
from ros2_nanochat.ros.spinning import Untouched

_LOOK = 0.1  # seconds between two looks for the server


class QuietActionClient:
    """Sends goals through the services of the action. Can be used from any thread.

    It has the part of rclpy's ActionClient that `ChatClient` uses.

    Args:
        node: The node.
        kind: The type of the action.
        name: Name of the action.
        callback_group: Group of the responses.
    """

    sending = contextlib.nullcontext()
    """Needs no lock, see `AnyThreadActionClient`: a service client records a request before its response."""

    def __init__(self, node, kind: Any, name: str, callback_group):
        self._node, self._impl = node, kind.Impl
        self._send, self._result, self._cancel = self._clients = [
            node.create_client(
                service, f'{name}/_action/{part}', qos_profile=service_qos(), callback_group=callback_group
            )
            for service, part in (
                (self._impl.SendGoalService, 'send_goal'),
                (self._impl.GetResultService, 'get_result'),
                (self._impl.CancelGoalService, 'cancel_goal'),
            )
        ]
        # A server looks for a goal's client among those that listen to the feedback. A volatile publisher and
        # a transient-local subscription do not match in DDS, so the graph shows this one but no feedback is
        # sent to it. A transport that matches whatever the QoS (Zenoh) sends it, and nobody takes it.
        self._presence = node.create_subscription(
            self._impl.FeedbackMessage,
            f'{name}/_action/feedback',
            lambda _: None,  # never called
            QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
            callback_group=Untouched(),
            event_callbacks=no_events(),
        )

    def send_goal_async(self, goal, goal_uuid, feedback_callback=None) -> Future:
        """Send a goal. Return a future of its handle.

        Args:
            goal: The goal.
            goal_uuid: Its id.
            feedback_callback: Is never called.
        """
        handle: Future = Future()
        sent = self._send.call_async(self._impl.SendGoalService.Request(goal_id=goal_uuid, goal=goal))
        sent.add_done_callback(
            lambda done: handle.set_result(_GoalHandle(self, goal_uuid, done.result().accepted))
        )
        return handle

    def result(self, goal_uuid) -> Future:
        """Return a future of the result of a goal."""
        return self._result.call_async(self._impl.GetResultService.Request(goal_id=goal_uuid))

    def cancel(self, goal_uuid) -> Future:
        """Ask the server to cancel a goal."""
        request = self._impl.CancelGoalService.Request()
        request.goal_info.goal_id = goal_uuid
        return self._cancel.call_async(request)

    def server_is_ready(self) -> bool:
        """Return whether there is a server."""
        return all(client.service_is_ready() for client in self._clients)

    def wait_for_server(self, timeout_sec: float | None = None) -> bool:
        """Wait for a server. Return False if there is none after `timeout_sec` seconds."""
        until = None if timeout_sec is None else time.monotonic() + timeout_sec
        while not self.server_is_ready():
            if not self._node.context.ok() or (until is not None and time.monotonic() >= until):
                return False
            time.sleep(_LOOK)
        return True

    def close(self) -> None:
        """Close everything. Responses that have not arrived are lost."""
        for client in self._clients:
            self._node.destroy_client(client)
        self._node.destroy_subscription(self._presence)


class _GoalHandle:
    """A goal that was sent, like rclpy's ClientGoalHandle."""

    def __init__(self, client: QuietActionClient, goal_uuid, accepted: bool):
        self._client, self._goal_uuid, self.accepted = client, goal_uuid, accepted

    def get_result_async(self) -> Future:
        return self._client.result(self._goal_uuid)

    def cancel_goal_async(self) -> Future:
        return self._client.cancel(self._goal_uuid)
