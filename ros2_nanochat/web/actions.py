"""What pages may do with a robot: ask, stop, reset, answer for a tool, change standing questions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.watch import IMAGE
from ros2_nanochat.ros.reply import NodeGone, Reply
from ros2_nanochat.web.as_json import to_value
from ros2_nanochat.web.page import Page, field
from ros2_nanochat.web.robot_link import RobotLink
from ros2_nanochat.web.robot_view import RobotView

if TYPE_CHECKING:
    from ros2_nanochat.web.pages import Pages

_MAX_QUESTION = 50_000  # characters
_MAX_FORM = 20_000
_MAX_ASKING = 8  # questions of one page that wait
_MAX_ASKING_ALL = 24  # each waits on a thread
_LOOK_AFTER = 1.5  # seconds between two looks whether the node is still there
_IMAGE_MODES = ('', 'latest', 'changed', 'off')


class Actions:
    """Does what pages ask for.

    Args:
        pages: The pages and robots.
    """

    def __init__(self, pages: Pages):
        self._pages = pages
        self._asking = 0
        self._known = {
            'ask': self._ask,
            'stop': self._stop,
            'reset': self._reset,
            'approve': self._approve,
            'watch': self._watch,
        }

    async def do(self, page: Page, request: dict[str, Any]) -> str | None:
        """Do something with a robot. Return what happened.

        Raises:
            ValueError: The request is not valid.
            RuntimeError: It failed.
        """
        action = self._known.get(field(request, 'do', str))
        if action is None:
            raise ValueError(f'{request["do"][:40]!r} is not known here')
        view = self._pages.view(field(request, 'robot', str))
        return await action(page, view, request)

    def link(self, view: RobotView) -> RobotLink:
        """Return a robot's topics and services.

        Raises:
            NodeGone: They are not open.
        """
        link = self._pages.ros.links.get(view.prefix)
        if link is None or not view.present:
            raise NodeGone(f'{view.prefix} is not there')
        return link

    async def _ask(self, page: Page, view: RobotView, request: dict[str, Any]) -> None:
        text = field(request, 'text', str, most=_MAX_QUESTION)
        form = field(request, 'response_format', str, '', _MAX_FORM)
        mode = field(request, 'image_mode', str, '')
        names = field(request, 'pictures', list, [], 16)
        cameras = _texts(request, 'cameras')
        if mode not in _IMAGE_MODES:
            raise ValueError(f'image_mode={mode[:40]!r} is not valid: one of {", ".join(_IMAGE_MODES[1:])}')
        missing = [name for name in names if not isinstance(name, str) or name not in page.uploads]
        if missing:
            raise ValueError('a picture of the question is not there any more: choose it again')
        if page.asking >= _MAX_ASKING or self._asking >= _MAX_ASKING_ALL:
            raise ValueError('too many questions wait for their answers: wait for one, or stop it')
        link = self.link(view)
        looks = [] if names or mode == 'off' else cameras or [IMAGE]
        self._count(page, view, looks, 1)
        try:
            uploads = [page.uploads[name] for name in names]
            files = [upload.data for upload in uploads]
            options = {'response_format': form, 'image_mode': mode, 'cameras': cameras}
            reply = await asyncio.to_thread(link.chat.ask, text, files, **options)
        except BaseException:
            self._count(page, view, looks, -1)
            raise
        for name in names:
            page.uploads.pop(name, None)
        shown = [{'name': upload.small, 'note': 'an uploaded picture'} for upload in uploads]
        self._pages.tell(view.prefix, *view.log.asked(reply.turn_id, text, shown))
        self._pages.background(self._finish(page, view, reply, looks))

    async def _finish(self, page: Page, view: RobotView, reply: Reply, looks: Sequence[str]) -> None:
        """Wait for the end of a turn; its topic usually announces it first."""
        try:
            self._pages.listener.ended(view.prefix, to_value(await _end_of(reply)))
        except Exception as error:
            self._pages.tell(view.prefix, *view.log.lost(reply.turn_id, one_line(error)))
        finally:
            self._count(page, view, looks, -1)

    def _count(self, page: Page, view: RobotView, looks: Sequence[str], change: int) -> None:
        self._asking += change
        page.asking += change
        view.asking += change
        for name in looks:
            view.looking[name] += change
        self._pages.follow()

    async def _stop(self, page: Page, view: RobotView, request: dict[str, Any]) -> str:
        stopped = await asyncio.to_thread(self.link(view).chat.cancel)
        return 'stopped' if stopped else 'no reply was being produced'

    async def _reset(self, page: Page, view: RobotView, request: dict[str, Any]) -> str:
        prompt = field(request, 'system_prompt', str, '', _MAX_QUESTION)
        done = await asyncio.to_thread(self.link(view).chat.reset, prompt)
        view.log.clear()
        self._pages.listener.learn(view, changed=True)
        return done

    async def _approve(self, page: Page, view: RobotView, request: dict[str, Any]) -> str:
        call, yes = field(request, 'id', str), field(request, 'approve', bool)
        reason = field(request, 'reason', str, '')
        return await asyncio.to_thread(self.link(view).approve, call, yes, reason)

    async def _watch(self, page: Page, view: RobotView, request: dict[str, Any]) -> str:
        command = field(request, 'command', str)
        watch = {
            'name': field(request, 'name', str, ''),
            'question': field(request, 'question', str, '', _MAX_QUESTION),
            'response_format': field(request, 'response_format', str, '', _MAX_FORM),
            'max_rate': float(field(request, 'max_rate', (int, float), 1.0)),
            'cameras': _texts(request, 'cameras'),
        }
        return await asyncio.to_thread(self.link(view).set_watch, command, **watch)


def _texts(request: dict[str, Any], name: str) -> list[str]:
    texts = field(request, name, list, [], 32)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f'{name} of the request is not a list of texts')
    return texts


async def _end_of(reply: Reply):
    while True:
        try:
            return await asyncio.to_thread(reply.result, _LOOK_AFTER)
        except TimeoutError:
            pass  # it goes on
