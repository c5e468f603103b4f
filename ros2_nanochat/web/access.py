"""Who may use the page: known host names, the page's own origin, a token; and the headers of every response.

Plain values, without a server. Another site that a browser shows cannot reach the robots through it: its
requests have another origin, a name that it points at this machine is not a known host, and nothing that we
serve may be embedded elsewhere.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

HEADERS = {
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'",
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Permissions-Policy': 'camera=(), microphone=(), geolocation=()',
    'Cache-Control': 'no-cache',
}
"""Headers of every response. The policy allows only our own scripts and styles, and no HTML from text."""


class Access:
    """Decides which requests are served.

    Args:
        host: The address that the server listens on.
        token: What browsers have to show; empty: none is needed.

    Attributes:
        token: The same.
    """

    def __init__(self, host: str, token: str = ''):
        self.token = token
        self._any_address = not is_loopback(host)
        names = {host.lower().strip('[]')}
        if self._any_address:
            name = socket.gethostname().lower()
            names |= {name, f'{name.partition(".")[0]}.local', 'localhost'}
        else:
            names |= {'localhost', '127.0.0.1', '::1'}
        self._names = names

    def knows_host(self, host: str) -> bool:
        """Return whether a request's `Host` names this machine.

        A foreign name that an attacker's DNS points here (DNS rebinding) does not. An address cannot be
        pointed anywhere, so every address will do where the server listens on more than loopback.
        """
        name = _host_name(host)
        return name in self._names or (self._any_address and _is_address(name))

    def is_own_origin(self, origin: str | None, host: str) -> bool:
        """Return whether a browser's request comes from the page itself.

        Args:
            origin: The request's `Origin`.
            host: The request's `Host`.
        """
        if not origin:
            return False
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ('http', 'https') and parts.netloc.lower() == host.lower()

    def knows_token(self, given: str | None) -> bool:
        """Return whether a token is the right one. True if none is needed."""
        return not self.token or hmac.compare_digest((given or '').encode(), self.token.encode())


class Rate:
    """Limits how often something happens: `burst` times at once, and then `per_second`.

    Args:
        per_second: How often in the long run.
        burst: How often at once.
        clock: Returns the time in seconds.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic):
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._left, self._then = burst, clock()

    def take(self, amount: float = 1.0) -> bool:
        """Use up some of the allowance. Return False, without using any, if there is not enough."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._then) * self._per_second)
        self._then = now
        if amount > self._left:
            return False
        self._left -= amount
        return True


def new_token() -> str:
    """Return a token that nobody can guess."""
    return secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Return whether an address is reached only from this machine."""
    name = host.lower().strip('[]')
    return name == 'localhost' or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f'//{host}').hostname or '').lower()
    except ValueError:
        return ''
