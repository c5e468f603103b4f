"""One browser page: its socket, what it shows, what waits to be sent to it, and what it may ask for."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict, deque
from typing import Any

from aiohttp import WSMsgType, web

from ros2_nanochat.errors import one_line
from ros2_nanochat.web.access import Rate
from ros2_nanochat.web.pictures import Upload

_MAX_REQUEST = 100_000  # characters
_MAX_WAITING = 5000  # events; a page that is further behind is closed, and begins anew
_REFUSED = 0.02  # seconds that a page waits that asks too much: it reads no more meanwhile
_MAX_UPLOADS = 4
_SLOW = 20.0  # seconds that the browser may take to accept data


class Page:
    """One page.

    Args:
        socket: Its socket.

    Attributes:
        shows: Prefix of the robot that it shows, '' for none.
        camera: Name of the camera that it shows, '' for none.
        uploads: Pictures for its next question, by name.
        asking: How many of its questions have not been answered yet.
    """

    def __init__(self, socket: web.WebSocketResponse):
        self._socket = socket
        self.shows = self.camera = ''
        self.uploads: OrderedDict[str, Upload] = OrderedDict()
        self.asking = 0
        self._waiting: deque[str] = deque()
        self._behind = self._gone = False
        self._frame: bytes | None = None
        self._filled = asyncio.Event()
        self._requests, self._pictures = Rate(5, 20), Rate(0.5, 2 * _MAX_UPLOADS)

    def send(self, *events: dict[str, Any] | str) -> None:
        """Queue events, as dictionaries or as JSON."""
        self._behind = self._behind or len(self._waiting) + len(events) > _MAX_WAITING
        if not self._behind:
            self._waiting.extend(each if isinstance(each, str) else json.dumps(each) for each in events)
        self._filled.set()

    def show_frame(self, jpeg: bytes) -> None:
        """Queue a camera picture. It replaces one that has not been sent yet."""
        self._frame = jpeg
        self._filled.set()

    def keep(self, name: str, upload: Upload) -> None:
        """Keep a picture for the next question; too many replace the oldest."""
        self.uploads[name] = upload
        while len(self.uploads) > _MAX_UPLOADS:
            self.uploads.popitem(last=False)

    async def run(self, pages) -> None:
        """Serve the page until it is closed.

        Args:
            pages: Answers its requests: has `request(page, request)` and `upload(page, data)`.
        """
        sending = asyncio.create_task(self._send_all())
        try:
            async for message in self._socket:
                if message.type is WSMsgType.TEXT:
                    await self._answer(pages, message.data)
                elif message.type is WSMsgType.BINARY:
                    await self._receive(pages, message.data)
        finally:
            self._gone = True
            self._filled.set()
            sending.cancel()  # up to Python 3.11, `wait_for` may swallow it

    async def _send_all(self) -> None:
        try:
            while True:
                await self._filled.wait()
                self._filled.clear()
                if self._gone:
                    return
                if self._behind:
                    break
                events, self._waiting = self._waiting, deque()
                frame, self._frame = self._frame, None
                if events:
                    await asyncio.wait_for(self._socket.send_str(f'[{",".join(events)}]'), _SLOW)
                if frame is not None:
                    await asyncio.wait_for(self._socket.send_bytes(frame), _SLOW)
        except (ConnectionError, RuntimeError, asyncio.TimeoutError):
            pass
        await self._socket.close(code=1013, message=b'too slow')

    async def _answer(self, pages, text: str) -> None:
        number, answer = None, {}
        try:
            allowed = self._requests.take()
            if not allowed:
                await asyncio.sleep(_REFUSED)
            request = _read(text)
            number = request.get('n')
            if not allowed:
                raise ValueError('too many requests: wait a second')
            answer = {'message': await pages.request(self, request) or ''}
        except Exception as error:  # of any kind: the page shows it, and goes on
            answer = {'error': one_line(error)}
        self.send({'type': 'done', 'n': number, **answer})

    async def _receive(self, pages, data: bytes) -> None:
        try:
            if not self._pictures.take():
                await asyncio.sleep(_REFUSED)
                raise ValueError('too many pictures: wait two seconds')
            answer = await pages.upload(self, data)
        except Exception as error:
            answer = {'error': one_line(error)}
        self.send({'type': 'uploaded', **answer})


def _read(text: str) -> dict[str, Any]:
    if len(text) > _MAX_REQUEST:
        raise ValueError(f'the request is too long: {len(text):,} characters, at most {_MAX_REQUEST:,}')
    try:
        request = json.loads(text)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise ValueError('the request is not a JSON object')
    return request


def field(request: dict[str, Any], name: str, kind: Any, default: Any = None, most: int = 1000) -> Any:
    """Return a field of a request.

    Args:
        request: The request.
        name: Name of the field.
        kind: Its type, or several.
        default: Its value if it is not there; None: it has to be.
        most: Characters of a text or items of a list at most.

    Raises:
        ValueError: It is missing, of another type, or too long.
    """
    value = request.get(name, default)
    if not isinstance(value, kind):
        raise ValueError(f'{name} of the request is missing or not valid')
    if isinstance(value, (str, list)) and len(value) > most:
        raise ValueError(f'{name} is too long: {len(value):,}, at most {most:,}')
    return value
