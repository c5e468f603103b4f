"""Topics as tools: publishing a message, and reading the newest one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message

from ros2_nanochat.robot.tool_entries import ToolEntry
from ros2_nanochat.robot.tool_record import Reports
from ros2_nanochat.ros.endpoint_events import no_events
from ros2_nanochat.ros.tools.arguments import Arguments
from ros2_nanochat.ros.tools.performing import Performing
from ros2_nanochat.ros.tools.undoing import Undoing, stamp
from ros2_nanochat.ros.tools.values import to_data

_DEPTH = 10
_REASON = 0.15  # seconds before the time-out, at which the reason is given


class Publishing(Performing):
    """Performs the calls of a tool that publishes.

    Args:
        node: The node.
        entry: The tool.
        cls: Type of the message.
        arguments: Its arguments.
    """

    unsent = 'nothing was published'

    def __init__(self, node: Any, entry: ToolEntry, cls: Any, arguments: Arguments):
        self._node, self._arguments = node, arguments
        self._publisher = node.create_publisher(cls, entry.target, QoSProfile(depth=_DEPTH))
        undo = Undoing(node, entry, cls, publisher=self._publisher)
        super().__init__(f'a listener to {self._publisher.topic_name}', undo)
        self.acts_on = bool(undo)

    def message(self, arguments: Mapping[str, Any]) -> Any:
        """Return the message of a call."""
        return self._arguments.message(arguments)

    def is_there(self) -> bool:
        """Return whether someone listens."""
        return self._publisher.get_subscription_count() > 0

    def send(self, message: Any, run: Reports) -> bool:
        """Publish the message."""
        stamp(message, self._node)
        self._publisher.publish(message)
        run.taken()
        run.succeed('done')
        return True

    def would(self, arguments: str) -> str:
        """Return what a call with these arguments would do."""
        return f'{arguments} would be published to {self._publisher.topic_name}'

    def close_request(self) -> None:
        """Close the publisher."""
        self._node.destroy_publisher(self._publisher)


class Reading(Performing):
    """Performs the calls of a tool that reads the newest message of a topic.

    The message is kept as it came, and decoded when the model asks for it.

    Args:
        node: The node.
        entry: The tool.
        cls: Type of the message.
    """

    def __init__(self, node: Any, entry: ToolEntry, cls: Any):
        super().__init__(entry.target)
        self._node, self._entry, self._cls = node, entry, cls
        self._topic = node.resolve_topic_name(entry.target)
        self._newest: tuple[bytes, float] | None = None
        self._lock = threading.Lock()
        self._latched = False
        self._subscription: Any = None
        self._subscribe()

    def _subscribe(self) -> None:
        """Subscribe so that every publisher matches, and a latched message arrives."""
        ends = self._node.get_publishers_info_by_topic(self._topic)
        self._latched = bool(ends) and all(
            end.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for end in ends
        )
        profile = QoSProfile(
            depth=1,
            reliability=ReliabilityPolicy.RELIABLE if self._latched else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if self._latched else DurabilityPolicy.VOLATILE,
        )
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        self._subscription = self._node.create_subscription(
            self._cls,
            self._topic,
            self._keep,
            profile,
            callback_group=ReentrantCallbackGroup(),
            event_callbacks=no_events(),
            raw=True,
        )

    def follow(self) -> None:
        """Subscribe again if the publishers turn out to keep their last message. Call this now and then."""
        if self._newest is None and not self._latched:
            ends = self._node.get_publishers_info_by_topic(self._topic)
            if ends and all(end.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for end in ends):
                self._subscribe()

    def _keep(self, data: bytes) -> None:
        self._newest = data, time.monotonic()

    def start(self, arguments: Mapping[str, Any], run: Reports) -> None:
        """Answer with the newest message, or with the first one that comes."""
        run.handle = time.monotonic() + self._entry.policy.timeout - _REASON
        run.taken()
        self.follow()
        self._answer(run)

    def _answer(self, run: Reports) -> None:
        newest = self._newest
        if newest is None:
            return
        data, arrived = newest
        age = time.monotonic() - arrived
        if self._entry.max_age is not None and age > self._entry.max_age and not self._latched:
            return
        message = deserialize_message(data, self._cls)
        run.succeed(json.dumps(to_data(message, self._entry.fields), ensure_ascii=False))

    def lost(self, run: Reports) -> str:
        """Answer if a message has come meanwhile. Return why there is none just before the time is up."""
        self._answer(run)
        return self._reason() if time.monotonic() >= run.handle else ''

    def _reason(self) -> str:
        newest = self._newest
        if newest is None:
            there = self._node.count_publishers(self._topic)
            return f'no message came on {self._topic}' + ('' if there else ': nobody publishes it')
        age = time.monotonic() - newest[1]
        return f'the last message on {self._topic} is {age:.1f} s old (max_age {self._entry.max_age:g})'

    def stop(self, run: Reports) -> None:
        """Wait no longer."""
        run.was_cancelled('it was not read')

    def would(self, arguments: str) -> str:
        """Return what a call would do."""
        return f'the newest message on {self._topic} would be read'

    def close_request(self) -> None:
        """Close the subscription."""
        self._node.destroy_subscription(self._subscription)
