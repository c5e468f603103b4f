"""All pages: who sees which robot, and what ROS has to open for it.

Runs on the server's event loop; what blocks runs on threads.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ros2_nanochat.web import pictures
from ros2_nanochat.web.actions import Actions
from ros2_nanochat.web.camera_feed import Source
from ros2_nanochat.web.listener import Listener
from ros2_nanochat.web.page import Page, field
from ros2_nanochat.web.pictures import Album, Upload
from ros2_nanochat.web.robot_view import RobotView
from ros2_nanochat.web.ros_thread import RosThread, Wanted

_CHECKED_AT_ONCE = 2  # pictures of uploads that are open at a time: each may take hundreds of MiB


class Pages:
    """Connects pages and robots.

    Args:
        album: Keeps the pictures that went with questions.

    Attributes:
        album: The same.
        ros: The ROS side; the program sets it before the first page comes.
        views: The robots, by the prefix of their topics.
        listener: Takes what ROS brings.
    """

    def __init__(self, album: Album):
        self.album = album
        self.ros: RosThread
        self.views: dict[str, RobotView] = {}
        self.listener = Listener(self)
        self._pages: set[Page] = set()
        self._actions = Actions(self)
        self._tasks: set[asyncio.Task] = set()
        self._checking = asyncio.Semaphore(_CHECKED_AT_ONCE)

    def __len__(self) -> int:
        return len(self._pages)

    async def serve(self, page: Page) -> None:
        """Serve a page until it is closed."""
        self._pages.add(page)
        page.send(self.listener.fleet())
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
            self._show(page, request)
            return None
        return await self._actions.do(page, request)

    async def upload(self, page: Page, data: bytes) -> dict[str, Any]:
        """Check a picture for the page's next question, and keep it.

        Raises:
            ValueError: It is no image, or too large.
        """
        async with self._checking:
            small = self.album.add(await asyncio.to_thread(pictures.check, data))
        page.keep(small, Upload(data, small))
        return {'picture': small}

    def _show(self, page: Page, request: dict[str, Any]) -> None:
        prefix, before = field(request, 'robot', str), page.shows
        if prefix:
            self.view(prefix)
        page.shows, page.camera = prefix, field(request, 'camera', str, '')
        self.follow()
        if prefix and prefix != before:
            view = self.views[prefix]
            if view.known and view.link is self.ros.links.get(prefix):
                events = [*view.snapshot(), *self.listener.figures(prefix)]
                page.send(*map(view.tagged, events))
            else:
                self.listener.learn(view)

    def view(self, prefix: str) -> RobotView:
        """Return a robot.

        Raises:
            ValueError: There is none of that prefix.
        """
        if prefix not in self.views:
            raise ValueError(f'there is no robot {prefix[:100]!r}')
        return self.views[prefix]

    def shown_by(self, prefix: str) -> list[Page]:
        """Return the pages that show a robot."""
        return [page for page in self._pages if page.shows == prefix]

    def tell(self, prefix: str, *events: dict[str, Any]) -> None:
        """Send events about a robot to the pages that show it."""
        view, shown = self.views.get(prefix), self.shown_by(prefix)
        if view is not None and shown and events:
            texts = [json.dumps(view.tagged(event)) for event in events]
            for page in shown:
                page.send(*texts)

    def tell_all(self, event: dict[str, Any]) -> None:
        """Send an event to all pages."""
        text = json.dumps(event)
        for page in self._pages:
            page.send(text)

    def show_frame(self, prefix: str, name: str, jpeg: bytes) -> None:
        """Send a camera picture to the pages that show the camera."""
        for page in self.shown_by(prefix):
            if page.camera == name:
                page.show_frame(jpeg)

    def follow(self) -> None:
        """Have ROS open what is shown or asked now, and close the rest."""
        asking = {view.prefix for view in self.views.values() if view.asking}
        shown = asking | {page.shows for page in self._pages if page.shows}
        cameras = {(page.shows, page.camera) for page in self._pages if page.shows and page.camera}
        for view in self.views.values():
            cameras |= {(view.prefix, name) for name, count in view.looking.items() if count}
        self.ros.want(
            Wanted(
                bool(self._pages or asking),
                frozenset((prefix, self.views[prefix].node) for prefix in shown),
                frozenset(
                    Source(prefix, name, self.views[prefix].cameras[name])
                    for prefix, name in cameras
                    if name in self.views[prefix].cameras
                ),
            )
        )

    def background(self, work) -> asyncio.Task:
        """Run a coroutine beside everything else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
