"""`model.tokenizer`: the methods of a Hugging Face tokenizer that NanoLLM's programs use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ros2_nanochat.compat.attributes import AttributeDict, to_tensor
from ros2_nanochat.nano_llm import NanoLLM


class Tokenizer:
    """Turns text into ids and back.

    Special tokens in a text are recognized, as in a Hugging Face tokenizer.

    Args:
        model: The opened model.
    """

    def __init__(self, model: NanoLLM):
        self._model = model
        info = model.info
        self._texts = {token.id: token.text for token in info.special_tokens}
        self._ids = {text: token_id for token_id, text in self._texts.items()}
        self.bos_token_id = info.bos_token_id
        self.bos_token = self._texts.get(info.bos_token_id) if info.bos_token_id is not None else None
        ends = sorted(info.eos_token_ids)
        self.eos_token_id = self._ids.get(info.named_tokens.get('eos_token', ''), ends[0] if ends else None)
        self.eos_token = self._texts.get(self.eos_token_id) if self.eos_token_id is not None else None
        self.vocab_size = info.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    def __getattr__(self, name: str):
        raise AttributeError(
            f'model.tokenizer has no {name!r}: it encodes and decodes; for more, open '
            'transformers.AutoTokenizer.from_pretrained(model.model_path)'
        )

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = True, return_tensors=None, **_
    ) -> AttributeDict:
        """Return `input_ids` and `attention_mask` of a text.

        Args:
            text: A text, or several.
            add_special_tokens: Begin with begin-of-text, if the model uses it.
            return_tensors: `np` or `pt` for arrays [1, n]; None for lists.

        Raises:
            ValueError: Several texts cannot become one array.
        """
        if not isinstance(text, str):
            rows = [self.encode(each, add_special_tokens) for each in text]
            if return_tensors is not None and len(rows) > 1:
                raise ValueError('texts of different lengths make no array: pass one text at a time')
        else:
            rows = [self.encode(text, add_special_tokens)]
        ids: Any = rows if not isinstance(text, str) else rows[0]
        mask: Any = [[1] * len(row) for row in rows] if not isinstance(text, str) else [1] * len(ids)
        if return_tensors is not None:
            ids = to_tensor(np.array(rows, np.int64).reshape(1, -1), return_tensors)
            mask = to_tensor(np.ones((1, len(rows[0])), np.int64), return_tensors)
        return AttributeDict(input_ids=ids, attention_mask=mask)

    def encode(self, text: str, add_special_tokens: bool = True, **_) -> list[int]:
        """Return the ids of a text, after begin-of-text if `add_special_tokens` and the model uses it."""
        start = [self.bos_token_id] if add_special_tokens and self._model.info.add_bos else []
        return [i for i in start if i is not None] + self._model.tokenize(text, special=True)

    def decode(self, ids, skip_special_tokens: bool = False, **_) -> str:
        """Return the text of ids. Special tokens are included unless `skip_special_tokens`."""
        texts, run = [], []
        for token_id in np.asarray(ids).reshape(-1).tolist():
            if token_id not in self._texts:
                run.append(token_id)
                continue
            texts.append(self._model.detokenize(run) if run else '')
            texts.append('' if skip_special_tokens else self._texts[token_id])
            run = []
        return ''.join(texts) + (self._model.detokenize(run) if run else '')

    def batch_decode(self, sequences: Iterable, skip_special_tokens: bool = False, **_) -> list[str]:
        """Return `decode` of each."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str]:
        """Return the text of an id, or of each."""
        if isinstance(ids, int):
            return self._model.backend.token_text(ids)
        return [self._model.backend.token_text(int(i)) for i in ids]

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a special token, or of a text that is one token; None if there is none."""
        ids = [self._ids[token]] if token in self._ids else self._model.tokenize(token)
        return ids[0] if len(ids) == 1 else None
