"""Separates markup from content in one text, and turns both into ids.

Before a template is rendered, some content is replaced with placeholder characters (of Unicode's last private
plane): text that could be read as a special token, replies that keep their sampled ids, and images. Knows
neither templates nor messages.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ros2_nanochat.model_info import SpecialToken
from ros2_nanochat.prompt import Preceding

_FIRST, _LAST = 0x100000, 0x10FFEF
_BLANK = frozenset(
    '\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006'
    '\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000'
)
"""White space in Unicode, and in the package tokenizers. Python's also includes U+001C to U+001F."""
_PLANE = re.compile('[\U00100000-\U0010ffff]')


class SpecialFinder:
    """Finds special tokens in a text as tokenizers do: leftmost first, then longest.

    Tokens with `lstrip` or `rstrip` include the white space next to them.

    Args:
        tokens: The special tokens.
        ignore_case: Find them in any case.
    """

    def __init__(self, tokens: Sequence[SpecialToken], ignore_case: bool = False):
        self._fold = str.lower if ignore_case else lambda text: text
        self._tokens = {self._fold(token.text): token for token in reversed(tokens) if token.text}
        self._lengths: dict[str, list[int]] = {}
        for text in self._tokens:
            self._lengths.setdefault(text[:2], []).append(len(text))
        self._lengths = {
            start: sorted(set(lengths), reverse=True) for start, lengths in self._lengths.items()
        }
        starts = '|'.join(re.escape(start) for start in sorted(self._lengths, key=len, reverse=True))
        self._start = re.compile(starts or '(?!)')

    def find(self, text: str) -> Iterator[tuple[int, int, SpecialToken]]:
        """Yield `(start, end, token)` of every special token, in order."""
        folded = self._fold(text)
        if len(folded) != len(text):  # a few capital letters have small forms of two characters
            folded = ''.join(c.lower() if len(c.lower()) == 1 else c for c in text)
        position = 0
        while found := self._start.search(folded, position):
            start = found.start()
            token, end = self._longest(folded, start)
            if token is None:
                position = start + 1
                continue
            if token.lstrip:
                while start > position and text[start - 1] in _BLANK:
                    start -= 1
            if token.rstrip:
                while end < len(text) and text[end] in _BLANK:
                    end += 1
            yield start, end, token
            position = end

    def _longest(self, text: str, start: int) -> tuple[SpecialToken | None, int]:
        for head in (text[start : start + 2], text[start : start + 1]):
            for length in self._lengths.get(head, ()):
                token = self._tokens.get(text[start : start + length])
                if token is not None:
                    return token, start + length
        return None, start


class Placeholders:
    """Characters that stand for pieces of content in one rendering.

    Content never contains a character of that plane, so it cannot forge one.
    """

    def __init__(self):
        self._texts: dict[str, str] = {}
        self._characters: dict[str, str] = {}
        self.objects: dict[str, Any] = {}

    def _new(self) -> str:
        code = _FIRST + len(self._texts) + len(self.objects)
        if code > _LAST:
            raise ValueError(
                f'the conversation holds more than {_LAST - _FIRST} different images, replies and'
                ' special strings: drop old messages'
            )
        return chr(code)

    def for_text(self, text: str) -> str:
        """Return a character for a piece of content that has to stay plain text."""
        if text not in self._characters:
            self._characters[text] = self._new()
            self._texts[self._characters[text]] = text
        return self._characters[text]

    def for_object(self, value: Any) -> str:
        """Return a character for something that is not text: ids, or an image."""
        character = self._new()
        self.objects[character] = value
        return character

    def hide(self, content: str, finder: SpecialFinder, protected: Callable[[SpecialToken], bool]) -> str:
        """Replace each special token in a content that is protected.

        Args:
            content: The text of a message.
            finder: Finds special tokens.
            protected: Whether a token may only come from markup.
        """
        content = _PLANE.sub(lambda match: self.for_text(match[0]), content)
        pieces, end = [], 0
        for start, stop, token in finder.find(content):
            if not protected(token):
                continue
            start, stop = _core(content, start, stop, token)
            pieces += [content[end:start], self.for_text(content[start:stop])]
            end = stop
        return ''.join([*pieces, content[end:]]) if pieces else content

    def restore(self, text: str) -> str:
        """Return the text with the pieces of content back in their places."""
        if not self._texts:
            return text
        return _PLANE.sub(lambda match: self._texts.get(match[0], match[0]), text)

    def find_objects(self, text: str) -> list[int]:
        """Return the positions of images and ids in a rendering."""
        return (
            [match.start() for match in _PLANE.finditer(text) if match[0] in self.objects]
            if self.objects
            else []
        )


def end_of_shared(text: str, other: str) -> int:
    """Return where what two texts begin with ends in the first one, but for white space.

    A tag or word that only begins alike does not count.
    """
    at = there = 0
    while at < len(text) and there < len(other):
        if text[at] == other[there]:
            at, there = at + 1, there + 1
        elif text[at].isspace():
            at += 1
        elif other[there].isspace():
            there += 1
        else:
            break
    if (tag := text.rfind('<', 0, at)) > text.rfind('>', 0, at):
        return tag
    while 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum():
        at -= 1
    return at


def _core(content: str, start: int, stop: int, token: SpecialToken) -> tuple[int, int]:
    """Where the token itself is, without the white space that it includes."""
    if token.lstrip:
        while content[start] in _BLANK and stop - start > len(token.text):
            start += 1
    return start, start + len(token.text)


_KEPT = 32  # runs that are kept at least


class Runs:
    """Tokenizes runs of plain text, and caches those of the latest prompts.

    A run never contains a protected id, whatever the tokenizer returns.

    Args:
        tokenize: Tokenizes a text.
        protected: Whether an id may only come from markup.
        texts: Returns the text of an id.
    """

    def __init__(
        self,
        tokenize: Callable[..., list[int]],
        protected: Callable[[int], bool],
        texts: Callable[[int], str],
    ):
        self._tokenize = tokenize
        self._protected = protected
        self._texts = texts
        self._asked = 0  # since the last trim
        self._cache: OrderedDict[tuple[str, Preceding], tuple[int, ...]] = OrderedDict()

    def __call__(self, text: str, preceding: Preceding) -> tuple[int, ...]:
        """Return the ids of a run of content and plain markup.

        Args:
            text: The run.
            preceding: What comes before it in the prompt.
        """
        key = text, preceding
        self._asked += 1
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        ids = self._cache[key] = tuple(self._inert(text, preceding))
        return ids

    def trim(self) -> None:
        """Shrink the cache after a prompt is complete: keep twice as many runs as the prompt had."""
        while len(self._cache) > max(_KEPT, 2 * self._asked):
            self._cache.popitem(last=False)
        self._asked = 0

    def _inert(self, text: str, preceding: Preceding) -> list[int]:
        ids = list(self._tokenize(text, special=False, preceding=preceding))
        caught = {i for i in ids if self._protected(i)}
        if not caught:
            return ids
        if len(text) == 1:
            return [i for i in ids if i not in caught]
        # split inside each string that became a special token; at every character if normalization hides it
        cuts = {
            match.start() + 1
            for i in caught
            if len(self._texts(i)) > 1
            for match in re.finditer(re.escape(self._texts(i)), text)
        }
        edges = sorted(cuts) or range(1, len(text))
        pieces = [text[a:b] for a, b in zip([0, *edges], [*edges, len(text)])]
        return [
            i
            for n, piece in enumerate(pieces)
            for i in self._inert(piece, Preceding.TEXT if n else preceding)
        ]
