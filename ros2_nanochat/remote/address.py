"""The addresses of servers and the key of their API, as users give them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from urllib.parse import urlsplit

from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import one_line, require, shown


def check_address(url: str) -> str:
    """Return the address of a server, with its scheme in lower case and without a slash at its end.

    Raises:
        ValueError: It is not one.
    """
    if '@' in (url.partition('://')[2] or url).partition('/')[0]:  # first: no other message may show it
        raise ValueError('the address of a server must not hold a password: set $OPENAI_API_KEY')
    if '?' in url or '#' in url:  # what follows may be a key
        raise ValueError('the address of a server must not hold ? or #: http://host:8000/v1')
    what = f'model={shown(url)} is not valid for api=openai'
    scheme, mark, rest = url.partition('://')
    scheme = scheme.lower()
    if scheme not in ('http', 'https') or not mark or not rest.partition('/')[0]:
        raise ValueError(f'{what}: http://host:8000/v1')
    client = require('httpx2', 'openai')
    try:
        whole = client.URL(f'{scheme}://{rest}')
    except Exception as error:  # of its parser, of IDNA
        raise ValueError(f'{what}: {one_line(error)}') from None
    if not whole.host or (whole.port or 1) >= 1 << 16:
        raise ValueError(f'{what}: http://host:8000/v1')
    return f'{scheme}://{rest}'.rstrip('/')


def is_here(url: str) -> bool:
    """Return whether an address is on this machine."""
    host = urlsplit(url).hostname or ''
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def read_key(config: ModelConfig, environment: Callable[[str], str | None] = os.environ.get) -> str | None:
    """Return the key of the API: what the file `api_key_file` holds, else `$OPENAI_API_KEY`; None if neither
    is there.

    Raises:
        ValueError: The file cannot be read, or the key cannot be sent.
    """
    where = '$OPENAI_API_KEY'
    key = environment('OPENAI_API_KEY') or ''
    if config.api_key_file is not None:
        where = f'api_key_file={config.api_key_file!r}'
        try:
            with open(os.path.expanduser(config.api_key_file), encoding='ascii', errors='replace') as file:
                key = file.read(1 << 16)
        except OSError as error:
            raise ValueError(f'{where} cannot be read: {error.strerror}') from None
    key = key.strip()
    if not key and config.api_key_file is not None:
        raise ValueError(f'{where} is empty: the key of the API')
    if not (key.isascii() and key.isprintable()) or ' ' in key:
        raise ValueError(f'{where} holds no key: one word of ASCII characters')
    return key or None
