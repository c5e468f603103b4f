"""What was handed out of a reply, and what of it the conversation keeps."""

from __future__ import annotations

import logging

from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.engine.kv_cache import KVCache, LastReply
from ros2_nanochat.engine.request import End, Request
from ros2_nanochat.engine.text_delta import TextDelta
from ros2_nanochat.prompt import Prompt, concatenate
from ros2_nanochat.states import FinishReason

_log = logging.getLogger(__name__)


class Taken:
    """What was handed out of a reply. Outlives a stream that is dropped.

    Attributes:
        calls: The calls at the end of a reply that has ended, if they are complete.
    """

    def __init__(self):
        self.deltas: list[TextDelta] = []
        self.num_tokens = 0
        self.exact = True
        self.calls: tuple[WrittenCall, ...] = ()

    def add(self, delta: TextDelta) -> None:
        self.deltas.append(delta)
        self.num_tokens, self.exact = delta.num_tokens, delta.exact

    def end(self, end: End, is_text: bool) -> None:
        self.num_tokens, self.exact = end.num_tokens, end.exact
        if not is_text and end.num_partial:
            self.num_tokens, self.exact = end.num_tokens + end.num_partial, False

    def cut(self, num_tokens: int) -> None:
        """Remove what comes after the first `num_tokens` ids."""
        if num_tokens < self.num_tokens:
            while self.deltas and self.deltas[-1].num_tokens > num_tokens:
                self.deltas.pop()
            last = self.deltas[-1] if self.deltas else None
            self.exact = last.exact and last.num_tokens == num_tokens if last else num_tokens == 0
            self.num_tokens = num_tokens

    @property
    def text(self) -> str:
        return ''.join([delta.text for delta in self.deltas if not delta.reasoning and not delta.call])

    @property
    def reasoning(self) -> str:
        return ''.join([delta.text for delta in self.deltas if delta.reasoning])

    def settle(self, request: Request, kv_cache: KVCache, reason: FinishReason) -> None:
        """Make a conversation hold its prompt and what was handed out, without a call that is not whole."""
        self._read_calls(request, reason)
        ids = request.progress.new_ids[: self.num_tokens]
        text, reasoning = self.text, self.reasoning
        num_reasoning = (
            len(ids)
            if reasoning and not text and not self.calls
            else min(request.progress.text.num_reasoning, len(ids))
        )
        reply = LastReply(text, reasoning, tuple(ids), num_reasoning, self.calls) if self.exact else None
        kv_cache.settle(concatenate(request.asked.goal, Prompt.join([ids])), reply)

    def _read_calls(self, request: Request, reason: FinishReason) -> None:
        first = next((n for n, delta in enumerate(self.deltas) if delta.call), None)
        if first is None or request.calls is None:
            return
        text = ''.join([delta.text for delta in self.deltas[first:] if delta.call])
        try:
            if not reason.complete:
                raise ValueError('the reply was ended early')
            self.calls = request.calls.read(text)
        except ValueError as error:
            _log.debug('calls of tools are dropped: %s', error)
            del self.deltas[first:]
            last = self.deltas[-1] if self.deltas else None
            self.num_tokens, self.exact = (last.num_tokens, last.exact) if last else (0, True)
