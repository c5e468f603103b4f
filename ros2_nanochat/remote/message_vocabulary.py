"""A vocabulary for servers that take only messages: each id holds a few bytes of text, so that a history can
be cut, compared and continued as with the ids of a model.

A prompt of this vocabulary is turned back into the messages that it was made of (`messages`). A word has
about as many ids as it has tokens in the vocabularies of models, so that limits in tokens stay meaningful.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ros2_nanochat.backends.base import Detokenizer
from ros2_nanochat.model_info import SpecialToken
from ros2_nanochat.prompt import EmbeddingSpan, Preceding, Prompt

_LONGEST = 7  # bytes in one id
VOCAB_SIZE = 8 << 56
"""Ids are below this. The lowest 256 are reserved for special tokens."""

ROLES = ('system', 'user', 'assistant', 'tool')
THINK_START, THINK_END = '<think>', '</think>'
_ROLE_TEXTS = {role: f'<|nanochat_{role}|>' for role in ROLES}
_NAMES = [*_ROLE_TEXTS.values(), '<|nanochat_end|>', '<|nanochat_image|>', THINK_START, THINK_END]
SPECIAL_TOKENS = tuple(SpecialToken(number, text) for number, text in enumerate(_NAMES))
IDS = {token.text: token.id for token in SPECIAL_TOKENS}
END_ID = IDS['<|nanochat_end|>']
_ROLE_IDS = {IDS[text]: role for role, text in _ROLE_TEXTS.items()}

TEMPLATE = (
    "{%- for message in messages -%}{{- '<|nanochat_' + message['role'] + '|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{{- '<|nanochat_image|>' -}}"
    "{%- else -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}{{- '<|nanochat_end|>' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|nanochat_assistant|>' -}}{%- endif -%}"
)
"""The chat template of this vocabulary. The server applies the model's own to the messages."""

# As vocabularies of models cut English: a word with the space before it; other scripts nearly by character.
_WORDS = re.compile(r' ?[A-Za-z]+| ?[0-9]{1,3}|[^A-Za-z0-9]', re.DOTALL)
_HALVES = re.compile('[\ud800-\udfff]')
_SPECIALS = re.compile('|'.join(re.escape(text) for text in IDS))


def encode(text: str) -> list[int]:
    """Return the ids of a text in which nothing is special."""
    ids = []
    for match in _WORDS.finditer(text):
        data = match[0].encode('utf-8', 'replace')
        for start in range(0, len(data), _LONGEST):
            piece = data[start : start + _LONGEST]
            ids.append(len(piece) << 56 | int.from_bytes(piece, 'big'))
    return ids


def piece_of(token_id: int) -> bytes:
    """Return the bytes of an id; none for a special token."""
    length = token_id >> 56
    return (token_id & ((1 << 56) - 1)).to_bytes(_LONGEST, 'big')[_LONGEST - length :] if length else b''


