"""The figures of one request, as a server sends them: once at the end, with each event, or not at all."""

from __future__ import annotations

from ros2_nanochat.engine.metrics import Metrics
from ros2_nanochat.remote.dialect import Piece


class RequestFigures:
    """The tokens of one request.

    Attributes:
        prompt_tokens: Tokens of the prompt; None if unknown.
        reused_tokens: Those that the server did not compute again; None if unknown.
    """

    def __init__(self):
        self.prompt_tokens: int | None = None
        self.reused_tokens: int | None = None

    def take(self, piece: Piece) -> bool:
        """Take the figures of an event; return whether it has any."""
        if piece.prompt_tokens is None:
            return False
        self.prompt_tokens = piece.prompt_tokens
        if piece.reused_tokens is not None:
            self.reused_tokens = min(piece.reused_tokens, piece.prompt_tokens)
        return True

    def count(self, metrics: Metrics) -> None:
        """Count them, once."""
        if self.prompt_tokens is not None:
            reused = self.reused_tokens or 0
            metrics.count('prompt_tokens', self.prompt_tokens)
            metrics.count('reused_tokens', reused)
            metrics.count('prefilled_tokens', self.prompt_tokens - reused)
        self.prompt_tokens = self.reused_tokens = None
