"""Ids to text, exactly as `tokenizers` decodes the whole reply, but piece by piece and in linear time.

Two families cover the vocabularies of language models: byte-level BPE (a token is a run of bytes) and
SentencePiece (a token is text, with `<0xE2>` for single bytes). Their rules are implemented here token by
token. Other decoders use `tokenizers` itself. Knows nothing of models or templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ros2_nanochat.backends.base import Detokenizer
from ros2_nanochat.backends.utf8_detokenizer import Utf8Detokenizer
from ros2_nanochat.errors import BackendError
from ros2_nanochat.prompt import Preceding

if TYPE_CHECKING:
    import tokenizers

REPLACEMENT = '\ufffd'
_BYTE_TOKEN = re.compile(r'<0x([0-9A-Fa-f]{2})>')


def _byte_of_char() -> dict[str, int]:
    """The alphabet of byte-level BPE (GPT-2, `bytes_to_unicode`): printable bytes represent themselves, the
    others are U+0100 and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(rest)}


_BYTES = _byte_of_char()


def make_detokenizer(
    tokenizer: tokenizers.Tokenizer, special_ids: frozenset[int]
) -> Callable[[Preceding], Detokenizer]:
    """Return a factory of detokenizers for a tokenizer's decoder.

    Args:
        tokenizer: The tokenizer.
        special_ids: Ids that give no text.

    Returns:
        A function that takes what precedes a reply and returns its detokenizer.
    """
    decoder = json.loads(tokenizer.to_str())['decoder']
    steps = decoder['decoders'] if decoder and decoder['type'] == 'Sequence' else [decoder] if decoder else []
    kinds = [step['type'] for step in steps]
    if kinds == ['ByteLevel']:
        known: dict[int, bytes] = {}  # of the ids seen so far, shared by all replies
        return lambda preceding: ByteLevelDetokenizer(tokenizer, special_ids, known)
    if SentencePieceDetokenizer.follows(steps):
        return lambda preceding: SentencePieceDetokenizer(tokenizer, special_ids, steps, preceding)
    before = tokenizer.encode('a', add_special_tokens=False).ids
    return lambda preceding: WindowDetokenizer(
        tokenizer, special_ids, before if preceding is Preceding.TEXT else []
    )


