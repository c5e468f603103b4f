"""The two topics of a camera, raw and compressed: their names, their QoS, and which publishers match.

Opens nothing; camera.py does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from sensor_msgs.msg import CompressedImage, Image

from ros2_nanochat.robot.camera_formats import compressed_to_rgb, image_to_rgb

_COMPRESSED = '/compressed'


@dataclass(frozen=True)
class CameraTopic:
    """One of the two topics.

    Attributes:
        transport: `raw` or `compressed`.
        given: Its name before remapping.
        name: Its name after remapping.
        kind: Its message type.
        decode: Converts a message to [h, w, 3] uint8 RGB.
        qos: QoS of its subscription.
    """

    transport: str
    given: str
    name: str
    kind: type
    decode: Callable[[Any], np.ndarray]
    qos: QoSProfile

    @property
    def type_name(self) -> str:
        """Name of the message type on the graph."""
        return _type_name(self.kind)

    def mismatch(self, publisher) -> str:
        """Return why messages of a publisher cannot arrive, '' if they can.

        Args:
            publisher: An endpoint of the graph.
        """
        who = _name_of(publisher)
        if publisher.topic_type != self.type_name:
            hint = f': remap {self.given}{_COMPRESSED} to it' if self._is_compressed(publisher) else ''
            return f'{who} publishes {publisher.topic_type} on {self.name}, not {self.type_name}{hint}'
        compatibility, reason = qos_check_compatible(publisher.qos_profile, self.qos)
        if compatibility != QoSCompatibility.ERROR:
            return ''
        reasons = [part.removeprefix('ERROR: ') for part in reason.split(';') if part.startswith('ERROR')]
        differs = ', '.join(part[:1].lower() + part[1:] for part in reasons)
        return (
            f'the QoS of {who} on {self.name} does not match: {differs} '
            f'(qos_overrides.{self.name}.subscription.* sets the subscription)'
        )

    def _is_compressed(self, publisher) -> bool:
        return self.transport == 'raw' and publisher.topic_type == _type_name(CompressedImage)

    def waits_in_vain(self, publisher) -> str:
        """Return why messages that a publisher sent earlier do not arrive, although later ones do; else ''.

        Args:
            publisher: An endpoint of the graph.
        """
        if publisher.topic_type != self.type_name or self.mismatch(publisher):
            return ''
        if publisher.qos_profile.durability != DurabilityPolicy.TRANSIENT_LOCAL:
            return ''
        if self.qos.durability == DurabilityPolicy.TRANSIENT_LOCAL:
            return ''
        prefix = f'qos_overrides.{self.name}.subscription.'
        return (
            f'{_name_of(publisher)} on {self.name} is transient_local, the '
            f'subscription is volatile and does not get what was sent before it: set '
            f'{prefix}durability to transient_local and {prefix}reliability to reliable'
        )


def camera_topics(node, prefix: str) -> tuple[dict[str, CameraTopic], tuple[str, ...]]:
    """Return the topics under a prefix by transport, and the transports that `auto` may use, in order.

    Declares the parameters that override their QoS. If `image` is remapped to a topic of compressed frames,
    only `compressed` is used.

    Args:
        node: The node.
        prefix: Prefix of the topics, which ends in `/`; else the topic of the raw images itself.
    """
    raw = f'{prefix}image' if prefix.endswith('/') else prefix
    compressed = raw + _COMPRESSED
    resolved = node.resolve_topic_name(raw)
    order: tuple[str, ...] = ('raw', 'compressed')
    if resolved.endswith(_COMPRESSED):
        # A topic named just `compressed` has no raw one: this name stands for one that nobody publishes.
        raw, compressed = resolved.removesuffix(_COMPRESSED) or f'{resolved}/raw', raw
        order = ('compressed',)
    topics = {}
    for transport, given, kind, decode in (
        ('raw', raw, Image, image_to_rgb),
        ('compressed', compressed, CompressedImage, compressed_to_rgb),
    ):
        name = node.resolve_topic_name(given)
        topics[transport] = CameraTopic(transport, given, name, kind, decode, _qos(node, name))
    return topics, order


def _type_name(kind: type) -> str:
    return f'sensor_msgs/msg/{kind.__name__}'


def identity_of(gid) -> bytes:
    """Return the part of a publisher's id that the graph and a message's info share."""
    return bytes(gid)[:16]


def _name_of(publisher) -> str:
    if 'UNKNOWN' in publisher.node_name:  # the graph shows a node a moment after its publishers
        return 'a publisher'
    return f'{publisher.node_namespace.rstrip("/")}/{publisher.node_name}'


def _qos(node, topic: str) -> QoSProfile:
    """Return the QoS of a subscription, according to its parameters.

    rclpy declares them only with a subscription, but we have to know before opening one whether it would
    match.
    """

    def value(policy: str, default):
        name = f'qos_overrides.{topic}.subscription.{policy}'
        if not node.has_parameter(name):
            what = ParameterDescriptor(description=f'{policy} for subscription `{topic}`', read_only=True)
            node.declare_parameter(name, default, what)
        return node.get_parameter(name).value

    return QoSProfile(
        history=HistoryPolicy[value('history', 'keep_last').upper()],
        depth=value('depth', 1),
        reliability=ReliabilityPolicy[value('reliability', 'best_effort').upper()],
        durability=DurabilityPolicy[value('durability', 'volatile').upper()],
    )
