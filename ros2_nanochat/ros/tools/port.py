"""The topic `tool_calls` and the service `approve` of one robot."""

from __future__ import annotations

import json
from typing import Any

from builtin_interfaces.msg import Time
from nanochat.msg import ToolCall
from nanochat.srv import Approve
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions

from ros2_nanochat.errors import one_line, shown
from ros2_nanochat.robot.tool_record import CallRecord
from ros2_nanochat.robot.toolbox import Toolbox
from ros2_nanochat.ros.action_ends import service_qos
from ros2_nanochat.ros.speaker import Speaker

_KEPT = 50  # calls that a late listener gets


class ToolPort:
    """Publishes the calls of a robot, and takes approvals.

    Args:
        node: The node.
        prefix: Prefix of the names.
        robot: The robot's name.
        box: The robot's tools.
    """

    def __init__(self, node: Any, prefix: str, robot: str, box: Toolbox):
        self._node, self._robot, self._box = node, robot, box
        self._closed = False
        self._publisher = node.create_publisher(
            ToolCall,
            prefix + 'tool_calls',
            QoSProfile(depth=_KEPT, durability=DurabilityPolicy.TRANSIENT_LOCAL),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._speak = Speaker(self._publisher.publish, self._publisher.topic_name, lambda: self._closed)
        self._service = node.create_service(
            Approve,
            prefix + 'approve',
            self._approve,
            qos_profile=service_qos(),
            callback_group=ReentrantCallbackGroup(),
        )
        box.listen(self.publish)

    def publish(self, record: CallRecord) -> None:
        """Publish a call."""
        self._speak(call_message(record, self._robot, self._node.get_clock().now().to_msg()))

    def _approve(self, request: Approve.Request, response: Approve.Response) -> Approve.Response:
        try:
            response.success = self._box.approve(request.id, request.approve, request.reason)
            answer = 'the call was approved' if request.approve else 'the call was refused'
            response.message = (
                answer if response.success else f'no call {shown(request.id)} waits for approval'
            )
        except BaseException as error:  # without a response, the client would wait forever
            response.success, response.message = False, one_line(error)
        return response

    def close(self) -> None:
        """Close the topic and the service."""
        self._closed = True
        self._box.listen(None)
        self._node.destroy_service(self._service)
        self._node.destroy_publisher(self._publisher)


def call_message(record: CallRecord, robot: str, stamp: Time) -> ToolCall:
    """Return the message of a call.

    Args:
        record: The call.
        robot: The robot's name.
        stamp: The time.
    """
    call = record.call
    return ToolCall(
        stamp=stamp,
        robot=robot,
        turn_id=record.turn_id,
        id=call.id,
        name=call.name,
        arguments=json.dumps(dict(call.arguments), ensure_ascii=False, default=str),
        state=str(call.state),
        result=call.result,
        feedback=call.feedback,
        duration=float(call.duration),
        background=record.background,
        dry_run=record.dry_run,
    )
