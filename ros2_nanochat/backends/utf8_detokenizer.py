"""A detokenizer for vocabularies whose tokens are runs of UTF-8 bytes."""

from __future__ import annotations

import codecs
from collections.abc import Callable

from ros2_nanochat.backends.base import Detokenizer


class Utf8Detokenizer(Detokenizer):
    """Joins the bytes of tokens; holds back an incomplete character.

    Args:
        piece: Returns the bytes of a token.
        strip_first_space: Whether to strip the space that the vocabulary puts before the first word and that
            belongs to no text (SentencePiece).
    """

    pending = False

    def __init__(self, piece: Callable[[int], bytes], strip_first_space: bool = False):
        self._piece = piece
        self._strip = strip_first_space
        self._decoder = codecs.getincrementaldecoder('utf-8')('replace')

    def add(self, token_id: int) -> str:
        data = self._piece(token_id)
        if self._strip and data:
            data, self._strip = data.removeprefix(b' '), False
        if not self.pending and data.isascii():  # nearly always
            return data.decode('ascii')
        text = self._decoder.decode(data)
        self.pending = bool(self._decoder.getstate()[0])
        return text

    def token_bytes(self, token_id: int) -> bytes:
        return self._piece(token_id)

    def flush(self) -> str:
        text = self._decoder.decode(b'', final=True)
        self._decoder.reset()
        self.pending = False
        return text
