"""A backend without a model (`api='fake'`): deterministic replies at a set speed, to test robots without
weights.

It repeats its input: after a chat prompt "You said: " and the user's last message, after plain text that
text. The reply is computed only from the entries of its KV, so errors in handling the KV cache show.

`model` can configure it:
`tokens_per_second=50,prefill_per_second=1000,step_overhead=0.002,context=4096,reply=Some text`.
`script=/path/to/script.json` names a list of `[text, reply]`: if the last message of a chat contains the
text, it gets that reply; the first one that matches counts.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ros2_nanochat.backends.base import Backend, Chunk, Detokenizer
from ros2_nanochat.backends.logits import HostLogits, Logits
from ros2_nanochat.backends.utf8_detokenizer import Utf8Detokenizer
from ros2_nanochat.config import ModelConfig, reject_unknown
from ros2_nanochat.errors import ForwardError, LoadAborted
from ros2_nanochat.memory import MemoryEstimate
from ros2_nanochat.model_info import ModelInfo, SpecialToken
from ros2_nanochat.prompt import Preceding

_START, _END = 256, 257
_VOCABULARY = 258
_WIDTH = 8
_TEMPLATE = (
    '{% for message in messages %}'
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    '{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
_OPTIONS: dict[str, Any] = {
    'tokens_per_second': 0.0,
    'prefill_per_second': 0.0,
    'step_overhead': 0.0,
    'load_seconds': 0.0,
    'context': 8192.0,
    'reply': '',
    'script': '',
}


class FakeBackend(Backend):
    """A backend whose tokens are bytes and whose KV cache is a list."""

    def __init__(self, path: str, config: ModelConfig):
        super().__init__(path, config)
        self._options = _parse(path)
        self._script = _read_script(self._options['script'])
        self._kv: dict[int, list[int]] = {}
        self._stop = threading.Event()

    @classmethod
    def estimate(cls, path: str, config: ModelConfig) -> MemoryEstimate:
        return MemoryEstimate(
            weights=0, kv_per_token=8, overhead=0, available=None, context_length=int(_parse(path)['context'])
        )

    def open(self, progress: Callable[[float], None] | None = None) -> None:
        if self._stop.wait(self._options['load_seconds']):
            raise LoadAborted('loading was stopped')
        self.max_sequences = self.config.max_sequences
        self.kv_capacity = self.config.kv_tokens or 0
        marks = (SpecialToken(_START, '<|im_start|>'), SpecialToken(_END, '<|im_end|>'))
        self.info = ModelInfo(
            name='fake',
            api='fake',
            architecture='fake',
            path=self.path,
            context_length=self.config.max_context_len or 0,
            train_context_length=int(self._options['context']),
            vocab_size=_VOCABULARY,
            embedding_size=_WIDTH,
            eos_token_ids=frozenset({_END}),
            named_tokens={'eos_token': '<|im_end|>'},
            special_tokens=marks,
            chat_template=_TEMPLATE,
            kv_bytes_per_token=8,
            has_embed=True,
            takes_embeddings=True,
        )
        if progress:
            progress(1.0)

    # --- text ---

    def tokenize(self, text: str, special: bool = False, preceding: Preceding = Preceding.START) -> list[int]:
        if not special:
            return list(text.encode('utf-8', 'replace'))
        ids: list[int] = []
        for i, part in enumerate(text.split('<|im_start|>')):
            ids += [_START] * (i > 0)
            for j, run in enumerate(part.split('<|im_end|>')):
                ids += [_END] * (j > 0) + list(run.encode('utf-8', 'replace'))
        return ids

    def detokenizer(self, preceding: Preceding = Preceding.START) -> Detokenizer:
        return Utf8Detokenizer(lambda token_id: bytes([token_id]) if token_id < 256 else b'')

    def embed_tokens(self, ids: Sequence[int]) -> np.ndarray:
        return np.repeat(np.asarray(ids, np.float32).reshape(-1, 1), _WIDTH, axis=1)

    # --- sequences ---

    def new_sequence(self) -> int:
        if len(self._kv) >= self.max_sequences:
            raise RuntimeError(f'more than {self.max_sequences} sequences were asked for')
        seq = next(i for i in range(self.max_sequences) if i not in self._kv)
        self._kv[seq] = []
        return seq

    def fork(self, seq: int, n: int) -> tuple[int, int]:
        copy = self.new_sequence()
        self._kv[copy] = self._kv[seq][:n]
        return copy, len(self._kv[copy])

    def trim(self, seq: int, n: int) -> int:
        del self._kv[seq][n:]
        return len(self._kv[seq])

    def free(self, seq: int) -> None:
        del self._kv[seq]

    def save(self, seq: int) -> bytes:
        return np.asarray(self._kv[seq], np.int64).tobytes()

    def load(self, data: bytes) -> int:
        seq = self.new_sequence()
        self._kv[seq] = np.frombuffer(data, np.int64).tolist()
        return seq

    @property
    def kv_used(self) -> int:
        return sum(map(len, self._kv.values()))

    # --- forward ---

    def forward(self, chunks: Sequence[Chunk]) -> Logits:
        added = sum(map(len, chunks))
        if self.kv_used + added > self.kv_capacity:
            raise ForwardError(
                f'{self.kv_used} + {added} tokens do not fit a KV cache of {self.kv_capacity}',
                [0] * len(chunks),
            )
        self._take_time(added, len(chunks))
        rows = np.zeros((sum(chunk.num_logits for chunk in chunks), _VOCABULARY), np.float32)
        row = 0
        for chunk in chunks:
            kv = self._kv[chunk.seq]
            kv.extend([-1] * len(chunk) if chunk.ids is None else map(int, chunk.ids))
            for position in range(len(kv) - chunk.num_logits, len(kv)):
                rows[row, self._next(kv[: position + 1])] = 10.0
                row += 1
        return HostLogits(rows)

    def _take_time(self, entries: int, chunks: int) -> None:
        prefill, decode = self._options['prefill_per_second'], self._options['tokens_per_second']
        seconds = (
            self._options['step_overhead']
            + (1 / decode if decode else 0.0)
            + ((entries - chunks) / prefill if prefill else 0.0)
        )
        until = time.perf_counter() + seconds
        if seconds and self._stop.wait(max(0.0, until - time.perf_counter())):
            raise ForwardError('the forward was stopped', [0] * chunks)

    def _next(self, kv: list[int]) -> int:
        if _START in kv:
            turn = len(kv) - kv[::-1].index(_START)
            head = turn + len('assistant\n')
            before = kv[: turn - 1]
            if len(kv) < head or _START not in before:
                return 0
            asked = before[len(before) - before[::-1].index(_START) + len('user\n') :]
            asked = asked[: asked.index(_END)] if _END in asked else asked
            reply = self._reply(bytes(b for b in asked if 0 <= b < 256))
            said = len(kv) - head
            return reply[said] if said < len(reply) else _END
        period = kv.index(0) if 0 in kv else len(kv)
        return 0 if period == len(kv) else kv[(len(kv) - period - 1) % max(1, period)]

    def _reply(self, asked: bytes) -> bytes:
        """The reply to a message."""
        scripted = next((reply for text, reply in self._script if text in asked), None)
        if scripted is not None:
            return scripted
        return self._options['reply'].encode() or b'You said: ' + asked

    def abort(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._kv.clear()


def _parse(text: str) -> dict:
    given = dict(part.partition('=')[::2] for part in text.split(',') if part)
    reject_unknown(given, list(_OPTIONS), 'the fake model')
    try:
        return {
            name: given.get(name, default) if isinstance(default, str) else float(given.get(name, default))
            for name, default in _OPTIONS.items()
        }
    except ValueError as error:
        raise ValueError(f'the fake model cannot be set up with {text!r}: {error}') from error


def _read_script(path: str) -> list[tuple[bytes, bytes]]:
    if not path:
        return []
    try:
        with open(path, encoding='utf-8') as file:
            return [(text.encode(), reply.encode()) for text, reply in json.load(file)]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'the script of the fake model, {path}, cannot be read: {error}') from error
