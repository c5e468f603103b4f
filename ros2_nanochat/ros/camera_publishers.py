"""The publishers of a camera's topics, as the graph shows them, and which of them sent a frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ros2_nanochat.robot.turn import Picture
from ros2_nanochat.ros.camera_topics import CameraTopic, identity_of

_KNOWN = 1000  # ids of publishers that are remembered


@dataclass(frozen=True)
class Frame:
    """The frame that was taken last.

    Attributes:
        arrived: When it arrived, in `time.monotonic()`.
        source: Id of the publisher according to the message.
        publishers: Ids of the publishers that may have sent it; none if the graph showed none at that time.
    """

    picture: Picture
    arrived: float
    topic: str
    source: bytes
    publishers: frozenset[bytes] = frozenset()


class Publishers:
    """The publishers of the topics of one camera. Not thread-safe: the owner holds a lock.

    Args:
        node: The node.
    """

    def __init__(self, node):
        self._node = node
        self._ends: dict[str, list] = {}  # of each topic
        self._sources: dict[str, frozenset[bytes]] = {}  # their ids
        self._known: set[bytes] = set()  # all ids that publishers had

    def look(self, topic: CameraTopic) -> frozenset[bytes] | None:
        """Ask the graph. Return the ids of a topic's publishers if they have changed: `note` takes them over.

        Args:
            topic: The topic.
        """
        ends = self._ends[topic.name] = self._node.get_publishers_info_by_topic(topic.name)
        sources = frozenset(identity_of(end.endpoint_gid) for end in ends)
        return None if sources == self._sources.get(topic.name) else sources

    def note(self, topic: CameraTopic, sources: frozenset[bytes]) -> None:
        """Take over the ids of a topic's publishers."""
        self._sources[topic.name] = sources
        self._known = (self._known if len(self._known) < _KNOWN else set()) | sources

    def ends(self, topic: CameraTopic) -> list:
        """Return the endpoints of a topic's publishers."""
        return self._ends[topic.name]

    def matching(self, topic: CameraTopic) -> list:
        """Return the endpoints whose messages can arrive."""
        return [end for end in self._ends[topic.name] if not topic.mismatch(end)]

    def of(self, topic: CameraTopic) -> frozenset[bytes] | None:
        """Return the ids of a topic's publishers; None before the first look."""
        return self._sources.get(topic.name)

    def knows(self, frame: Frame) -> bool:
        """Whether the graph has shown the publisher of a frame."""
        return frame.source in self._known

    def attributed(self, frame: Frame) -> Frame:
        """Return a frame with its publishers, which the graph may show later than their first frame."""
        # Older rclpy has no GID, and some middlewares use another one than the graph.
        if frame.source in self._known:
            known = frozenset([frame.source])
            return frame if frame.publishers == known else replace(frame, publishers=known)
        return frame if frame.publishers else replace(frame, publishers=self._sources[frame.topic])

    def have_gone(self, frame: Frame) -> bool:
        """Whether the publishers of a frame were replaced by others."""
        return any(self._sources.values()) and not frame.publishers <= self._sources[frame.topic]
