"""The vocabulary of a GGUF model on llama.cpp: text to ids and back, special tokens, end of reply.
Thread-safe, also while the model is being closed.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from typing import Any

from ros2_nanochat.backends.gguf import digit_runs, slow_blanks
from ros2_nanochat.backends.gguf.deep_stack import with_stack_for
from ros2_nanochat.backends.utf8_detokenizer import Utf8Detokenizer
from ros2_nanochat.errors import BackendError
from ros2_nanochat.model_info import LONGEST_TEMPLATE, SpecialToken
from ros2_nanochat.prompt import Preceding

_log = logging.getLogger(__name__)
_JOINT = '\U0010fffd'
"""A character that no token contains, so nothing merges across it."""
_KEYS = {  # https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    'bos_token': 'tokenizer.ggml.bos_token_id',
    'eos_token': 'tokenizer.ggml.eos_token_id',
    'pad_token': 'tokenizer.ggml.padding_token_id',
}


class GGUFText:
    """The vocabulary of one model.

    Args:
        api: `llama_cpp.llama_cpp`.
        model: Its `llama_model`.
        metadata: The file's metadata, as `header.read_metadata` returns it.
    """

    def __init__(self, api, model, metadata: dict[str, Any]):
        self._api = api
        self._vocab = vocab = api.llama_model_get_vocab(model)
        self._lock = (
            threading.RLock()
        )  # any thread may ask for text while the engine's thread closes the model
        self._pieces: dict[int, bytes] = {}
        self.size: int = api.llama_vocab_n_tokens(vocab)
        template = api.llama_model_chat_template(model, None)
        self.chat_template: str | None = template.decode('utf-8', 'replace') if template else None
        markup = api.LLAMA_TOKEN_ATTR_CONTROL | api.LLAMA_TOKEN_ATTR_USER_DEFINED
        all_attributes = [api.llama_vocab_get_attr(vocab, i) for i in range(self.size)]
        attributes = {i: a for i, a in enumerate(all_attributes) if a & markup}
        scanned = self.chat_template if len(self.chat_template or '') <= LONGEST_TEMPLATE else None
        self.special_tokens: list[SpecialToken] = []
        self._protected: dict[int, str] = {}
        for token_id, attribute in attributes.items():
            text = self._text(token_id)
            if not text:
                continue
            self.special_tokens.append(
                SpecialToken(
                    token_id,
                    text,
                    bool(attribute & api.LLAMA_TOKEN_ATTR_LSTRIP),
                    bool(attribute & api.LLAMA_TOKEN_ATTR_RSTRIP),
                )
            )
            if attribute & api.LLAMA_TOKEN_ATTR_CONTROL or (scanned and text.strip() and text in scanned):
                self._protected[token_id] = text
        named = {
            'bos_token': api.llama_vocab_bos(vocab),
            'eos_token': api.llama_vocab_eos(vocab),
            'pad_token': api.llama_vocab_pad(vocab),
        }
        named = {
            name: token_id
            for name, token_id in named.items()
            if token_id >= 0 and (self._is_in_file(_KEYS[name], metadata) or token_id in attributes)
        }
        self.named_tokens = {name: self._text(token_id) for name, token_id in named.items()}
        self.bos_token_id: int | None = named.get('bos_token')
        self.add_bos = bool(api.llama_vocab_get_add_bos(vocab))
        ends = {i for i in attributes if api.llama_vocab_is_eog(vocab, i)}
        self.eos_token_ids = frozenset(ends | {named['eos_token']} if 'eos_token' in named else ends)
        self._strip_first_space = metadata.get('tokenizer.ggml.model') == 'llama' and metadata.get(
            'tokenizer.ggml.add_space_prefix', True
        )
        self._pre: str | None = metadata.get('tokenizer.ggml.pre')
        self._splits_digits = self._pre in digit_runs.PRE_TOKENIZERS
        self._num_joint = 0  # ids of `_JOINT`, which is put before text that follows other text
        if self._strip_first_space and any(a & api.LLAMA_TOKEN_ATTR_BYTE for a in all_attributes):
            self._num_joint = len(self._tokenize(_JOINT, False))

    def _is_in_file(self, key: str, metadata: dict[str, Any]) -> bool:
        """Whether the file names this token. Otherwise llama.cpp has a default, which may be any word."""
        token_id = metadata.get(key)
        if token_id is not None and not 0 <= token_id < self.size:
            _log.warning('%s=%d is ignored: the vocabulary ends at %d', key, token_id, self.size - 1)
            return False
        return token_id is not None

    def _text(self, token_id: int) -> str:
        return self._api.llama_vocab_get_text(self._vocab, token_id).decode('utf-8', 'replace')

    def tokenize(self, text: str, special: bool, preceding: Preceding = Preceding.START) -> list[int]:
        """Turn a text into ids, without begin-of-text.

        Args:
            text: The text.
            special: Whether to find special tokens in it.
            preceding: What comes before it. Unless that is text, llama.cpp puts SentencePiece's space before
                the first word, both at the start and after special tokens.
        """
        joined = preceding is Preceding.TEXT
        ids = self._tokenize(text, special, joined)
        if special or self._protected.keys().isdisjoint(ids):
            return ids
        # llama.cpp also finds user-defined tokens in plain text, and some SentencePiece merges spell a
        # control token: cut the text inside them.
        cuts = sorted({at + 1 for mark in self._protected.values() for at in _occurrences(text, mark)})
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
        return [
            i
            for n, piece in enumerate(pieces)
            for i in self._tokenize(piece, False, joined or n > 0)
            if i not in self._protected
        ]

    def _tokenize(self, text: str, special: bool, joined: bool = False) -> list[int]:
        if joined and text and self._num_joint:
            return self._tokenize(_JOINT + text, special)[self._num_joint :]
        if len(text) > digit_runs.SHORT and self._groups_digits and len(pieces := digit_runs.cut(text)) > 1:
            return [i for piece in pieces for i in self._tokenize(piece, special)]
        slow_blanks.check(text, self._pre)
        data = text.encode('utf-8', 'replace')
        with self._lock:
            self._check_open()
            return with_stack_for(text, lambda: self._llama_tokenize(data, special), self._pre)

    @functools.cached_property
    def _groups_digits(self) -> bool:
        return self._splits_digits and digit_runs.groups_by_threes(lambda text: self._tokenize(text, False))

    def _llama_tokenize(self, data: bytes, special: bool) -> list[int]:
        count = len(data) + 8
        for _ in range(2):  # a second time if there are more ids than bytes
            buffer = (ctypes.c_int32 * count)()
            count = self._api.llama_tokenize(
                self._vocab, data, len(data), buffer, len(buffer), False, special
            )
            if count >= 0:
                break
            count = -count
        return buffer[:count]

    def detokenizer(self, preceding: Preceding) -> Utf8Detokenizer:
        """See `Backend.detokenizer`."""
        return Utf8Detokenizer(self._piece, self._strip_first_space and preceding is not Preceding.TEXT)

    def _piece(self, token_id: int) -> bytes:
        piece = self._pieces.get(token_id)
        if piece is not None:
            return piece
        buffer = ctypes.create_string_buffer(64)
        with self._lock:
            self._check_open()
            size = self._api.llama_token_to_piece(self._vocab, token_id, buffer, len(buffer), 0, False)
            if size < 0:
                buffer = ctypes.create_string_buffer(-size)
                size = self._api.llama_token_to_piece(self._vocab, token_id, buffer, len(buffer), 0, False)
        return self._pieces.setdefault(token_id, buffer.raw[:size])

    def _check_open(self) -> None:
        if not self._vocab:
            raise BackendError('the model is closed')

    def close(self) -> None:
        """Call this before the model is freed."""
        with self._lock:
            self._vocab = None


def _occurrences(text: str, mark: str):
    at = text.find(mark)
    while at >= 0:
        yield at
        at = text.find(mark, at + 1)
