"""HTTP with one server: JSON in, JSON or a stream of events out, each within limits of time and size.

Redirects are not followed, because the key and the robot's words would go elsewhere. Proxies and passwords
from the environment are not used. Cookies are not kept: those of load balancers would send all robots to one
server. Runs on the thread of the asyncio loop.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

from ros2_nanochat.errors import one_line, printable, require
from ros2_nanochat.remote.failures import Rejected, ServerError, Unavailable, error_of, said
from ros2_nanochat.remote.sse import EventReader

MAX_ANSWER = 32 << 20
"""Maximum size of one answer, in bytes."""
_MAX_ERROR = 64 << 10
_BEFORE_JSON = b'\xef\xbb\xbf \t\r\n'
_STALE = 2  # connections that a request may find closed
_UNREACHED = 'cannot be reached'


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
            httpx2 = require('httpx2', 'openai')
            self._client = httpx2.AsyncClient(
                headers={'Accept-Encoding': 'identity', **self._authorization()},
                verify=ssl.create_default_context() if self.url.lower().startswith('https:') else False,
                timeout=httpx2.Timeout(None, connect=self._connect_timeout, pool=None),
                limits=httpx2.Limits(
                    max_connections=None, max_keepalive_connections=64, keepalive_expiry=4.0
                ),
                follow_redirects=False,
                trust_env=False,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            )
        return self._client

    def _authorization(self) -> dict[str, str]:
        return {'Authorization': f'Bearer {self._key}'} if self._key else {}

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

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
                raise Unavailable(f'{address} broke off: {said(reader.error) or "an error"}')
            return False

        if await self._exchange('POST', address, body, headers, feed, watch):
            if is_stream:
                feed(b'\n\n')  # some servers leave out the end of the last event
            elif whole.strip(_BEFORE_JSON):
                take(bytes(whole))

    async def _exchange(self, method, address, body, headers, take, watch: Watch) -> bool:
        """Whether the answer was read to its end."""
        try:
            with watch:
                for _ in range(_STALE):
                    try:
                        return await self._request(method, address, body, headers, take)
                    except Exception as error:
                        if not _was_stale(error):
                            raise
                return await self._request(method, address, body, headers, take)
        except ServerError:
            raise
        except (asyncio.CancelledError, MemoryError):
            raise
        except Exception as error:
            # httpx2's errors, and those of ssl and anyio below it.
            trouble = _trouble(error)
            raise Unavailable(f'{address} {trouble}', reached=not trouble.startswith(_UNREACHED)) from error

    async def _request(self, method, address, body, headers, take) -> bool:
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode('utf-8', 'replace')
        kind = {} if content is None else {'Content-Type': 'application/json'}
        size = 0
        async with self._opened().stream(
            method, address, content=content, headers={**kind, **headers}
        ) as response:
            if response.status_code != 200:
                start = bytearray()
                if response.status_code >= 200:  # before that, there is none
                    async for data in response.aiter_raw():
                        start += data
                        if len(start) > _MAX_ERROR:
                            break
                raise error_of(response.status_code, response.headers, bytes(start), address)
            encoding = response.headers.get('content-encoding', 'identity').strip().lower()
            if encoding not in ('', 'identity'):  # a few bytes may unpack to gigabytes
                raise Unavailable(f'{address} sent {printable(encoding, 40)}, though asked for plain text')
            async for data in response.aiter_raw():
                size += len(data)
                if size > MAX_ANSWER:
                    raise Rejected(f'{address} sent more than {MAX_ANSWER:,} bytes, which is no answer')
                if take(data):
                    return False
        return True


class Watch:
    """Ends the current task's wait for a server that gives no sign of work for too long.

    Args:
        first: Seconds until the first sign.
        silence: Seconds between two signs.
        address: The server's address, for the message.
    """

    def __init__(self, first: float, silence: float, address: str):
        self._first, self._silence, self._address = first, silence, address
        self._begun = False
        self._expired = False
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def limit(self) -> float:
        """Seconds that the server may be silent now."""
        return self._silence if self._begun else self._first

    def touch(self) -> None:
        """Note a sign of work. Bytes are none: some servers send comments while they are connected."""
        self._last = self._loop.time()

    def begin(self) -> None:
        """Note that the first token came: from now on the limit is `silence`."""
        if not self._begun:
            self._begun = True
            self._arm()

    def shorten(self, seconds: float) -> None:
        """Allow only this many seconds of silence from now on."""
        if self._silence > seconds:
            self._begun, self._silence = True, seconds
            self._arm()

    def __enter__(self) -> Watch:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self.touch()
        self._arm()
        return self

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._last + self.limit, self._check)

    def _check(self) -> None:
        if self._loop.time() < self._last + self.limit - 0.001:
            self._arm()
        elif self._task is not None:
            self._expired = True
            self._task.cancel()

    def __exit__(self, kind, error, trace) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._expired and isinstance(error, asyncio.CancelledError):
            if hasattr(self._task, 'uncancel') and self._task is not None:
                self._task.uncancel()
            what = 'was silent' if self._begun else 'did not answer'
            raise Unavailable(f'{self._address} {what} for {self.limit:g} s') from None


def _was_stale(error: Exception) -> bool:
    """Whether the server closed a connection that was kept, just as it was used again."""
    return type(error).__name__ == 'RemoteProtocolError' and 'without sending a response' in str(error)


def _trouble(error: Exception) -> str:
    name = type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f'has a certificate that is not trusted ({one_line(cause.verify_message)}): correct it, or'
                ' name its authority in $SSL_CERT_FILE'
            )
        cause = cause.__cause__ or cause.__context__
    if name == 'ConnectTimeout':
        return f'{_UNREACHED}: no answer'
    if name == 'ConnectError':
        return f'{_UNREACHED}: {one_line(error, 120)}'
    return f'broke off: {one_line(error, 120) if str(error) else name}'
