"""What a `ToolLoop` tells while it runs, in order. Each event is complete in itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from ros2_nanochat.engine.text_delta import TextDelta
from ros2_nanochat.engine.usage import Usage
from ros2_nanochat.states import FinishReason
from ros2_nanochat.tools.call import ToolCall


@dataclass(frozen=True)
class TextPiece:
    """A piece of the answer or of the reasoning before it, at once when it is certain. Never part of a call.

    Attributes:
        delta: The piece as the engine gave it (`delta.num_tokens` counts within its round).
        round: The reply of the turn that it belongs to, from 0. Each round but the last ends with calls.
    """

    delta: TextDelta
    round: int = 0

    @property
    def text(self) -> str:
        """The text, not empty."""
        return self.delta.text

    @property
    def reasoning(self) -> bool:
        """Whether it is reasoning, which is not spoken."""
        return self.delta.reasoning


@dataclass(frozen=True)
class Paused:
    """No text has come for the `pause` that the caller asked for. Once per pause."""


@dataclass(frozen=True)
class Called:
    """The model has written a call, and its reply has ended. The history holds the reply with its calls.

    One event for each call of the reply, before any of them begins.
    """

    call: ToolCall
    round: int = 0


@dataclass(frozen=True)
class CallChanged:
    """A call has changed: it waits for approval, runs, has news, or has ended."""

    call: ToolCall


@dataclass(frozen=True)
class Answered:
    """A call has ended, and its answer is the last message of the history."""

    call: ToolCall


@dataclass(frozen=True)
class Ended:
    """The turn has ended. Always the last event, exactly once.

    Attributes:
        finish_reason: Why; of the last reply, or the reason that `stop` got.
        text: The answer: the texts of all rounds, with a blank line between two that are not empty.
        reasoning: The reasoning of all rounds, likewise.
        calls: All calls of the turn as they ended, in order.
        usage: Tokens and times: `prompt_tokens`, `reused_tokens` and `time_to_first_token` of the first
            round, `new_tokens` of all rounds.
        rounds: Usage of each round.
        error: What went wrong and what to do, '' if nothing did.
    """

    finish_reason: FinishReason
    text: str = ''
    reasoning: str = ''
    calls: tuple[ToolCall, ...] = ()
    usage: Usage = field(default_factory=Usage)
    rounds: tuple[Usage, ...] = ()
    error: str = ''


Event = TextPiece | Paused | Called | CallChanged | Answered | Ended
