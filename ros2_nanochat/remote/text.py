"""The text side of a model on a server: ids, special tokens, facts. Found in tokenizer files, through the
server, or in the vocabulary for messages.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from ros2_nanochat.backends.base import Detokenizer
from ros2_nanochat.errors import BackendError, shown
from ros2_nanochat.model_info import ModelInfo
from ros2_nanochat.prompt import Preceding
from ros2_nanochat.remote import message_vocabulary
from ros2_nanochat.remote.failures import Unavailable
from ros2_nanochat.remote.reading import ids_in, text_in

_CACHED = 4096


class FedDetokenizer(Detokenizer):
    """Gives the text that the server sent with the ids; without such text, what the ids themselves spell.

    Args:
        plain: Turns ids into text.
    """

    def __init__(self, plain: Detokenizer):
        self._plain = plain
        self._fed: list[tuple[str, bool]] = []
        self._pending = False
        self._is_fed = False
        self._rest = ''

    def feed(self, text: str, count: int, is_special: Sequence[bool]) -> None:
        """Set the text of the next `count` ids. It comes with the last of them.

        Args:
            text: The text; empty if a character is not complete yet.
            count: The number of ids.
            is_special: For each id, whether it gives no text.
        """
        self._is_fed = True
        text = message_vocabulary.join_halves(text)[0]
        incomplete = not text and not all(is_special)
        self._fed += [('', not is_special[n]) for n in range(count - 1)]
        self._fed.append((text, incomplete))

    def feed_rest(self, text: str) -> None:
        """Set text that came without ids, after those that were fed."""
        self._is_fed = True
        self._rest += message_vocabulary.join_halves(text)[0]

    def forget(self) -> None:
        """Drop the texts of ids that are not taken."""
        self._fed.clear()

    def add(self, token_id: int) -> str:
        """See `Detokenizer.add`."""
        if not self._is_fed:
            return self._plain.add(token_id)
        text, self._pending = self._fed.pop(0) if self._fed else ('', self._pending)
        rest, self._rest = self._rest, ''
        return rest + text

    def flush(self) -> str:
        """See `Detokenizer.flush`."""
        if not self._is_fed:
            return self._plain.flush()
        rest, self._rest = self._rest, ''
        return rest

    def flush_whole(self) -> tuple[str, int | None]:
        """See `Detokenizer.flush_whole`."""
        if not self._is_fed:
            return self._plain.flush_whole()
        return self.flush(), None if self._pending else 0

    def whole_characters(self) -> str:
        """See `Detokenizer.whole_characters`."""
        return '' if self._is_fed else self._plain.whole_characters()

    def token_bytes(self, token_id: int) -> bytes:
        """See `Detokenizer.token_bytes`."""
        return self._plain.token_bytes(token_id)

    @property
    def pending(self) -> bool:
        """See `Detokenizer.pending`."""
        return self._pending if self._is_fed else self._plain.pending


class RemoteText(ABC):
    """What `NanoLLM` needs of a model that it does not run; has the surface of `Backend` for that.

    Attributes:
        info: Facts about the model.
    """

    def __init__(self, info: ModelInfo):
        self.info = info
        self.special_ids = frozenset(token.id for token in info.special_tokens) | info.eos_token_ids

    @property
    def kv_capacity(self) -> int:
        """Tokens that one conversation may hold."""
        return self.info.context_length

    @abstractmethod
    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        """See `Backend.tokenize`."""

    @abstractmethod
    def plain_detokenizer(self, preceding: Preceding) -> Detokenizer:
        """Return what turns ids into text."""

    def detokenizer(self, preceding: Preceding = Preceding.START) -> Detokenizer:
        """See `Backend.detokenizer`."""
        return FedDetokenizer(self.plain_detokenizer(preceding))

    def token_text(self, token_id: int) -> str:
        """See `Backend.token_text`."""
        for token in self.info.special_tokens:
            if token.id == token_id:
                return token.text
        detokenizer = self.plain_detokenizer(Preceding.TEXT)
        return detokenizer.add(token_id) + detokenizer.flush()

    def text_of_ids(self, ids: Sequence[int]) -> str | None:
        """Return the text of ids in the middle of a reply, without special tokens; None if only a server
        knows it.
        """
        detokenizer = self.plain_detokenizer(Preceding.TEXT)
        return ''.join(detokenizer.add(token_id) for token_id in ids if token_id not in self.special_ids)

    def embed_tokens(self, ids: Sequence[int]) -> np.ndarray:
        """See `Backend.embed_tokens`."""
        raise BackendError('a server does not give the embeddings of tokens; pass ids')


class FilesText(RemoteText):
    """The text side of a model whose tokenizer files are here.

    Args:
        info: Facts about the model.
        tokenizer: A `backends.tokenizer.Tokenizer`.
    """

    def __init__(self, info: ModelInfo, tokenizer: Any):
        super().__init__(info)
        self._tokenizer = tokenizer

    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        """See `Backend.tokenize`."""
        return self._tokenizer.tokenize(text, special, preceding)

    def plain_detokenizer(self, preceding: Preceding) -> Detokenizer:
        """See `RemoteText`."""
        return self._tokenizer.detokenizer(preceding)


class ServerText(RemoteText):
    """The text side of a model whose server tokenizes (llama.cpp). Caches what it has asked for.

    Args:
        info: Facts about the model.
        ask: Sends `(address, body)` to a server that works and returns the JSON; any thread but the loop's.
    """

    def __init__(self, info: ModelInfo, ask: Callable[[str, dict], Any]):
        super().__init__(info)
        self._ask = ask
        self._ids: OrderedDict[tuple[str, bool], tuple[int, ...]] = OrderedDict()
        self._texts: dict[int, str] = {}

    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        """See `Backend.tokenize`. While no server works, ids of the vocabulary for messages take the place of
        those that it would give; `real_ids` replaces them before a prompt is sent.
        """
        key = text, special
        known = self._ids.get(key)
        if known is None:
            try:
                known = tokens_in(self._ask('/tokenize', tokenize_body(text, special)))
            except BackendError:
                return message_vocabulary.encode(text)
            self._ids[key] = known
            while len(self._ids) > _CACHED:
                self._ids.popitem(last=False)
        return list(known)

    def text_of(self, token_id: int) -> str:
        """Return the text of one id."""
        if token_id in self.special_ids:
            return ''
        if message_vocabulary.piece_of(token_id):
            return message_vocabulary.text_of([token_id])
        if token_id not in self._texts:
            if len(self._texts) > _CACHED:
                self._texts.clear()
            answer = self._ask('/detokenize', {'tokens': [token_id]})
            self._texts[token_id] = text_in(answer.get('content')) if isinstance(answer, dict) else ''
        return self._texts[token_id]

    def text_of_ids(self, ids: Sequence[int]) -> str | None:
        """See `RemoteText.text_of_ids`."""
        return None

    def plain_detokenizer(self, preceding: Preceding) -> Detokenizer:
        """See `RemoteText`."""
        return _ServerDetokenizer(self)


def tokenize_body(text: str, special: bool) -> dict[str, Any]:
    """Return what llama.cpp is asked to tokenize a text."""
    return {'content': text, 'add_special': False, 'parse_special': special}


def tokens_in(answer: Any) -> tuple[int, ...]:
    """Return the ids in llama.cpp's answer.

    Raises:
        Unavailable: There are none.
    """
    tokens = answer.get('tokens') if isinstance(answer, dict) else None
    if not isinstance(tokens, list):
        raise Unavailable(f'the server tokenizes a text as {shown(answer, 80)}')
    return ids_in(tokens)


async def real_ids(ids: Sequence[int], ask: Callable[[str, dict], Awaitable[Any]]) -> list[int]:
    """Return ids with those of `ServerText.tokenize` replaced that took the place of the server's.

    Args:
        ids: The ids.
        ask: Sends `(address, body)` to the server and returns the JSON.
    """
    real: list[int] = []
    for is_ours, group in itertools.groupby(ids, lambda i: bool(message_vocabulary.piece_of(i))):
        if is_ours:
            body = tokenize_body(message_vocabulary.text_of(group), False)
            real += tokens_in(await ask('/tokenize', body))
        else:
            real += group
    return real


class _ServerDetokenizer(Detokenizer):
    """Asks the server, id by id: only for short texts that no reply brought."""

    def __init__(self, text: ServerText):
        self._text = text

    def add(self, token_id: int) -> str:
        return self._text.text_of(token_id)

    def flush(self) -> str:
        return ''

    def token_bytes(self, token_id: int) -> bytes:
        return self._text.text_of(token_id).encode()


class MessageText(RemoteText):
    """The text side of a model whose server takes only messages."""

    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        """See `Backend.tokenize`."""
        return message_vocabulary.tokenize(text, special, preceding)

    def plain_detokenizer(self, preceding: Preceding) -> Detokenizer:
        """See `RemoteText`."""
        return message_vocabulary.MessageDetokenizer()

    def detokenizer(self, preceding: Preceding = Preceding.START) -> Detokenizer:
        """See `Backend.detokenizer`."""
        return self.plain_detokenizer(preceding)
