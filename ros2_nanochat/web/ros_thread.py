"""The ROS side of the page: one thread that opens what pages show, closes the rest, and takes what arrives.

Only this thread creates and destroys subscriptions and clients.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor

from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.watch import IMAGE
from ros2_nanochat.ros.spinning import spin
from ros2_nanochat.web.as_json import to_value
from ros2_nanochat.web.camera_feed import CameraFeed, Source
from ros2_nanochat.web.diagnostics import node_of
from ros2_nanochat.web.robot_link import RobotLink
from ros2_nanochat.web.taps import Tap

_EVERY = 0.125  # seconds between two looks at what has arrived: each wakes both this thread and the server
_LOOK = 1.0  # seconds between two looks at the graph, and at what is to be closed or tried again
_IDLE = 1.0  # seconds between two rounds without any page
_TRY_AGAIN = 5.0  # seconds after which something is opened again that failed
_GRACE = 3.0  # seconds that a robot's topics stay open after the last page, which may just be reloading
_STREAMS = 3.0  # seconds between two pieces of one reply; large models are slow
_LONG_PREFIX = 250  # characters; DDS has no longer topics
_TURN, _TURN_TYPE = '/turn', 'nanochat/msg/Turn'

Arrived = tuple[str, str, Any]
"""What has arrived: its kind, the prefix of the robot's topics, and its value."""


@dataclass(frozen=True)
class Wanted:
    """What pages show.

    Attributes:
        any_page: Whether there is a page at all.
        robots: Robots that are shown: prefix of the topics, and name of the node.
        cameras: Cameras that are shown.
    """

    any_page: bool = False
    robots: frozenset[tuple[str, str]] = frozenset()
    cameras: frozenset[Source] = frozenset()


