"""The newest image of a camera, fetched only when a question needs it: a callback would copy every frame into
Python. The executor never touches the subscription: the transport keeps the newest frames, and `newest()`
takes them.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from dataclasses import dataclass, replace

from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.exceptions import InvalidHandle

from ros2_nanochat.robot.camera_formats import stamp_of
from ros2_nanochat.robot.freshness import ArrivalClock, Jump, age_of
from ros2_nanochat.robot.turn import Picture
from ros2_nanochat.ros.camera_topics import CameraTopic, camera_topics, identity_of
from ros2_nanochat.ros.spinning import Untouched

_FIRST_FRAME = 1.0  # seconds to wait for the first frame of a publisher that was just found
_QUIET = 1.0  # seconds without a frame before the other transport is tried
_NEEDED = 5.0  # seconds that a subscription stays open if only a question needed it
_LOOK = 0.02  # seconds between two looks at the graph while frames are requested
_KNOWN = 1000  # ids of publishers that are remembered
_JUMP_FORWARD = 10.0  # seconds; a simulation that runs faster than real time takes smaller steps
_numbers = itertools.count(1)  # of frames of all cameras: a conversation may change its camera


@dataclass(frozen=True)
class _Frame:
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


class Camera:
    """The topics `image` and `image/compressed` under a prefix. At most one of them is subscribed to.

    Args:
        node: The node.
        prefix: See `camera_topics`.
        wanted: Keep a subscription open. With False, `newest()` opens one, which is closed a while later.
        transport: `raw`, `compressed`, or `auto` for the one that is published.
        events: Callbacks for events of the subscription.
    """

    def __init__(self, node, prefix: str, wanted: bool = True, transport: str = 'auto', events=None):
        self._node, self._events = node, events
        self._lock = threading.RLock()
        self._topics, self._order = camera_topics(node, prefix)
        self._wanted, self._transport = wanted, transport
        self._open: CameraTopic | None = None
        self._subscription = None
        self._group = Untouched()
        self._kept: _Frame | None = None
        self._closed = False
        self._opened = 0.0  # when the subscription was opened
        self._quiet = ''  # a transport that is published but delivered no frame
        self._tried: set[str] = set()  # transports whose first frame we have already waited for
        self._expected_until = 0.0
        self._looked = -math.inf
        self._publishers: dict[str, list] = {}  # of each topic, according to the graph
        self._sources: dict[str, frozenset[bytes]] = {}  # their ids
        self._known: set[bytes] = set()  # all ids that publishers had
        self._needed = -math.inf  # when a question last needed a frame although `wanted` is False
        self._arrivals = ArrivalClock(time.time(), time.monotonic())
        self._jump: Jump | None = None
        self._jumps = node.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=Duration(seconds=_JUMP_FORWARD),
                min_backward=Duration(nanoseconds=-1),
                on_clock_change=True,
            ),
            post_callback=self._on_jump,
        )
        self.follow(wanted, transport)

    @property
    def present(self) -> bool:
        """Whether anyone publishes images. Can be used from any thread, also after `close()`."""
        return not self._closed and any(
            self._node.count_publishers(topic.name) for topic in self._topics.values()
        )

    @property
    def expecting(self) -> bool:
        """Whether a first frame may arrive at any moment because its publisher was just found."""
        with self._lock:
            return (
                self._open is not None
                and time.monotonic() < self._expected_until
                and bool(self._matching(self._open))
            )

    def follow(self, wanted: bool, transport: str) -> None:
        """Update the settings and the subscription. Call this regularly, from any thread.

        Args:
            wanted: See `Camera`.
            transport: See `Camera`.
        """
        with self._lock:
            if (wanted, transport) != (self._wanted, self._transport):
                self._wanted, self._transport = wanted, transport
                self._tried.clear()
            if wanted or self._open is not None:  # asking the graph takes long if there are many robots
                self._look()

    def newest(self) -> Picture | None:
        """Return the newest frame, not decoded; None before the first. Can be called from any thread."""
        with self._lock:
            if self._closed:
                return None
            if not self._wanted:
                self._needed = time.monotonic()
            if self._open is None or time.monotonic() - self._looked > _LOOK:
                self._look()
            self._take()
            now, steady = self._node.get_clock().now().nanoseconds, time.monotonic()
            kept = self._kept
            if self._open is not None and steady - max(self._opened, kept.arrived if kept else 0.0) > _QUIET:
                self._quiet = self._open.transport
                self._look()
            if kept is None:
                return None
            age, doubt = age_of(kept.picture.stamp, steady - kept.arrived, now)
            stamp = kept.picture.stamp or max(1, now - round((steady - kept.arrived) * 1e9))
            return replace(kept.picture, age=age, doubt=doubt, stamp=stamp)

    def trouble(self) -> str:
        """Return why no frame arrives, as far as the publishers show; '' if nothing is wrong."""
        with self._lock:
            self._look()
            used = [self._topics[transport] for transport in self._candidates()]
            ends = [(topic, end) for topic in used for end in self._publishers[topic.name]]
            if not ends:
                others = ', '.join(topic.name for topic in self._topics.values() if topic not in used)
                if self._transport == 'auto':
                    return (
                        f'nobody publishes {used[0].name}, to which image is remapped, but {others}: use that'
                    )
                return f'image_transport is {self._transport}, and only {others} is published'
            wrong = [topic.mismatch(end) or topic.waits_in_vain(end) for topic, end in ends]
            return '; '.join(dict.fromkeys(filter(None, wrong)))

    def close(self) -> None:
        """Close the subscription."""
        with self._lock:
            self._closed = True
            self._jumps.unregister()
            self._switch(None)

    # --- which topic ---

    def _candidates(self) -> tuple[str, ...]:
        return self._order if self._transport == 'auto' else (self._transport,)

    def _matching(self, topic: CameraTopic) -> list:
        return [end for end in self._publishers[topic.name] if not topic.mismatch(end)]

    def _look(self) -> None:
        """Update what is known of the graph and the clocks."""
        steady = self._looked = time.monotonic()
        clock = self._node.get_clock()
        if self._arrivals.look(time.time(), steady):
            self._take()
            if not clock.ros_time_is_active:
                self._jump = Jump(steady, clock.now().nanoseconds)
        for topic in self._topics.values():
            ends = self._publishers[topic.name] = self._node.get_publishers_info_by_topic(topic.name)
            sources = frozenset(identity_of(end.endpoint_gid) for end in ends)
            if sources != self._sources.get(topic.name):
                if topic is self._open and topic.name in self._sources:
                    self._take()  # what has arrived is of the publishers before
                self._sources[topic.name], self._quiet = sources, ''
                self._known = (self._known if len(self._known) < _KNOWN else set()) | sources
                self._tried.clear()
                self._expect()
        if self._kept is not None:
            kept = self._attributed(self._kept)
            self._kept = None if self._is_outdated(kept) else kept
        self._switch(self._choice(steady))

    def _choice(self, steady: float) -> CameraTopic | None:
        if self._closed or not (self._wanted or steady - self._needed < _NEEDED):
            return None
        topics = [self._topics[transport] for transport in self._candidates()]
        matching = [topic for topic in topics if self._matching(topic)]
        for topic in matching:
            if topic.transport != self._quiet:
                return topic
        return matching[0] if matching else self._open if self._open in topics else topics[0]

    def _switch(self, topic: CameraTopic | None) -> None:
        if topic is self._open:
            return
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
        self._open, self._opened = topic, time.monotonic()
        if topic is None:
            self._kept = None
            self._tried.clear()
            return
        self._subscription = self._node.create_subscription(
            topic.kind,
            topic.given,
            self._unused,
            topic.qos,
            callback_group=self._group,
            event_callbacks=self._events,
        )
        self._expect()

    def _expect(self) -> None:
        """Allow waiting for a first frame, once: questions do not wait again if none came."""
        if self._open is not None and self._open.transport not in self._tried:
            self._expected_until = time.monotonic() + _FIRST_FRAME
            if self._sources[self._open.name]:
                self._tried.add(self._open.transport)

    def _unused(self, message):
        """Never called, but create_subscription needs a callback."""

    # --- which frame ---

    def _take(self) -> None:
        """Take all frames that have arrived. The last one is the newest, whatever its stamp."""
        topic, subscription, until = self._open, self._subscription, time.monotonic()
        taken = last = None
        while subscription is not None:
            try:
                with subscription.handle:
                    taken = subscription.handle.take_message(topic.kind, False)
            except InvalidHandle:
                break  # its node is being destroyed
            if taken is None:
                break
            last = taken
            if self._arrivals.steady(taken[1]['received_timestamp']) >= until:
                break  # frames that arrive meanwhile are for the next question
        if last is None:
            return
        frame = self._attributed(self._frame(topic, *last))
        if not self._is_outdated(frame):
            self._kept, self._expected_until = frame, 0.0
            self._tried.clear()

    def _frame(self, topic: CameraTopic, message, info) -> _Frame:
        source = identity_of(info['publisher_gid']['data']) if 'publisher_gid' in info else b''
        return _Frame(
            Picture(
                lambda: topic.decode(message),
                stamp_of(message),
                message.header.frame_id,
                number=next(_numbers),
                sequence=info.get('publication_sequence_number') or 0,
            ),
            self._arrivals.steady(info['received_timestamp']),
            topic.name,
            source,
        )

    def _attributed(self, frame: _Frame) -> _Frame:
        """Return a frame with its publishers, which the graph may show later than their first frame."""
        # Older rclpy has no GID, and some middlewares use another one than the graph.
        if frame.source in self._known:
            return replace(frame, publishers=frozenset([frame.source]))
        return frame if frame.publishers else replace(frame, publishers=self._sources[frame.topic])

    def _is_outdated(self, frame: _Frame) -> bool:
        """Whether time has jumped since, or the frame's publisher was replaced by others.

        If there are no publishers, `present` is False and nobody asks for a frame.
        """
        jump = self._jump
        if jump is not None and jump.outdates(frame.picture.stamp, frame.arrived):
            return True
        return any(self._sources.values()) and not frame.publishers <= self._sources[frame.topic]

    def _on_jump(self, jump: TimeJump) -> None:
        """Called by the node's clock, so it must not wait for a lock."""
        now = self._node.get_clock().now().nanoseconds
        if now != jump.delta.nanoseconds:  # else a simulation's clock has just started
            self._jump = Jump(time.monotonic(), now)
