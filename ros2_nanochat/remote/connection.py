"""HTTP with one server: JSON in, JSON or a stream of events out, each within limits of time and size.

Redirects are not followed, because the key and the robot's words would go elsewhere. Proxies and passwords
from the environment are not used. Cookies are not kept: those of load balancers would send all robots to one
server. Runs on the thread of the asyncio loop.
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from ros2_nanochat.errors import one_line, printable, require
from ros2_nanochat.remote.failures import Rejected, ServerError, Unavailable, error_of, said
from ros2_nanochat.remote.patience import Watch
from ros2_nanochat.remote.sse import EventReader

MAX_ANSWER = 32 << 20
"""Maximum size of one answer, in bytes."""
_MAX_ERROR = 64 << 10
_BEFORE_JSON = b'\xef\xbb\xbf \t\r\n'
_LARGE = 1 << 20  # from here on, aiohttp wants a file, of which it sends one part after the other
_SECRET = 8  # characters; shorter keys are placeholders, such as EMPTY
_STALE = 2  # connections that a request may find closed


class Connection:
    """The HTTP connections to one server.

    Args:
        url: The address of the API, such as `http://host:8000/v1`.
        key: The key of the API, or None.
        connect_timeout: Seconds to wait for a connection.
    """

    def __init__(self, url: str, key: str | None, connect_timeout: float):
        self.url = url.rstrip('/')
        self.root = self.url.removesuffix('/v1')
        self._key = key
        self._connect_timeout = connect_timeout
        self._client: Any = None

    def _opened(self) -> Any:
        if self._client is None:
            aiohttp = require('aiohttp', 'openai')
            context = ssl.create_default_context() if self.url.lower().startswith('https:') else False
            seconds = self._connect_timeout
            self._client = aiohttp.ClientSession(
                headers={'Accept-Encoding': 'identity', **self._authorization()},
                connector=aiohttp.TCPConnector(limit=0, ssl=context, keepalive_timeout=4.0),
                timeout=aiohttp.ClientTimeout(total=None, connect=seconds, sock_connect=seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                trace_configs=[_tracing(aiohttp)],
                auto_decompress=False,
                trust_env=False,
            )
        return self._client

    def _authorization(self) -> dict[str, str]:
        return {'Authorization': f'Bearer {self._key}'} if self._key else {}

    def _without_key(self, text: str) -> str:
        """A text of the server for logs and errors: some quote the key that they refuse."""
        if self._key is None or len(self._key) < _SECRET:
            return text
        for n in range(len(self._key), _SECRET - 1, -1):  # messages are cut, perhaps within the key
            if self._key[:n] in text:
                return text.replace(self._key[:n], '(the key)')
        return text

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def get(self, address: str, timeout: float = 5.0) -> Any:
        """Return the JSON at an address.

        Raises:
            ServerError: There is none.
        """
        return await self._json('GET', address, None, timeout)

    async def post(self, address: str, body: Mapping[str, Any], timeout: float = 60.0) -> Any:
        """Send JSON to an address and return the JSON that comes back.

        Raises:
            ServerError: There is none.
        """
        return await self._json('POST', address, body, timeout)

    async def _json(self, method: str, address: str, body: Mapping[str, Any] | None, timeout: float) -> Any:
        parts: list[bytes] = []

        def take(data: bytes) -> None:
            parts.append(data)

        await self._exchange(method, address, body, {}, take, Watch(timeout, timeout, address))
        try:
            return json.loads(b''.join(parts))
        except (ValueError, RecursionError):
            raise Unavailable(f'{address} answered something that is not JSON') from None

    async def stream(
        self,
        address: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        take: Callable[[bytes], bool],
        watch: Watch,
    ) -> None:
        """Send JSON and pass the data of each event to `take` until it returns True or the stream ends.

        Args:
            address: Where to send it.
            body: What to send.
            headers: Further headers.
            take: Gets the data of one event; True ends the stream.
            watch: The limits of time.

        Raises:
            ServerError: The server cannot be reached, refuses, or breaks off.
        """
        reader = EventReader()
        whole = bytearray()  # of a server that does not stream, or sends an error as its answer
        is_stream: bool | None = None  # None until it is known

        def feed(data: bytes) -> bool:
            nonlocal is_stream
            if not is_stream:
                whole.extend(data)
                if is_stream is None and (first := whole.lstrip(_BEFORE_JSON)[:1]):
                    is_stream = first not in (b'{', b'[')
                if not is_stream:
                    return False
                data = bytes(whole)
            try:
                events = reader.feed(data)
            except ValueError as error:
                raise Unavailable(f'{address} sent {error}') from None
            # Some servers send empty ones while they work.
            if any(take(event) for event in events if event.strip()):
                return True
            if reader.error is not None:
                what = said(reader.error) or 'an error'
                raise Unavailable(f'{address} broke off: {what}', status=200)
            return False

        if await self._exchange('POST', address, body, headers, feed, watch):
            if is_stream:
                feed(b'\n\n')  # some servers leave out the end of the last event
            elif whole.strip(_BEFORE_JSON):
                take(bytes(whole))

    async def _exchange(self, method, address, body, headers, take, watch: Watch) -> bool:
        """Whether the answer was read to its end."""
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode('utf-8', 'replace')
        begun, bug = False, None
        way = SimpleNamespace(is_kept=False)

        def taken(data: bytes) -> bool:
            nonlocal begun, bug
            begun = True
            try:
                return take(data)
            except Exception as error:
                bug = error
                raise

        try:
            with watch:
                for _ in range(_STALE):
                    try:
                        return await self._request(method, address, content, headers, taken, watch, way)
                    except Exception as error:
                        if begun or not way.is_kept or not _was_stale(error):
                            raise
                return await self._request(method, address, content, headers, taken, watch, way)
        except ServerError as error:
            error.args = (self._without_key(str(error)),)
            raise
        except (asyncio.CancelledError, MemoryError):
            raise
        except Exception as error:
            if error is bug:  # ours: the server is not to blame
                raise
            # aiohttp's errors, and those of ssl and the sockets below it.
            was_reached, trouble = _trouble(error)
            raise Unavailable(f'{address} {self._without_key(trouble)}', was_reached) from error

    async def _request(self, method, address, content, headers, take, watch: Watch, way) -> bool:
        kind = {} if content is None else {'Content-Type': 'application/json'}
        is_large = content is not None and len(content) > _LARGE
        size = 0
        async with self._opened().request(
            method,
            address,
            data=io.BytesIO(content) if is_large else content,
            headers={**kind, **headers},
            allow_redirects=False,
            trace_request_ctx=way,
        ) as response:
            watch.transport = response.connection.transport if response.connection else None
            if response.status != 200:
                start = bytearray()
                # An answer below 200 has no body.
                while response.status >= 200 and (data := await response.content.readany()):
                    start += data
                    if len(start) > _MAX_ERROR:
                        break
                said_there = self._without_key(start.decode('utf-8', 'replace'))  # before it is cut
                raise error_of(response.status, response.headers, said_there.encode(), address)
            encoding = response.headers.get('content-encoding', 'identity').strip().lower()
            if encoding not in ('', 'identity'):  # a few bytes may unpack to gigabytes
                raise Unavailable(f'{address} sent {printable(encoding, 40)}, though asked for plain text')
            while data := await response.content.readany():
                size += len(data)
                if size > MAX_ANSWER:
                    raise Rejected(f'{address} sent more than {MAX_ANSWER:,} bytes, which is no answer')
                if take(data):
                    return False
        return True


def _tracing(aiohttp: Any) -> Any:
    """Notes for each request whether its connection was used before."""

    async def note_kept(session, context, parameters) -> None:
        context.trace_request_ctx.is_kept = True

    async def note_new(session, context, parameters) -> None:
        context.trace_request_ctx.is_kept = False

    tracing = aiohttp.TraceConfig()
    tracing.on_connection_reuseconn.append(note_kept)
    tracing.on_connection_create_start.append(note_new)
    return tracing


def _was_stale(error: Exception) -> bool:
    """Whether the server may have closed a kept connection just as it was used again."""
    aiohttp = require('aiohttp', 'openai')
    if isinstance(error, aiohttp.ClientConnectorError):
        return False
    return isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError))


def _trouble(error: Exception) -> tuple[bool, str]:
    """Whether the server was reached, and what went wrong."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            found = getattr(cause, 'certificate_error', cause)
            why = one_line(getattr(found, 'verify_message', found))
            return False, (
                f'has a certificate that is not trusted ({why}): correct it, or name its authority in'
                ' $SSL_CERT_FILE'
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, asyncio.TimeoutError):  # the only one that is set
        return False, 'cannot be reached: no answer'
    if isinstance(error, require('aiohttp', 'openai').ClientConnectorError):
        return False, f'cannot be reached: {one_line(error.os_error, 120)}'
    return True, f'broke off: {one_line(error, 120) if str(error) else type(error).__name__}'