class ByteLevelDetokenizer(Utf8Detokenizer):
    """Byte-level BPE: tokens are bytes, written as the characters that represent them.

    Args:
        tokenizer: The tokenizer.
        special_ids: Ids that give no text.
        known: Cache of the bytes of each id, shared by all replies.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, special_ids: frozenset[int], known: dict[int, bytes]):
        super().__init__(self._known)
        self._token = tokenizer.id_to_token
        self._special_ids = special_ids
        self._bytes = known

    def _known(self, token_id: int) -> bytes:
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._bytes_of(token_id)
        return data

    def _bytes_of(self, token_id: int) -> bytes:
        token = '' if token_id in self._special_ids else self._token(token_id) or ''
        try:
            return bytes([_BYTES[char] for char in token])
        except KeyError:  # an added token, which is plain text
            return token.encode()


class SentencePieceDetokenizer(Detokenizer):
    """SentencePiece: tokens are text with a mark for the space.

    A run of bytes is decoded as a whole, and if it is not valid UTF-8, none of it is (as in `tokenizers`). So
    a run is held back until it ends.

    Args:
        tokenizer: The tokenizer.
        special_ids: Ids that give no text.
        steps: The steps of its decoder.
        preceding: What comes before the reply.
    """

    KINDS = ('Replace', 'Metaspace', 'ByteFallback', 'Fuse', 'Strip')

    @classmethod
    def follows(cls, steps: list[dict]) -> bool:
        """Return whether this class implements the decoder's steps."""
        kinds = [step['type'] for step in steps]
        if not kinds or any(kind not in cls.KINDS for kind in kinds) or len(set(kinds)) != len(kinds):
            return False
        if 'Replace' in kinds and 'String' not in steps[kinds.index('Replace')]['pattern']:
            return False
        if 'Strip' in kinds:  # on the left of the fused text: the space before the first word
            strip = steps[kinds.index('Strip')]
            if kinds[-2:] != ['Fuse', 'Strip'] or strip['stop'] or len(strip['content']) != 1:
                return False
        order = [kind for kind in kinds if kind not in ('Fuse', 'Strip')]
        return order in (
            ['Replace'],
            ['Metaspace'],
            ['Replace', 'ByteFallback'],
            ['Metaspace', 'ByteFallback'],
            ['ByteFallback'],
        )

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        special_ids: frozenset[int],
        steps: list[dict],
        preceding: Preceding = Preceding.START,
    ):
        self._token = tokenizer.id_to_token
        self._special_ids = special_ids
        step = {step['type']: step for step in steps}
        self._mark, self._space, self._drops_first = None, ' ', False
        if 'Replace' in step:
            self._mark, self._space = step['Replace']['pattern']['String'], step['Replace']['content']
        if 'Metaspace' in step:
            self._mark = step['Metaspace']['replacement']
            self._drops_first = step['Metaspace'].get('prepend_scheme', 'always') != 'never'
        self._has_bytes = 'ByteFallback' in step
        self._strip = step.get('Strip', {}).get('content', '')
        self._strips = step.get('Strip', {}).get('start', 0)
        self._start()
        if preceding is Preceding.TEXT:  # only the beginning of a text has a space to strip
            self._to_strip, self._is_first = 0, False

    def _start(self) -> None:
        self._bytes = bytearray()
        self._places: list[int] = []  # of each byte's id among the ids since the first of them
        self._num_ids = 0
        self._to_strip = self._strips
        self._is_first = True

    def add(self, token_id: int) -> str:
        token = None if token_id in self._special_ids else self._token(token_id)
        self._num_ids += 1
        if token is None:
            return ''
        if self._mark:
            token = token.replace(self._mark, '' if self._is_first and self._drops_first else self._space)
        self._is_first = False
        if self._has_bytes and (byte := _BYTE_TOKEN.fullmatch(token)):
            if not self._bytes:
                self._places, self._num_ids = [], 1
            self._places.append(self._num_ids - 1)
            self._bytes.append(int(byte[1], 16))
            return ''
        return self._emit(self._end_of_bytes() + token)

    def token_bytes(self, token_id: int) -> bytes:
        token = None if token_id in self._special_ids else self._token(token_id)
        if token is None:
            return b''
        if self._has_bytes and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return (token.replace(self._mark, self._space) if self._mark else token).encode()

    def flush(self) -> str:
        text = self._emit(self._end_of_bytes())
        self._start()
        return text

    def flush_whole(self) -> tuple[str, int | None]:
        data = bytes(self._bytes)
        try:
            whole = len(data.decode().encode())
        except UnicodeDecodeError as error:
            if error.reason != 'unexpected end of data':
                return self.flush(), 0  # no part of a character: broken, as in the middle of a text
            whole = error.start
        partial = self._num_ids - self._places[whole] if whole < len(data) else 0
        del self._bytes[whole:]
        return self.flush(), partial

    def whole_characters(self) -> str:
        try:
            self._bytes.decode()
        except UnicodeDecodeError:
            return ''
        return self._emit(self._end_of_bytes())

    @property
    def pending(self) -> bool:
        return bool(self._bytes)

    def _end_of_bytes(self) -> str:
        data, self._bytes = bytes(self._bytes), bytearray()
        try:
            return data.decode()
        except UnicodeDecodeError:
            return REPLACEMENT * len(data)

    def _emit(self, text: str) -> str:
        while text and self._to_strip:
            if text[0] != self._strip:
                self._to_strip = 0
                break
            text = text[1:]
            self._to_strip -= 1
        return text


class WindowDetokenizer(Detokenizer):
    """Any decoder: decodes the last few tokens with and without the new one, and gives the difference.

    Args:
        tokenizer: The tokenizer.
        special_ids: Ids that give no text.
        before: Ids that are decoded before those of the reply.
    """

    WINDOW = 8
    PATIENCE = 16
    """Tokens after which bytes that form no character are no longer held back."""

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, special_ids: frozenset[int], before: Sequence[int] = ()
    ):
        self._tokenizer = tokenizer
        self._special_ids = special_ids
        self._ids = list(before)
        self._given = self._decode(self._ids)  # the part of the decoded text that was handed out
        self._waiting = 0

    def add(self, token_id: int) -> str:
        if token_id in self._special_ids:
            return ''
        self._ids.append(token_id)
        self._waiting += 1
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT) and self._waiting < self.PATIENCE:
            return ''
        piece = text[len(self._given) :]
        self._waiting, self._given = 0, text
        if len(self._ids) > 2 * self.WINDOW:
            self._ids = self._ids[-self.WINDOW :]
            self._given = self._decode(self._ids)
        return piece

    def token_bytes(self, token_id: int) -> bytes:
        raise BackendError(
            'this tokenizer decodes a token depending on its neighbors, so answers cannot be held to a form'
        )

    def flush(self) -> str:
        piece = self._decode(self._ids)[len(self._given) :]
        self._ids, self._given, self._waiting = [], '', 0
        return piece

    @property
    def pending(self) -> bool:
        return bool(self._waiting)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)
