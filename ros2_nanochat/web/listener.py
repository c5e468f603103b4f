"""Takes what ROS brings: which robots there are, their diagnostics, conversations, tools and cameras."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ros2_nanochat.web.diagnostics import Diagnostics
from ros2_nanochat.web.robot_link import RobotLink
from ros2_nanochat.web.robot_view import RobotView
from ros2_nanochat.web.turn_log import FRESH

if TYPE_CHECKING:
    from ros2_nanochat.web.pages import Pages

_MAX_ROBOTS = 500
_HISTORY_SECONDS = 60.0
_CAMERAS_SECONDS = 5.0  # between two questions for the cameras of a robot
_GONE = 'the node of this robot has gone'


class Listener:
    """Keeps the robots of all pages up to date.

    Args:
        pages: Has the robots and the pages that are told.
    """

    def __init__(self, pages: Pages):
        self._pages = pages
        self._diagnostics = Diagnostics()
        self._called: set[str] = set()  # robots whose tool calls have changed
        self._heard: dict[str, Callable[[RobotView, Any], None]] = {
            'tokens': self._token,
            'turn': self._turn,
            'tool_calls': self._call,
            'watches': lambda view, value: pages.tell(view.prefix, view.watched(value)),
            'observations': lambda view, value: pages.tell(view.prefix, view.observed(value)),
            'camera': lambda view, frame: pages.show_frame(view.prefix, *frame),
            'no camera': lambda view, what: pages.tell(
                view.prefix, {'type': 'camera', 'name': what[0], 'trouble': what[1]}
            ),
        }

    def deliver(self, batch: Iterable[tuple[str, str, Any]]) -> None:
        """Take over what has arrived, as (kind, prefix, value)."""
        for kind, prefix, value in batch:
            try:
                self._take(kind, prefix, value)
            except Exception as error:  # what one robot sends must not cost the others theirs
                self._pages.ros.report(error)
        self._follow_calls()

    def _take(self, kind: str, prefix: str, value: Any) -> None:
        if kind == 'graph':
            self._graph(value)
        elif kind == 'diagnostics':
            self._diagnosed(value)
        elif prefix in self._pages.views:
            self._heard[kind](self._pages.views[prefix], value)

    # --- which robots there are, and how they are ---

    def _graph(self, robots: dict[str, dict[str, Any]]) -> None:
        views, pages = self._pages.views, self._pages
        for prefix, found in list(robots.items())[:_MAX_ROBOTS]:
            view = views.setdefault(prefix, RobotView(prefix))
            view.node, view.cameras, view.has_watches = found['node'], found['cameras'], found['watches']
            view.present = True
            if found['ends'] - view.ends and view.ends:  # of its node, which was started again
                view.known = False
                pages.tell(prefix, *view.log.all_lost(_GONE))
            view.ends = found['ends']
            if pages.shown_by(prefix):
                self._follow_cameras(view)
            if pages.shown_by(prefix) and not (view.known and view.link is pages.ros.links.get(prefix)):
                self.learn(view)
        for prefix, view in list(views.items()):
            if prefix in robots:
                continue
            if view.present:
                view.present = view.known = False
                pages.tell(prefix, *view.log.all_lost(_GONE))
            if not view.asking and not pages.shown_by(prefix):
                del views[prefix]
                pages.ros.known_cameras.pop(prefix, None)
        self._diagnostics.forget_old()
        pages.follow()
        pages.tell_all(self.fleet())

    def _follow_cameras(self, view: RobotView) -> None:
        """Ask a robot's node now and then for the names and topics of its cameras."""
        now = time.monotonic()
        link = self._pages.ros.links.get(view.prefix)
        if link is not None and now >= view.cameras_due:
            view.cameras_due = now + _CAMERAS_SECONDS
            self._pages.background(self._learn_cameras(view.prefix, link))

    async def _learn_cameras(self, prefix: str, link: RobotLink) -> None:
        try:
            self._pages.ros.known_cameras[prefix] = await asyncio.to_thread(link.cameras)
        except Exception:  # of any kind: the node does not answer yet, or is closed just now
            pass

    def fleet(self) -> dict[str, Any]:
        """Return the event that lists all robots and nodes."""
        robots = []
        for prefix, view in sorted(self._pages.views.items()):
            told = self._diagnostics.of_robot(prefix, view.node)
            node, status = told if told is not None else ('', None)
            robots.append(
                {
                    'prefix': prefix,
                    'name': view.name,
                    'node': node,
                    'present': view.present,
                    'silent': bool(node) and self._diagnostics.is_silent(node),
                    'cameras': list(view.cameras),
                    'watches': view.has_watches,
                    'status': status,
                }
            )
        return {'type': 'fleet', 'robots': robots, 'nodes': self._diagnostics.nodes()}

    def _diagnosed(self, statuses: list[dict[str, Any]]) -> None:
        self._diagnostics.take(statuses)
        for prefix, view in self._pages.views.items():
            told = self._diagnostics.of_robot(prefix, view.node)
            if told is not None and self._pages.shown_by(prefix):
                sample = self._diagnostics.newest(told[0], prefix)
                self._pages.tell(prefix, {'type': 'figures', 'samples': [sample] if sample else []})
                if view.shrank(told[1]['values'].get('messages', '')) and view.known:
                    self._pages.background(self._learn_twice(view))

    def figures(self, prefix: str) -> list[dict[str, Any]]:
        """Return the events with the latest figures of a robot's node."""
        view = self._pages.views.get(prefix)
        told = self._diagnostics.of_robot(prefix, view.node) if view is not None else None
        if told is None:
            return []
        return [{'type': 'figures', 'samples': self._diagnostics.samples(told[0], prefix), 'all': True}]

    # --- the conversation ---

    def learn(self, view: RobotView, changed: bool = False) -> None:
        """Ask a robot for its history, unless that is being done.

        Args:
            view: The robot.
            changed: It has changed just now, so an answer that is on its way does not count.
        """
        view.outdated |= changed
        if view.learning is None or view.learning.done():
            view.learning = self._pages.background(self._learn(view))

    async def _learn_twice(self, view: RobotView) -> None:
        """Follow a reset by somebody else, or the loss of the oldest turns.

        A turn that ended just before may only be late in the history, so it goes at the second time.
        """
        self.learn(view, changed=True)
        await asyncio.sleep(FRESH + 1.0)
        self.learn(view, changed=True)

    async def _learn(self, view: RobotView) -> None:
        until = time.monotonic() + _HISTORY_SECONDS
        while view.present and time.monotonic() < until:
            link = self._pages.ros.links.get(view.prefix)
            try:
                if link is not None:
                    view.outdated = False
                    found = await asyncio.to_thread(link.history)
                    if not view.outdated:
                        break
                    continue
            except RuntimeError:
                pass  # it does not answer yet
            await asyncio.sleep(0.1)
        else:
            return
        if link is not view.link:
            view.log.forget_live()  # their ends may have been missed
        events = view.log.history(
            found['messages'], found['num_tokens'], found['max_tokens'], anew=not view.known
        )
        view.known, view.link = True, link
        self._pages.tell(view.prefix, *events, *view.others(), *self.figures(view.prefix))

    def _token(self, view: RobotView, token: dict[str, Any]) -> None:
        was_nameless = view.log.nameless
        self._pages.tell(view.prefix, *view.log.token(token))
        if view.log.nameless and not was_nameless and view.known:
            self.learn(view, changed=True)  # the history has the question

    def _turn(self, view: RobotView, turn: dict[str, Any]) -> None:
        self.ended(view.prefix, turn)

    def ended(self, prefix: str, turn: dict[str, Any]) -> None:
        """Record the end of a turn."""
        view = self._pages.views.get(prefix)
        if view is not None:
            self._pages.tell(prefix, *view.log.ended(turn, self._camera_picture(view, turn)))
            if view.known and view.log.is_doubtful(turn['turn_id']):
                self.learn(view, changed=True)

    def _camera_picture(self, view: RobotView, turn: dict[str, Any]) -> list[dict[str, Any]]:
        """The camera's picture that went with a turn, as far as we have seen it."""
        if not turn['image_used'] or view.log.has_pictures(turn['turn_id']):
            return []
        feeds = [feed for source, feed in self._pages.ros.cameras.items() if source.robot == view.prefix]
        image = turn['image']
        near = [found for feed in feeds if (found := feed.nearest(image['stamp'], image['frame_id']))]
        if not near:
            return [{'note': 'a camera picture'}]
        jpeg, away = min(near, key=lambda each: abs(each[1]))
        note = 'the camera picture' if abs(away) < 1e-3 else f'camera, {abs(away):.1g} s from the frame used'
        return [{'name': self._pages.album.add(jpeg), 'note': note}]

    # --- tools ---

    def _call(self, view: RobotView, call: dict[str, Any]) -> None:
        self._pages.tell(view.prefix, view.called(call))
        self._called.add(view.prefix)

    def _follow_calls(self) -> None:
        """Show turns of which only a tool call is known: it may wait for an answer."""
        called, self._called = self._called, set()
        for prefix in called & set(self._pages.views):
            view = self._pages.views[prefix]
            events = [event for turn_id in view.pending_turns() for event in view.log.begun(turn_id)]
            self._pages.tell(prefix, *events, *([view.calls()] if events else []))
            if events and view.known:
                self.learn(view, changed=True)  # the history has the question
