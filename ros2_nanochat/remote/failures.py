"""What can go wrong with a server, by what to do about it. Each message is one line."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from ros2_nanochat.errors import BackendError, printable

MAX_WAIT = 60.0
"""Maximum seconds that a server's Retry-After is followed."""


class ServerError(BackendError):
    """A server does not do what was asked."""


class Unavailable(ServerError):
    """It does not answer, or broke off. Another server may do better, or the same one later.

    Attributes:
        reached: Whether there was a connection.
        status: The HTTP status, or None.
    """

    def __init__(self, message: str, reached: bool = True, status: int | None = None):
        super().__init__(message)
        self.reached = reached
        self.status = status


class Overloaded(ServerError):
    """It has too much to do.

    Attributes:
        retry_after: Seconds after which it may be asked again.
    """

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


class Rejected(ServerError):
    """It refuses this request, and any server of its kind would.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


def error_of(status: int, headers: Mapping[str, str], body: bytes, address: str) -> ServerError:
    """Return the error for an answer of HTTP whose status is not 200.

    Args:
        status: The HTTP status.
        headers: The headers, with names in lower case.
        body: The beginning of the body.
        address: The address that was asked.
    """
    what = said(body)
    text = f'{address} answered HTTP {status}' + (f': {what}' if what else '')
    if 300 <= status < 400:
        there = printable(_place(headers.get('location', 'elsewhere')))
        return Rejected(
            f'{address} redirects to {there}, which is not followed: name that address yourself', status
        )
    if status in (401, 403):
        return Rejected(f'{text}: set $OPENAI_API_KEY, or name a file with the key (api_key_file)', status)
    if status == 429 or (status == 503 and 'retry-after' in headers):
        return Overloaded(text, _retry_after(headers))
    if status >= 500 or status in (408, 425):
        return Unavailable(text, status=status)
    if status == 404 and 'model' not in what.lower():
        text += ': is the address of the API complete, for example http://host:8000/v1?'
    return Rejected(text, status)


def _place(location: str) -> str:
    """An address without what may be secret: a password, and the tokens of a page for signing in."""
    location = re.split('[?#]', location, maxsplit=1)[0]
    scheme, slashes, rest = location.partition('//')
    host, slash, path = rest.partition('/')
    return f'{scheme}{slashes}{host.rpartition("@")[2]}{slash}{path}'


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get('retry-after', '1')
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 1.0
    return 1.0 if math.isnan(seconds) else min(max(seconds, 0.05), MAX_WAIT)


def said(body: bytes) -> str:
    """Return what the body of an error says, on one line."""
    text = body.decode('utf-8', 'replace').strip()
    if text.startswith('<'):  # a page of a proxy
        title = text.lower().find('<title>')
        return printable(text[title + 7 :].partition('<')[0]) if title >= 0 else 'a web page'
    try:
        return message_in(json.loads(text))
    except (ValueError, RecursionError):
        return printable(text)


def message_in(data: Any) -> str:
    """Return the text of a server's error object, on one line."""
    while isinstance(data, Mapping):
        inner = next((data[name] for name in ('error', 'message', 'detail') if data.get(name)), None)
        if inner is None:
            break
        data = inner
    return printable(data if isinstance(data, str) else json.dumps(data))
