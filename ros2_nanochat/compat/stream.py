"""A reply with the attributes of NanoLLM's."""

from __future__ import annotations

from typing import Any

from ros2_nanochat.engine.request import Request
from ros2_nanochat.engine.stream import StreamingResponse as Reply


class StreamingResponse(Reply):
    """A reply that streams, as in `ros2_nanochat`.

    With `detokenize=False`, each item is a list of ids. The text contains no special tokens, and the ids no
    end token.

    Attributes:
        model: The model that `generate` was called on.
        input: The prompt.
        kwargs: The options of the call.
    """

    model: Any = None
    input: Any = None
    kwargs: dict[str, Any] = {}

    def __next__(self):
        item = super().__next__()
        return [item] if isinstance(item, int) else item

    @property
    def stopped(self) -> bool:
        """Whether the reply has ended; the same as `eos`."""
        return self.eos

    @property
    def stopping(self) -> bool:
        """Whether `stop()` was called."""
        return self._request.signals.cancelled is not None

    @property
    def detokenize(self) -> bool:
        """Whether iterating returns text."""
        return self._detokenize

    @property
    def request(self) -> Request:
        """The engine's record of this reply."""
        return self._request
