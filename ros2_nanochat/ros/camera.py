"""The newest image of a camera, fetched only when a question needs it: a callback would copy every frame into
Python. The executor never touches the subscription: the transport keeps the newest frames, and `newest()`
takes them.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from dataclasses import replace

from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.exceptions import InvalidHandle

from ros2_nanochat.robot.camera_formats import stamp_of
from ros2_nanochat.robot.freshness import ArrivalClock, Jump, age_of
from ros2_nanochat.robot.turn import Picture
from ros2_nanochat.ros.camera_publishers import Frame, Publishers
from ros2_nanochat.ros.camera_topics import CameraTopic, camera_topics, identity_of
from ros2_nanochat.ros.endpoint_events import no_events
from ros2_nanochat.ros.spinning import Untouched

_FIRST_FRAME = 1.0  # seconds to wait for the first frame of a publisher that was just found
_QUIET = 1.0  # seconds without a frame before the other transport is tried
_NEEDED = 5.0  # seconds that a subscription stays open if only a question needed it
_LOOK = 0.02  # seconds between two looks at the graph while frames are requested
_FLOWING = 0.25  # seconds without such a look while frames come: it takes as long as comparing two frames
_JUMP_FORWARD = 10.0  # seconds; a simulation that runs faster than real time takes smaller steps
_numbers = itertools.count(1)  # of frames of all cameras: a conversation may change its camera


class Camera:
    """The topics `image` and `image/compressed` under a prefix. At most one of them is subscribed to.

    Args:
        node: The node.
        prefix: See `camera_topics`.
        wanted: Keep a subscription open. With False, `newest()` opens one, which is closed a while later.
        transport: `raw`, `compressed`, or `auto` for the one that is published.
    """

    def __init__(self, node, prefix: str, wanted: bool = True, transport: str = 'auto'):
        self._node = node
        self._lock = threading.RLock()
        self._topics, self._order = camera_topics(node, prefix)
        self._wanted, self._transport = wanted, transport
        self._open: CameraTopic | None = None
        self._subscription = None
        self._group = Untouched()
        self._kept: Frame | None = None
        self._closed = False
        self._opened = 0.0  # when the subscription was opened
        self._quiet = ''  # a transport that is published but delivered no frame
        self._tried: set[str] = set()  # transports whose first frame we have already waited for
        self._expected_until = 0.0
        self._looked = -math.inf
        self._publishers = Publishers(node)
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
                and bool(self._publishers.matching(self._open))
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
            unlooked = time.monotonic() - self._looked
            if self._open is None or unlooked > (_FLOWING if self._flows else _LOOK):
                self._look()
            else:
                self._look_at_clock()
                self._drop_outdated()
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
            ends = [(topic, end) for topic in used for end in self._publishers.ends(topic)]
            if not ends:
                others = ', '.join(each.name for each in self._topics.values() if self._publishers.ends(each))
                if not others:
                    return ''  # the publisher has just gone
                if self._transport == 'auto':
                    return (
                        f'nobody publishes {used[0].name}, to which image is remapped, but {others}: use that'
                    )
                return f'image_transport is {self._transport}, and only {others} is published'
            wrong = [topic.mismatch(end) for topic, end in ends]
            if self._kept is None:
                wrong += [topic.waits_in_vain(end) for topic, end in ends]
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

    @property
    def _flows(self) -> bool:
        """Whether frames of a known publisher come: then the graph has hardly changed."""
        kept = self._kept
        if kept is None or time.monotonic() - kept.arrived > _FLOWING:
            return False
        return self._publishers.knows(kept)

    def _look_at_clock(self) -> None:
        """Notice that the system clock was set."""
        steady, clock = time.monotonic(), self._node.get_clock()
        if self._arrivals.look(time.time(), steady):
            self._take()
            if not clock.ros_time_is_active:
                self._jump = Jump(steady, clock.now().nanoseconds)

    def _look(self) -> None:
        """Update what is known of the graph and the clocks."""
        self._look_at_clock()
        steady = self._looked = time.monotonic()
        for topic in self._topics.values():
            sources = self._publishers.look(topic)
            if sources is not None:
                if topic is self._open and self._publishers.of(topic) is not None:
                    self._take()  # what has arrived is of the publishers before
                self._publishers.note(topic, sources)
                self._quiet = ''
                self._tried.clear()
                self._expect()
        self._drop_outdated()
        self._switch(self._choice(steady))

    def _choice(self, steady: float) -> CameraTopic | None:
        if self._closed or not (self._wanted or steady - self._needed < _NEEDED):
            return None
        topics = [self._topics[transport] for transport in self._candidates()]
        matching = [topic for topic in topics if self._publishers.matching(topic)]
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
            event_callbacks=no_events(),
        )
        self._expect()

    def _expect(self) -> None:
        """Allow waiting for a first frame, once: questions do not wait again if none came."""
        if self._open is not None and self._open.transport not in self._tried:
            self._expected_until = time.monotonic() + _FIRST_FRAME
            if self._publishers.of(self._open):
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
        frame = self._publishers.attributed(self._frame(topic, *last))
        if not self._is_outdated(frame):
            self._kept, self._expected_until = frame, 0.0
            self._tried.clear()

    def _frame(self, topic: CameraTopic, message, info) -> Frame:
        source = identity_of(info['publisher_gid']['data']) if 'publisher_gid' in info else b''
        arrived = self._arrivals.steady(info['received_timestamp'])
        return Frame(
            Picture(
                lambda: topic.decode(message),
                stamp_of(message),
                message.header.frame_id,
                number=next(_numbers),
                sequence=info.get('publication_sequence_number') or 0,
                arrived=arrived,
            ),
            arrived,
            topic.name,
            source,
        )

    def _drop_outdated(self) -> None:
        if self._kept is not None:
            kept = self._publishers.attributed(self._kept)
            self._kept = None if self._is_outdated(kept) else kept

    def _is_outdated(self, frame: Frame) -> bool:
        """Whether its transport may no longer be used, time has jumped since, or its publisher was replaced.

        If there are no publishers, `present` is False and nobody asks for a frame.
        """
        if all(frame.topic != self._topics[transport].name for transport in self._candidates()):
            return True
        jump = self._jump
        if jump is not None and jump.outdates(frame.picture.stamp, frame.arrived):
            return True
        return self._publishers.have_gone(frame)

    def _on_jump(self, jump: TimeJump) -> None:
        """Called by the node's clock, so it must not wait for a lock."""
        now = self._node.get_clock().now().nanoseconds
        if now != jump.delta.nanoseconds:  # else a simulation's clock has just started
            self._jump = Jump(time.monotonic(), now)
