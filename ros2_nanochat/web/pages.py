"""All pages, and the robots that they show: who sees what, and what ROS has to open for it.

Runs on the server's event loop; what blocks runs on threads.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from ros2_nanochat.web import pictures
from ros2_nanochat.web.actions import Actions
from ros2_nanochat.web.diagnostics import Diagnostics
from ros2_nanochat.web.page import Page, field
from ros2_nanochat.web.pictures import Album, Upload
from ros2_nanochat.web.robot_view import RobotView
from ros2_nanochat.web.ros_thread import RosThread, Wanted
from ros2_nanochat.web.turn_log import joined

_MAX_ROBOTS = 500
_GONE = 'the node of this robot has gone'


class Pages:
    """Connects pages and robots.

    Args:
        album: Keeps the pictures that went with questions.
    """

    def __init__(self, album: Album):
        self.album = album
        self.ros: RosThread  # set by the program before the first page comes
        self._pages: set[Page] = set()
        self._views: dict[str, RobotView] = {}
        self._diagnostics = Diagnostics()
        self._actions = Actions(self)
        self._tasks: set[asyncio.Task] = set()
        self._pieces: dict[str, list[dict[str, Any]]] = {}  # that have not been sent yet
        self._heard: dict[str, Callable[[str, Any], None]] = {
            'graph': lambda _, robots: self._graph(robots),
            'diagnostics': lambda _, statuses: self._diagnosed(statuses),
            'tokens': self._token,
            'turn': self.ended,
            'camera': self._frame,
            'no camera': lambda prefix, reason: self.tell(prefix, {'type': 'camera', 'trouble': reason}),
        }

    # --- pages ---

    def __len__(self) -> int:
        return len(self._pages)

    async def serve(self, page: Page) -> None:
        """Serve a page until it is closed."""
        self._pages.add(page)
        page.send(self._fleet())
        self.follow()
        try:
            await page.run(self)
        finally:
            self._pages.discard(page)
            self.follow()

    async def request(self, page: Page, request: dict[str, Any]) -> str | None:
        """Do what a page asks for. Return what happened, if there is anything to tell.

        Raises:
            ValueError: The request is not valid.
        """
        if request.get('do') == 'show':
            return self._show(page, request)
        return await self._actions.do(page, request)

    async def upload(self, page: Page, data: bytes) -> dict[str, Any]:
        """Check a picture for the page's next question, and keep it.

        Raises:
            ValueError: It is no image, or too large.
        """
        small = self.album.add(await asyncio.to_thread(pictures.check, data))
        page.keep(small, Upload(data, small))
        return {'picture': small}

    def _show(self, page: Page, request: dict[str, Any]) -> None:
        prefix, before = field(request, 'robot', str), page.shows
        if prefix and prefix not in self._views:
            raise ValueError(f'there is no robot {prefix[:100]!r}')
        page.shows, page.camera = prefix, field(request, 'camera', bool, False)
        self.follow()
        if prefix and prefix != before:
            view = self._views[prefix]
            if view.known and view.link is self.ros.links.get(prefix):
                page.send(*map(view.tagged, view.snapshot()))
                page.send(*map(view.tagged, self._figures(prefix)))
            else:
                self.learn(view)

    def shown_by(self, prefix: str) -> list[Page]:
        """Return the pages that show a robot."""
        return [page for page in self._pages if page.shows == prefix]

    def tell(self, prefix: str, *events: dict[str, Any]) -> None:
        """Send events about a robot to the pages that show it."""
        view, shown = self._views.get(prefix), self.shown_by(prefix)
        if view is not None and shown and events:
            texts = [json.dumps(view.tagged(event)) for event in events]
            for page in shown:
                page.send(*texts)

    def _tell_all(self, event: dict[str, Any]) -> None:
        text = json.dumps(event)
        for page in self._pages:
            page.send(text)

    # --- robots ---

    def view(self, prefix: str) -> RobotView:
        """Return a robot.

        Raises:
            ValueError: There is none of that prefix.
        """
        if prefix not in self._views:
            raise ValueError(f'there is no robot {prefix[:100]!r}')
        return self._views[prefix]

    def follow(self) -> None:
        """Have ROS open what is shown or asked now, and close the rest."""
        asking = {view.prefix for view in self._views.values() if view.asking}
        cameras = {page.shows for page in self._pages if page.camera}
        cameras |= {view.prefix for view in self._views.values() if view.looking}
        self.ros.want(
            Wanted(
                bool(self._pages or asking),
                frozenset({page.shows for page in self._pages if page.shows} | asking),
                frozenset(prefix for prefix in cameras if prefix and self._views[prefix].has_camera),
            )
        )

    def deliver(self, batch: Iterable[tuple[str, str, Any]]) -> None:
        """Take over what ROS has brought."""
        for kind, prefix, value in batch:
            if kind != 'tokens':
                self._flush()
            self._heard[kind](prefix, value)
        self._flush()

    def _flush(self) -> None:
        """Send the pieces of replies that have come, each reply's as one."""
        pieces, self._pieces = self._pieces, {}
        for prefix, events in pieces.items():
            self.tell(prefix, *joined(events))

    def _graph(self, robots: dict[str, dict[str, Any]]) -> None:
        for prefix, found in list(robots.items())[:_MAX_ROBOTS]:
            view = self._views.setdefault(prefix, RobotView(prefix))
            view.has_camera = found['camera']
            view.present = True
            if self.shown_by(prefix) and not (view.known and view.link is self.ros.links.get(prefix)):
                self.learn(view)
        for prefix, view in self._views.items():
            if view.present and prefix not in robots:
                view.present = view.known = False
                self.tell(prefix, *view.log.all_lost(_GONE))
        self._views = {
            prefix: view
            for prefix, view in self._views.items()
            if view.present or view.asking or self.shown_by(prefix)
        }
        self._diagnostics.forget_old()
        self.follow()
        self._tell_all(self._fleet())

    def _fleet(self) -> dict[str, Any]:
        robots = []
        for prefix, view in sorted(self._views.items()):
            told = self._diagnostics.of_robot(prefix)
            node, status = told if told is not None else ('', None)
            robots.append(
                {
                    'prefix': prefix,
                    'name': view.name,
                    'node': node,
                    'present': view.present,
                    'silent': bool(node) and self._diagnostics.is_silent(node),
                    'camera': view.has_camera,
                    'status': status,
                }
            )
        return {'type': 'fleet', 'robots': robots, 'nodes': self._diagnostics.nodes()}

    def _diagnosed(self, statuses: list[dict[str, Any]]) -> None:
        self._diagnostics.take(statuses)
        for prefix, view in self._views.items():
            told = self._diagnostics.of_robot(prefix)
            if told is not None and self.shown_by(prefix):
                sample = self._diagnostics.newest(told[0], prefix)
                self.tell(prefix, {'type': 'figures', 'samples': [sample] if sample else []})
                if view.shrank(told[1]['values'].get('messages', '')) and view.known:
                    view.known = False
                    self.learn(view)  # somebody has reset the conversation, or its oldest turns were dropped

    def _figures(self, prefix: str) -> list[dict[str, Any]]:
        told = self._diagnostics.of_robot(prefix)
        if told is None:
            return []
        return [{'type': 'figures', 'samples': self._diagnostics.samples(told[0], prefix), 'all': True}]

    # --- the conversation ---

    def learn(self, view: RobotView) -> None:
        """Ask a robot for its history, unless that is being done."""
        if view.learning is None or view.learning.done():
            view.learning = self.background(self._learn(view))

    async def _learn(self, view: RobotView) -> None:
        until = time.monotonic() + 60.0
        while view.present and time.monotonic() < until:
            link = self.ros.links.get(view.prefix)
            try:
                if link is not None:
                    found = await asyncio.to_thread(link.history)
                    break
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
        self.tell(view.prefix, *events, *view.others(), *self._figures(view.prefix))

    def _token(self, prefix: str, token: dict[str, Any]) -> None:
        view = self._views.get(prefix)
        if view is not None:
            was_nameless = view.log.nameless
            self._pieces.setdefault(prefix, []).extend(view.log.token(token))
            if view.log.nameless and not was_nameless and view.known:
                self.learn(view)  # the history has the question

    def ended(self, prefix: str, turn: dict[str, Any]) -> None:
        """Record the end of a turn."""
        view = self._views.get(prefix)
        if view is not None:
            self.tell(prefix, *view.log.ended(turn, self._camera_picture(prefix, turn)))

    def _camera_picture(self, prefix: str, turn: dict[str, Any]) -> list[dict[str, Any]]:
        """The camera's picture that went with a turn, as far as we have seen it."""
        if not turn['image_used'] or self._views[prefix].log.has_pictures(turn['turn_id']):
            return []
        feed = self.ros.cameras.get(prefix)
        near = feed.nearest(turn['image']['stamp']) if feed is not None else None
        if near is None:
            return [{'note': 'a camera picture'}]
        jpeg, away = near
        note = 'the camera picture' if abs(away) < 1e-3 else f'camera, {abs(away):.2g} s from the one used'
        return [{'name': self.album.add(jpeg), 'note': note}]

    def _frame(self, prefix: str, jpeg: bytes) -> None:
        for page in self._pages:
            if page.camera and page.shows == prefix:
                page.show_frame(jpeg)

    def background(self, work) -> asyncio.Task:
        """Run a coroutine beside everything else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