class RosThread:
    """Follows `want()` and hands on everything that arrives, in batches.

    Args:
        node: The node; its callbacks run on a second thread.
        deliver: Called on this thread with what has arrived, a list of (kind, prefix, value).
        camera_rate: Camera pictures per second at most.

    Attributes:
        links: The robots that are open, by prefix. Replaced as a whole, never changed.
        cameras: The same for cameras, by what they are.
        known_cameras: The topics of a robot's cameras by name, as its node tells. Set by the server.
    """

    def __init__(self, node, deliver: Callable[[list[Arrived]], None], camera_rate: float):
        self._node, self._deliver, self._camera_rate = node, deliver, camera_rate
        self._arrived: list[Arrived] = []
        self._arriving = threading.Lock()
        self._streamed = -math.inf  # when a reply brought something
        self.links: dict[str, RobotLink] = {}
        self.cameras: dict[Source, CameraFeed] = {}
        self.known_cameras: dict[str, dict[str, str]] = {}
        self._wanted = Wanted()
        self._until: dict[Hashable, float] = {}  # when to close what is no longer wanted
        self._failed: dict[Hashable, float] = {}  # when to try again what could not be opened
        self._diagnostics: Tap | None = None
        self._looked = -math.inf
        self._changed, self._end = threading.Event(), threading.Event()
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._threads = [
            threading.Thread(target=spin, args=(self._executor, node.get_logger()), name='ros', daemon=True),
            threading.Thread(target=self._run, name='robots', daemon=True),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def want(self, wanted: Wanted) -> None:
        """Open and close what is needed. Returns at once."""
        self._wanted = wanted
        self._changed.set()

    def close(self) -> None:
        """Close everything and end the threads. They may not have been started."""
        if not self._threads[0].is_alive():
            return
        self._end.set()
        self._changed.set()
        self._threads[1].join(5.0)
        self._executor.shutdown(timeout_sec=1.0)
        self._threads[0].join(1.0)

    def report(self, error: Exception) -> None:
        """Log an error that the rest goes on after."""
        self._node.get_logger().error(f'the page: {one_line(repr(error))}', throttle_duration_sec=5.0)

    def _run(self) -> None:
        changed = True
        while not self._end.is_set():
            try:
                try:
                    now = time.monotonic()
                    if changed or now - self._looked >= _LOOK:
                        self._follow(self._wanted)
                    if self._wanted.any_page and now - self._looked >= _LOOK:
                        self._looked = now
                        self._look()
                    self._take()
                finally:  # else what cameras bring would pile up for as long as the rest fails
                    self._hand_on()
            except Exception as error:
                if not self._node.context.ok():
                    break
                self.report(error)
            changed = self._changed.wait(_EVERY if self.links or self.cameras else _IDLE)
            if changed:  # what is wanted after a vain wait is for the next one
                self._changed.clear()
        self._follow(Wanted(), grace=0.0)

    def _follow(self, wanted: Wanted, grace: float = _GRACE) -> None:
        if wanted.any_page and self._diagnostics is None:
            self._diagnostics = Tap(self._node, DiagnosticArray, '/diagnostics', self._diagnosed, 100)
        elif not wanted.any_page and self._diagnostics is not None and not self.links:
            self._diagnostics.close()
            self._diagnostics = None
        # A camera costs more than the other topics: it closes at once.
        self.cameras = self._updated(
            self.cameras,
            wanted.cameras,
            0.0,
            lambda source: CameraFeed(self._node, source, self._camera_rate, self._put, self.is_streaming),
        )
        owners = dict(wanted.robots)
        self.links = self._updated(
            self.links,
            owners,
            grace,
            lambda prefix: RobotLink(self._node, prefix, owners[prefix], self._put, self.report),
        )
        for prefix, link in self.links.items():
            if prefix in owners:
                link.follow(owners[prefix])

    def _updated(self, is_open: dict, wanted: Collection[Any], grace: float, make: Callable) -> dict:
        now = time.monotonic()
        after = {}
        for key, feed in is_open.items():
            if key in wanted:
                self._until.pop(key, None)
            elif now >= (self._until.setdefault(key, now + grace) if grace else 0.0):
                self._until.pop(key, None)
                feed.close()
                continue
            after[key] = feed
        for key in wanted:
            if key not in after and now >= self._failed.get(key, 0.0):
                try:
                    after[key] = make(key)
                except Exception as error:  # the other robots and cameras go on
                    self._failed[key] = now + _TRY_AGAIN
                    self.report(error)
        return after

    def _look(self) -> None:
        topics = dict(self._node.get_topic_names_and_types())
        robots = {}
        for topic, types in topics.items():
            prefix = topic.removesuffix(_TURN)
            if prefix and prefix != topic and _TURN_TYPE in types and len(prefix) <= _LONG_PREFIX:
                try:
                    found = self._robot(prefix)
                except Exception as error:
                    # Programs that are not of ROS may name topics as they like; the other robots go on.
                    self.report(error)
                    continue
                if found is not None:
                    robots[prefix] = found
        self._put(('graph', '', robots))

    def _robot(self, prefix: str) -> dict[str, Any] | None:
        """What the graph has of a robot, None if nobody publishes its turns."""
        ends = self._node.get_publishers_info_by_topic(f'{prefix}{_TURN}')
        if not ends:
            return None
        leaf = prefix.rpartition('/')[2]
        own = [end for end in ends if end.node_name == leaf and prefix.startswith(_space(end) + '/')]
        cameras = self.known_cameras.get(prefix) or {IMAGE: f'{prefix}/{IMAGE}'}
        return {
            'node': f'{_space(own[0])}/{leaf}' if own else prefix,
            'ends': frozenset(bytes(end.endpoint_gid) for end in own),
            'cameras': {name: at for name, at in cameras.items() if self._is_published(at)},
            'watches': bool(self._node.count_publishers(f'{prefix}/watches')),
        }

    def _is_published(self, camera: str) -> bool:
        names = (self._node.resolve_topic_name(name) for name in (camera, f'{camera}/compressed'))
        return any(map(self._node.count_publishers, names))

    def _take(self) -> None:
        for source in (self._diagnostics, *self.links.values()):
            try:
                if source is not None:
                    source.take()
            except Exception as error:  # the other robots go on
                self.report(error)

    def _put(self, arrived: Arrived) -> None:
        """Keep something until the next batch. Cameras call this from threads of their own."""
        with self._arriving:
            self._arrived.append(arrived)

    def _hand_on(self) -> None:
        with self._arriving:
            batch, self._arrived = self._arrived, []
        if any(kind == 'tokens' for kind, _, _ in batch):
            self._streamed = time.monotonic()
        if batch:
            self._deliver(batch)

    def is_streaming(self) -> bool:
        """Return whether a reply has just brought something."""
        return time.monotonic() - self._streamed < _STREAMS

    def _diagnosed(self, messages: list[DiagnosticArray]) -> None:
        # Others publish here, too, perhaps much: only chat nodes' statuses are converted.
        for message in messages:
            name = node_of((status.name, status.hardware_id) for status in message.status)
            if name is not None:
                own = [status for status in message.status if status.hardware_id == name]
                self._put(('diagnostics', '', to_value(own)))


def _space(end) -> str:
    """Namespace of the node that has an end of a topic, '' for that of the root."""
    return end.node_namespace.rstrip('/')
