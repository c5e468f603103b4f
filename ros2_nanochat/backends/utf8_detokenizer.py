"""Detokenizing where every token is a run of bytes of UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Callable

from ros2_nanochat.backends.base import Detokenizer


class Utf8Detokenizer(Detokenizer):
    """Joins the bytes of pieces; a character whose bytes are not all there is held back.

    piece: bytes of a token. strip_first_space: the vocabulary puts a space before the first word that belongs
    to no text (SentencePiece).
    """

    def __init__(self, piece: Callable[[int], bytes], strip_first_space: bool = False):
        self._piece = piece
        self._strip = strip_first_space
        self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

    def add(self, token_id: int) -> str:
        data = self._piece(token_id)
        if self._strip and data:
            data, self._strip = data.removeprefix(b' '), False
        return self._decoder.decode(data)

    def token_bytes(self, token_id: int) -> bytes:
        return self._piece(token_id)

    @property
    def pending(self) -> bool:
        return bool(self._decoder.getstate()[0])

    def flush(self) -> str:
        text = self._decoder.decode(b'', final=True)
        self._decoder.reset()
        return text
