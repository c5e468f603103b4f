"""Checks what a caller passes to `generate` and turns it into the entries of a prompt. Knows a backend's text
and limits; nothing of requests.
"""

from __future__ import annotations

import hashlib
import numbers
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ros2_nanochat.backends.base import Backend
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.engine.kv_cache import KVCache
from ros2_nanochat.engine.stop_strings import StopStrings
from ros2_nanochat.prompt import EmbeddingSpan, Preceding, Prompt, concatenate, head, surely_longer

_REMEMBERED = 1000  # embedded texts


class Inputs:
    """Reads inputs for one opened model."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self._info = backend.info
        self._special_ids = {token.text: token.id for token in self._info.special_tokens}
        self._special_texts = {token_id: text for text, token_id in self._special_ids.items()}
        self._special_lengths = sorted({len(text) for text in self._special_ids})
        self._last_ids: OrderedDict[bytes, int] = OrderedDict()  # of embedded texts, by their last row

    def remember(self, ids: Sequence[int], rows: np.ndarray) -> np.ndarray:
        """Remember which id an embedded text ends with, as its continuation may begin with a space.

        Returns the embeddings.

        Args:
            ids: The ids of the text, [n].
            rows: Their embeddings, [1, n, d].
        """
        if len(ids):
            self._last_ids[_key(rows[0, -1])] = int(ids[-1])
            if len(self._last_ids) > _REMEMBERED:
                self._last_ids.popitem(last=False)
        return rows

    def ids(self, ids: Sequence[int]) -> list[int]:
        """Return ids as a list.

        Raises:
            ValueError: They are not whole numbers, or not in the vocabulary.
        """
        array = np.asarray(ids)
        if array.size and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f'ids of type {array.dtype} are not valid: whole numbers')
        return [self._checked_id(i) for i in array.reshape(-1)]

    def _checked_id(self, token_id: int) -> int:
        if not 0 <= token_id < self._info.vocab_size:
            raise self._not_in_vocabulary(f'token id {token_id}')
        return int(token_id)

    def _not_in_vocabulary(self, what: str) -> ValueError:
        return ValueError(f'{what} is not in the vocabulary: ids go from 0 to {self._info.vocab_size - 1}')

    def goal(self, inputs, kv_cache: KVCache) -> Prompt:
        """Return everything that the conversation is to hold before the reply.

        Args:
            inputs: Text, ids, embeddings or a Prompt, as for `NanoLLM.generate`.
            kv_cache: What the conversation holds so far.

        Raises:
            ValueError: The inputs do not fit the model or the KV cache.
        """
        if isinstance(inputs, Prompt):
            if inputs.position > len(kv_cache):
                raise ValueError(
                    f'the prompt continues at entry {inputs.position}, and the KV cache holds'
                    f' {len(kv_cache)}: pass the kv_cache it was made for'
                )
            goal = concatenate(head(kv_cache.content, inputs.position), inputs)
        else:
            goal = concatenate(
                kv_cache.content,
                Prompt.join([self._part(inputs, kv_cache.entries[-1] if len(kv_cache) else None)]),
            )
        if not len(goal):
            raise ValueError('there is nothing to continue: the prompt is empty')
        if goal.spans and not self._info.takes_embeddings:
            raise ValueError(
                f'{self._info.name} takes no embeddings through {self._info.api}: pass text or ids'
            )
        if any(span.deepstack is not None for _, span in goal.spans) and not self._info.takes_deepstack:
            raise ValueError(
                f'{self._info.name} takes embeddings only in its first layer: the picture was embedded for'
                ' another model'
            )
        if (ids := goal.token_ids).size and ids.max() >= self._info.vocab_size:
            raise self._not_in_vocabulary(f'token id {ids.max()}')
        width = next(
            (
                span.rows.shape[-1]
                for _, span in goal.spans
                if span.rows.shape[-1] != self._info.embedding_size
            ),
            None,
        )
        if width is not None:
            raise ValueError(
                f'embeddings of width {width} do not fit {self._info.name}, whose width is'
                f' {self._info.embedding_size}'
            )
        return goal

    def _part(self, inputs, before: int | None) -> list[int] | EmbeddingSpan:
        if isinstance(inputs, str):
            start = (
                [self._info.bos_token_id]
                if before is None and self._info.add_bos and self._info.bos_token_id is not None
                else []
            )
            longest = min(self._info.context_length, self._backend.kv_capacity)
            if surely_longer(self._backend.tokenize, inputs, longest):
                raise ValueError(
                    f'a text of {len(inputs)} characters has more than {longest} tokens, and the'
                    f' context holds '
                    'no more: shorten it, or open the model with a larger max_context_len'
                )
            if before is None:
                preceding = Preceding.START
            elif before < 0 or before in self._special_ids.values():
                preceding = Preceding.SPECIAL_TOKEN
            else:
                preceding = Preceding.TEXT
            return start + self._backend.tokenize(inputs, preceding=preceding)
        try:
            array = np.asarray(inputs)
        except ValueError:  # rows of different lengths
            array = np.array(None)
        if array.size == 0:
            return []
        is_ids = np.issubdtype(array.dtype, np.integer)
        if array.ndim == (2 if is_ids else 3) and array.shape[0] == 1:
            array = array[0]
        if array.ndim == 1 and is_ids:
            return [self._checked_id(i) for i in array]
        if array.ndim == 2 and np.issubdtype(array.dtype, np.floating):
            if not np.isfinite(array).all():
                raise ValueError('the embeddings hold values that are not finite')
            rows = np.ascontiguousarray(array, np.float32)
            return EmbeddingSpan(rows, rows.tobytes())
        what = f'shape {array.shape} and type {array.dtype}' if array.dtype.kind in 'biuf' else _type(inputs)
        raise ValueError(
            f'inputs of {what} are not valid: text, ids [n] or [1, n], embeddings [n, d] or [1, n, d], or the'
            ' prompt that ChatHistory.embed_chat returns first'
        )

    def preceding(self, inputs, goal: Prompt) -> Preceding:
        """Return what precedes the reply, as far as its first space is concerned.

        A reply to a conversation counts as a text of its own, even if the template's markup is text.
        """
        if isinstance(inputs, Prompt) or not len(goal):
            return Preceding.START
        last = int(goal.entries[-1])
        if last < 0 and goal.spans:
            last = self._last_ids.get(_key(goal.spans[-1][1].rows[-1]), last)
        if last < 0 or last in self._special_ids.values() or last == self._info.bos_token_id:
            return Preceding.SPECIAL_TOKEN
        return Preceding.TEXT

    def stops(self, config: GenerationConfig) -> tuple[frozenset[int], StopStrings]:
        """Return the stop tokens of a config as `(ids, strings)`.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        ids, strings, special = set(self._info.eos_token_ids), [], {}
        for stop in config.stop_tokens:
            if isinstance(stop, str):
                strings.append(stop)
                inside = self._special_in(stop)
                # a stop string that is one special token, perhaps between blanks
                whole = self._special_ids.get(stop, self._special_ids.get(stop.strip()))
                if whole is not None and whole in inside:
                    ids.add(whole)
                if inside and stop not in inside.values():
                    special[stop] = inside
            elif 0 <= stop < self._info.vocab_size:
                ids.add(stop)
            else:
                raise self._not_in_vocabulary(f'stop_tokens={stop!r}')
        return frozenset(ids), StopStrings(strings, special)

    def _special_in(self, text: str) -> dict[int, str]:
        """The special tokens in a text, by their ids; without those that give text (Gemma's line breaks)."""
        found = {
            self._special_ids.get(text[at : at + length])
            for length in self._special_lengths
            for at in range(len(text) - length + 1)
        }
        return {i: self._special_texts[i] for i in found if i is not None and not self.detokenize([i])}

    def detokenize(self, ids: Sequence[int]) -> str:
        """Turn ids into text, without special tokens."""
        detokenizer = self._backend.detokenizer()
        return ''.join([detokenizer.add(i) for i in self.ids(ids)]) + detokenizer.flush()


def _type(value: Any) -> str:
    if isinstance(value, list | tuple) and value:
        return f'type {type(value).__name__} of {type(value[0]).__name__}'
    return f'type {type(value).__name__}'


def _key(row: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row, np.float32).tobytes(), digest_size=16).digest()


def check_call(kv_cache: Any, priority: Any, deadline: Any) -> None:
    """Check the arguments of `generate`.

    Args:
        kv_cache: A `KVCache` or None.
        priority: A whole number.
        deadline: Seconds from now, or None.

    Raises:
        ValueError: One of them is not valid.
    """
    seconds: Any = deadline
    if deadline is not None and not (isinstance(deadline, numbers.Real) and seconds >= 0):
        raise ValueError(f'deadline={deadline!r} is not valid: seconds from now, 0 or more')
    if not isinstance(priority, numbers.Integral):
        raise ValueError(f'priority={priority!r} is not valid: a whole number')
    if not isinstance(kv_cache, KVCache | None):
        raise ValueError(
            f'kv_cache of type {type(kv_cache).__name__} is not valid: the kv_cache of an earlier reply,'
            ' or none'
        )
