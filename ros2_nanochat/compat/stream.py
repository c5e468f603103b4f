"""A reply with the attributes that NanoLLM's has."""

from __future__ import annotations

from typing import Any

from ros2_nanochat.engine.request import Request
from ros2_nanochat.engine.stream import StreamingResponse as Reply


class StreamingResponse(Reply):
    """A reply while it is produced, as in `ros2_nanochat`.

    model, input, kwargs: what `generate` was called with. With `detokenize=False` each item is a list of ids.
    Special tokens are not part of the text, and the end token is not part of the ids.
    """

    model: Any = None
    input: Any = None
    kwargs: dict[str, Any] = {}

    def __next__(self):
        item = super().__next__()
        return [item] if isinstance(item, int) else item

    @property
    def stopped(self) -> bool:
        """Whether the reply has ended, the same as `eos`."""
        return self.eos

    @property
    def stopping(self) -> bool:
        """Whether `stop()` was called."""
        return self._request.signals.cancelled is not None

    @property
    def detokenize(self) -> bool:
        """Whether iterating gives text."""
        return self._detokenize

    @property
    def request(self) -> Request:
        """What the engine knows of this reply."""
        return self._request