def tokenize(text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
    """See `Backend.tokenize`."""
    if not special:
        return encode(text)
    ids, end = [], 0
    for match in _SPECIALS.finditer(text):
        ids += [*encode(text[end : match.start()]), IDS[match[0]]]
        end = match.end()
    return ids + encode(text[end:])


class MessageDetokenizer(Detokenizer):
    """Turns ids of this vocabulary into text."""

    def __init__(self):
        self._rest = b''

    def add(self, token_id: int) -> str:
        """See `Detokenizer.add`."""
        data = self._rest + piece_of(token_id)
        try:
            self._rest = b''
            return data.decode()
        except UnicodeDecodeError as error:
            if error.end < len(data):
                return data.decode('utf-8', 'replace')
            self._rest = data[error.start :]
            return data[: error.start].decode()

    def flush(self) -> str:
        """See `Detokenizer.flush`."""
        rest, self._rest = self._rest, b''
        return rest.decode('utf-8', 'replace')

    def token_bytes(self, token_id: int) -> bytes:
        """See `Detokenizer.token_bytes`."""
        return piece_of(token_id)

    @property
    def pending(self) -> bool:
        """See `Detokenizer.pending`."""
        return bool(self._rest)


class PictureSpan(EmbeddingSpan):
    """A picture in a prompt, as it is sent.

    Attributes:
        url: A data URL with the encoded picture.
    """

    url: str = ''


@dataclass
class Message:
    """One message of a prompt.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`; empty for text outside of a message.
        parts: Texts, and spans of pictures.
        is_open: No end follows: the model continues it.
    """

    role: str
    parts: list[str | PictureSpan] = field(default_factory=list)
    is_open: bool = True

    def to_dict(self, show: Callable[[PictureSpan], dict]) -> dict:
        """Return it as OpenAI's API has it.

        Args:
            show: Makes the part for a picture.
        """
        if all(isinstance(part, str) for part in self.parts):
            return {'role': self.role, 'content': ''.join(map(str, self.parts))}
        content = [
            show(part) if isinstance(part, PictureSpan) else {'type': 'text', 'text': part}
            for part in self.parts
        ]
        return {'role': self.role, 'content': content}


def messages(prompt: Prompt) -> list[Message]:
    """Return the messages of a prompt. The one that the model is to begin is not among them.

    Raises:
        ValueError: The prompt was not made with `TEMPLATE`.
    """
    found: list[Message] = []
    for part in prompt.parts():
        if isinstance(part, PictureSpan):
            _last(found).parts.append(part)
        elif isinstance(part, EmbeddingSpan):
            raise ValueError('this server takes no embeddings: pass the picture itself')
        else:
            _add_ids(found, [int(i) for i in part])
    if found and found[-1].is_open and found[-1].role == 'assistant' and not found[-1].parts:
        found.pop()
    return found


def _last(found: list[Message]) -> Message:
    if not found or not found[-1].is_open:
        found.append(Message(''))
    return found[-1]


def _add_ids(found: list[Message], ids: Sequence[int]) -> None:
    """Add the text of ids, without reasoning: servers want none of earlier replies."""
    data = bytearray()
    thinks = thought = False

    def flush() -> None:
        nonlocal thought
        text = data.decode('utf-8', 'replace')
        data.clear()
        if thought:  # as where a reply is shown: white space after the reasoning belongs to neither
            text = text.lstrip()
            thought = not text
        if text:
            _last(found).parts.append(text)

    for token_id in ids:
        if token_id >> 56:
            if not thinks:
                data += piece_of(token_id)
            continue
        flush()
        if token_id in _ROLE_IDS:
            if found:
                found[-1].is_open = False
            found.append(Message(_ROLE_IDS[token_id]))
            thinks = thought = False
        elif token_id == END_ID and found:
            found[-1].is_open = False
        elif token_id in (IDS[THINK_START], IDS[THINK_END]):
            thinks = token_id == IDS[THINK_START]
            thought = True
    flush()


class ReplyIds:
    """Turns a reply into ids, piece by piece. A character may be cut in two between pieces."""

    def __init__(self):
        self._thinks = False
        self._half = self._half_thought = ''

    def of(self, reasoning: str, text: str) -> list[int]:
        """Return the ids of the next piece of the reasoning, and of the answer."""
        ids: list[int] = []
        reasoning, self._half_thought = join_halves(self._half_thought + reasoning)
        text, self._half = join_halves(self._half + text)
        if reasoning and not self._thinks:
            ids.append(IDS[THINK_START])
        ids += encode(reasoning)
        self._thinks = self._thinks or bool(reasoning)
        if text and self._thinks:
            self._thinks = False
            ids.append(IDS[THINK_END])
        return ids + encode(text)


def join_halves(text: str) -> tuple[str, str]:
    """Join the halves of characters that a server wrote as two escapes of JSON.

    Args:
        text: A text in which characters beyond U+FFFF may be surrogate pairs, and single surrogates may be.

    Returns:
        The text without surrogates, and a first half at its end whose second half may follow.
    """
    if text.isascii() or not _HALVES.search(text):
        return text, ''
    half = text[-1] if '\ud800' <= text[-1] <= '\udbff' else ''
    data = text[: len(text) - len(half)].encode('utf-16-le', 'surrogatepass')
    return data.decode('utf-16-le', 'replace'), half


def text_of(ids: Iterable[int]) -> str:
    """Return the text of ids."""
    return b''.join(piece_of(i) for i in ids).decode('utf-8', 'replace')
