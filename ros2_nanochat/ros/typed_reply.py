"""Forms of answers in ROS: reads them from parameters and goals, writes them into goals, and publishes
answers as messages of their own type.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rclpy.qos import QoSProfile

from ros2_nanochat.answer.cache import BoundedCache
from ros2_nanochat.answer.response_format import FILES, ResponseFormat, read_response_format
from ros2_nanochat.config import RobotOptions
from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.ros.endpoint_events import PublisherEventCallbacks
from ros2_nanochat.ros.message_schema import read_format
from ros2_nanochat.ros.message_types import is_message_type, type_name

_DEPTH = 1000
_read: BoundedCache[ResponseFormat | None] = BoundedCache(most=256, most_bytes=4 << 20)
"""Forms by their text: a change of one parameter reads the forms of all robots."""


def with_form(options: RobotOptions, files: bool) -> RobotOptions:
    """Return the options with their `response_format` read, so that errors are found now.

    Args:
        options: Options of a robot or a turn.
        files: The form may be a file, which only the node's owner may name.

    Raises:
        ValueError: The form is unknown, malformed or impossible.
    """
    value = options.generation.response_format
    if isinstance(value, str):
        form = _read.get(
            (value, files, _version(value) if files else None),
            len(value),
            lambda: read_format(value, files),
        )
    else:
        form = read_format(value, files)
    if form is value:
        return options
    return replace(options, generation=replace(options.generation, response_format=form))


def _version(text: str) -> tuple | None:
    """Which version of a file a text names, None if it names none."""
    if not text.strip().endswith(FILES):
        return None
    try:
        found = os.stat(os.path.expanduser(text.strip()))
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def form_text(value: Any) -> str:
    """Return a form as text for the field of a goal.

    Raises:
        ValueError: It cannot be written as text.
    """
    if value is None or isinstance(value, str):
        return value or ''
    if is_message_type(value):
        return type_name(value).replace('/', '/msg/')
    if isinstance(value, Mapping):
        data = dict(value)
        if is_message_type(data.get('ros_type')):
            data['ros_type'] = form_text(data['ros_type'])
        return json.dumps(data)
    form = value if isinstance(value, ResponseFormat) else read_response_format(value)
    if form is None:
        return ''
    if form.alternatives:
        if any(' | ' in text for text in form.alternatives):
            raise ValueError(
                "response_format: an alternative of a choice holds ' | ', which stands between them"
            )
        return ' | '.join(form.alternatives)
    if form.schema is None:
        raise ValueError('response_format: write this form as text')
    return json.dumps(form.schema)


class TypedReply:
    """The topic `typed_reply` of a robot.

    It has the type of the robot's form, and is open only while that is a ROS type.

    Args:
        node: The node.
        topic: Name of the topic.
    """

    def __init__(self, node, topic: str):
        self._node, self._topic = node, topic
        self._lock = threading.Lock()  # the topic is opened on one thread and used on another
        self._type: Any = None
        self._publisher: Any = None

    def follow(self, options: RobotOptions) -> None:
        """Open, change or close the topic according to the robot's options. Call this regularly."""
        form = options.generation.response_format
        wanted = form.target if isinstance(form, ResponseFormat) else None
        wanted = wanted if is_message_type(wanted) else None
        if wanted is self._type:
            return
        self.close()
        with self._lock:
            if wanted is not None:
                # rclpy's own event handlers keep a publisher until the executor wakes, and as long as the one
                # before is there, the topic cannot have another type
                no_events = PublisherEventCallbacks(use_default_callbacks=False)
                self._publisher = self._node.create_publisher(
                    wanted, self._topic, QoSProfile(depth=_DEPTH), event_callbacks=no_events
                )
            self._type = wanted

    def publish(self, turn: Turn) -> None:
        """Publish the answer of a turn if it is complete and a message of the topic's type."""
        message: Any = turn.parsed
        with self._lock:
            if self._publisher is None or not turn.valid or type(message) is not self._type:
                return
            if message.get_fields_and_field_types().get('header') == 'std_msgs/Header':
                message.header.stamp = self._node.get_clock().now().to_msg()
            self._publisher.publish(message)

    def close(self) -> None:
        """Close the topic."""
        with self._lock:
            if self._publisher is not None:
                self._node.destroy_publisher(self._publisher)
            self._type = self._publisher = None
