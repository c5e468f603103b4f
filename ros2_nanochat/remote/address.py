"""The addresses of servers and the key of their API, as users give them."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import one_line, require, shown
from ros2_nanochat.files import open_regular

_LONGEST = 2000
_ONE_WORD = re.compile(r'[^\s\x00-\x1f\x7f]+')


def read_addresses(model: str | None) -> list[str]:
    """Return the different addresses in a text with commas between them.

    Raises:
        ValueError: There is none, or one of them is not valid.
    """
    _refuse_password(model or '')  # before it is cut: a password may hold a comma
    urls = [url.strip() for url in (model or '').split(',') if url.strip()]
    if not urls:
        raise ValueError('api=openai needs the address of a server: model=http://host:8000/v1')
    return list(dict.fromkeys(map(check_address, urls)))


def _refuse_password(text: str) -> None:
    """Refuse any @, wherever it is: no other message may show what is before it."""
    if '@' in text:
        raise ValueError('the address of a server must not hold a password (or any @): set $OPENAI_API_KEY')


def check_address(url: str) -> str:
    """Return the address of a server, with its scheme in lower case and without a slash at its end.

    Raises:
        ValueError: It is not one.
    """
    _refuse_password(url)
    if '?' in url or '#' in url:  # what follows may be a key
        raise ValueError('the address of a server must not hold ? or #: http://host:8000/v1')
    what = f'model={shown(url)} is not valid for api=openai'
    scheme, _, rest = url.partition('://')
    scheme, host = scheme.lower(), rest.partition('/')[0]
    if scheme not in ('http', 'https') or not host or len(url) > _LONGEST or not _ONE_WORD.fullmatch(url):
        raise ValueError(f'{what}: http://host:8000/v1')
    try:
        if host.startswith('['):
            ipaddress.IPv6Address(host[1:].partition(']')[0].partition('%')[0])
        require('yarl', 'openai').URL(f'{scheme}://{rest}')
    except ValueError as error:  # of IDNA, of a port
        raise ValueError(f'{what}: {one_line(error)}') from None
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
            with open_regular(os.path.expanduser(config.api_key_file)) as file:
                key = file.read(1 << 16).decode('ascii', 'replace')
        except OSError as error:
            raise ValueError(f'{where} cannot be read: {error.strerror}') from None
    key = key.strip()
    if not key and config.api_key_file is not None:
        raise ValueError(f'{where} is empty: the key of the API')
    if not (key.isascii() and key.isprintable()) or ' ' in key:
        raise ValueError(f'{where} holds no key: one word of ASCII characters')
    return key or None
