"""Downloads a file over http or https, with limits on size, time and redirects. Knows nothing of images."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import urlsplit

from ros2_nanochat.errors import shorten

TIMEOUT = 20.0
"""Seconds that a whole download may take."""

_HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.UnknownHandler,
)


def fetch(url: str, max_bytes: int, timeout: float = TIMEOUT) -> bytes:
    """Download a file.

    Args:
        url: An http or https URL.
        max_bytes: The largest size that is accepted.
        timeout: Seconds for the whole download.

    Raises:
        ValueError: Another scheme (also after a redirect), an error of the server, too large, or too slow.
    """
    name = shorten(url, 100)
    try:
        parts = urlsplit(url)
        valid = (
            parts.scheme.lower() in ('http', 'https')
            and bool(parts.hostname)
            and url.isprintable()
            and ' ' not in url
        )
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f'{name!r} cannot be opened: only http:// and https:// addresses can')
    download = _Download(url, max_bytes, timeout)
    thread = threading.Thread(target=download.run, name='fetch', daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        download.cancel()
        raise ValueError(f'{name} took longer than {timeout:g} s')
    if download.problem is not None:
        raise ValueError(f'{name} cannot be fetched: {download.problem}')
    return download.data


class _Download:
    """One download in its own thread: a socket's timeout limits each wait, not their sum."""

    def __init__(self, url: str, max_bytes: int, timeout: float):
        self._url, self._max_bytes, self._timeout = url, max_bytes, timeout
        self._cancelled = False
        self.data = b''
        self.problem: str | None = 'it ended early'

    def cancel(self) -> None:
        self._cancelled = True

    def run(self) -> None:
        try:
            self.problem = self._read()
        except urllib.error.HTTPError as error:
            self.problem = f'the server answers {error.code} {error.reason}'
            error.close()
        except urllib.error.URLError as error:
            self.problem = str(error.reason)
        except (OSError, HTTPException, ValueError) as error:
            self.problem = str(error) or type(error).__name__
        if self.problem is not None:
            self.problem = shorten(self.problem)

    def _read(self) -> str | None:
        opener = (
            urllib.request.OpenerDirector()
        )  # no handlers for file:, ftp: and data:, so that no redirect leads there
        for handler in _HANDLERS:
            opener.add_handler(handler())
        request = urllib.request.Request(
            self._url, headers={'User-Agent': 'ros2_nanochat', 'Accept': 'image/*'}
        )
        with opener.open(request, timeout=self._timeout) as response:
            length = response.headers.get('Content-Length', '')
            if length.isdigit() and int(length) > self._max_bytes:
                return f'it is too large ({int(length):,} bytes, at most {self._max_bytes:,})'
            pieces, size = [], 0
            while piece := response.read1(1 << 16):
                pieces.append(piece)
                size += len(piece)
                if size > self._max_bytes:
                    return f'it is too large (at most {self._max_bytes:,} bytes)'
                if self._cancelled:
                    return 'it was too slow'
            if length.isdigit() and size < int(length):
                return f'it ended after {size:,} of {int(length):,} bytes'
        self.data = b''.join(pieces)
        return None
