"""The HTTP server: the page's files, its socket and its pictures, behind the checks of `access`."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from ros2_nanochat.errors import one_line
from ros2_nanochat.web.access import HEADERS, Access
from ros2_nanochat.web.page import Page
from ros2_nanochat.web.pages import Pages
from ros2_nanochat.web.pictures import MAX_UPLOAD

STATIC = Path(__file__).with_name('static')
_MAX_PAGES = 64
_HEARTBEAT = 20.0  # seconds between two checks that a browser is still there
_TYPES = {
    '.html': 'text/html; charset=utf-8',
    '.css': 'text/css; charset=utf-8',
    '.js': 'text/javascript; charset=utf-8',
    '.svg': 'image/svg+xml',
}
"""Not those of the machine: browsers run no module that comes with another type."""
_REFUSED = 'nanochat: {reason}\n'


def make_app(pages: Pages, access: Access) -> web.Application:
    """Return the application.

    Args:
        pages: Serves the sockets.
        access: Says who may come in.
    """

    @web.middleware
    async def guard(request: web.Request, handler: Callable[[web.Request], Awaitable]):
        if not access.knows_host(request.host):
            return _refuse(403, 'this page is not served under that name; open it by its address')
        # Cookies do not tell ports apart, so the name does.
        cookie = f'nanochat-{request.transport.get_extra_info("sockname")[1]}'
        if 'token' in request.query:
            if not access.knows_token(request.query['token']):
                return _refuse(401, 'wrong token: the program printed the right address when it started')
            welcome = web.HTTPFound('/')  # so that the token does not stay in the address
            welcome.set_cookie(cookie, access.token, httponly=True, samesite='Strict', path='/')
            raise welcome
        if not access.knows_token(request.cookies.get(cookie)):
            return _refuse(401, 'open the address with the token that the program printed when it started')
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except Exception as error:
            print(f'web: {request.path[:100]!r} failed: {one_line(repr(error))}', file=sys.stderr, flush=True)
            return _refuse(500, 'internal error')

    async def index(_: web.Request) -> web.FileResponse:
        return web.FileResponse(STATIC / 'index.html', headers={'Content-Type': _TYPES['.html']})

    async def file(request: web.Request) -> web.StreamResponse:
        path = files.get(request.match_info['name'])
        if path is None:
            return _refuse(404, 'there is no such file')
        return web.FileResponse(path, headers={'Content-Type': _TYPES[path.suffix]})

    async def socket(request: web.Request) -> web.StreamResponse:
        if not access.is_own_origin(request.headers.get('Origin'), request.host):
            return _refuse(403, 'the socket is only for the page itself, not for other origins')
        if len(pages) >= _MAX_PAGES:
            return _refuse(503, f'{_MAX_PAGES} pages are open already: close one')
        response = web.WebSocketResponse(max_msg_size=MAX_UPLOAD + 1024, heartbeat=_HEARTBEAT, compress=False)
        await response.prepare(request)
        open_sockets.add(response)
        try:
            await pages.serve(Page(response))
        finally:
            open_sockets.discard(response)
        return response

    async def picture(request: web.Request) -> web.Response:
        jpeg = pages.album.get(request.match_info['name'])
        if jpeg is None:
            return _refuse(404, 'this picture is not kept any more')
        headers = {'Cache-Control': 'private, max-age=86400, immutable'}
        return web.Response(body=jpeg, content_type='image/jpeg', headers=headers)

    async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)

    async def close_sockets(_: web.Application) -> None:
        for response in list(open_sockets):
            await response.close(code=1001, message=b'the server ends')

    # Only these: no path of a request is looked up on the disk.
    files = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob('*') if path.is_file()}
    open_sockets: set[web.WebSocketResponse] = set()
    app = web.Application(middlewares=[guard])
    app.router.add_get('/', index)
    app.router.add_get('/socket', socket)
    app.router.add_get('/pictures/{name}', picture)
    app.router.add_get('/static/{name:.+}', file)
    app.on_response_prepare.append(add_headers)
    app.on_shutdown.append(close_sockets)
    return app


def _refuse(status: int, reason: str) -> web.Response:
    return web.Response(status=status, text=_REFUSED.format(reason=reason))
