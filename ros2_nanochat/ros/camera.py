"""The newest image of a camera, fetched when a question needs it and not before.

A callback would copy every frame into Python, which costs a whole core at 1080p. Here the executor never
touches the subscription: the transport keeps the newest frame (depth 1), and `newest()` takes it.
"""

from __future__ import annotations

import threading

from rclpy.callback_groups import CallbackGroup
from rclpy.exceptions import InvalidHandle
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

from ros2_nanochat.robot.camera_formats import compressed_to_rgb, image_to_rgb, stamp_of
from ros2_nanochat.robot.turn import Picture


class _Never(CallbackGroup):
    """Holds subscriptions that the executor must leave alone."""

    def can_execute(self, entity):
        return False

    def beginning_execution(self, entity):
        return False

    def ending_execution(self, entity):
        pass


class Camera:
    """The topics `image` and `image/compressed` under a prefix; of both the newer frame counts."""

    def __init__(self, node, prefix: str):
        self._node = node
        self._lock = threading.Lock()
        self._kept: Picture | None = None
        self._closed = False
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        group = _Never()
        self._subscriptions = [
            (
                node.create_subscription(
                    kind,
                    prefix + name,
                    self._unused,
                    qos,
                    callback_group=group,
                    qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                ),
                kind,
                convert,
            )
            for kind, name, convert in (
                (Image, 'image', image_to_rgb),
                (CompressedImage, 'image/compressed', compressed_to_rgb),
            )
        ]
        self._topics = [subscription.topic_name for subscription, _, _ in self._subscriptions]

    def _unused(self, message):
        """Never called; create_subscription wants one."""

    @property
    def present(self) -> bool:
        """Whether somebody publishes images. Any thread, closed or not."""
        return not self._closed and any(map(self._node.count_publishers, self._topics))

    def newest(self) -> Picture | None:
        """The newest frame, not decoded, or None before the first. Any thread."""
        with self._lock:
            for subscription, kind, convert in self._subscriptions:
                try:
                    with subscription.handle:
                        taken = subscription.handle.take_message(kind, False)
                except InvalidHandle:
                    return None  # closed meanwhile
                if taken is not None:
                    picture = self._picture(*taken, convert)
                    if self._kept is None or picture.stamp >= self._kept.stamp or self._kept.stamp == 0:
                        self._kept = picture
            kept = self._kept
            return (
                None
                if kept is None
                else Picture(kept.decode, kept.stamp, kept.frame_id, self._age(kept.stamp))
            )

    def _picture(self, message, info, convert) -> Picture:
        # A camera without a clock sends no stamp; the time of arrival then stands for it.
        stamp = stamp_of(message) or info['received_timestamp']
        return Picture(lambda: convert(message), stamp, message.header.frame_id)

    def _age(self, stamp: int) -> float | None:
        return max(0.0, (self._node.get_clock().now().nanoseconds - stamp) / 1e9) if stamp else None

    def close(self) -> None:
        self._closed = True
        for subscription, _, _ in self._subscriptions:
            self._node.destroy_subscription(subscription)
