"""Which pictures a server holds: those are sent once, and then only named (vLLM's `uuid`)."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from ros2_nanochat.prompt import EmbeddingSpan

_MOST = 1024


def picture_name(picture: EmbeddingSpan, salt: str = '') -> str:
    """Return the name by which a server finds a picture again.

    Args:
        picture: The picture.
        salt: Mixed into the name, so that only those who know it get the same one.
    """
    return hashlib.sha256(salt.encode() + picture.digest).hexdigest()[:32]


def picture_part(url: str | None, name: str | None = None) -> dict[str, Any]:
    """Return a part of a message that shows a picture.

    Args:
        url: The picture; None if the server holds it.
        name: Its name; None if the server keeps no pictures.
    """
    part: dict[str, Any] = {'type': 'image_url', 'image_url': None if url is None else {'url': url}}
    return part if name is None else {**part, 'uuid': name}


class KeptPictures:
    """The pictures that one server has been sent lately. It may have dropped some."""

    def __init__(self):
        self._names: OrderedDict[str, None] = OrderedDict()

    def held(self, names: Iterable[str]) -> frozenset[str]:
        """Return which of these names the server should know."""
        return frozenset(name for name in names if name in self._names)

    def note(self, names: Iterable[str]) -> None:
        """Note that the server took these."""
        for name in names:
            self._names[name] = None
            self._names.move_to_end(name)
        while len(self._names) > _MOST:
            self._names.popitem(last=False)

    def forget(self, names: Iterable[str]) -> None:
        """Note that the server may not have these."""
        for name in names:
            self._names.pop(name, None)
