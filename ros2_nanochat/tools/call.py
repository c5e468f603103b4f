"""`ToolCall`: one call of a tool, from the moment the model wrote it until its answer is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ros2_nanochat.states import StrEnum


class CallState(StrEnum):
    """The state of a call."""

    WAITING = 'waiting'
    """It has not begun: another call runs first, or someone has to approve it."""
    RUNNING = 'running'
    DONE = 'done'
    """It succeeded; `result` is its answer."""
    FAILED = 'failed'
    """It did not succeed: an error, a refusal, a time-out. `result` says what happened, in one line."""
    CANCELLED = 'cancelled'
    """It was cancelled before it ended; `result` says why."""
    UNKNOWN = 'unknown'
    """Nobody knows how it ended: the program died, or the tool did not react to being cancelled."""

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self not in (CallState.WAITING, CallState.RUNNING)


@dataclass(frozen=True)
class ToolCall:
    """A call as it stands at one moment. Runners make new ones with `replace` or `moved`.

    Attributes:
        id: Identifies the call within its conversation.
        name: Name of the tool.
        arguments: The arguments, as parsed JSON.
        state: How far it is.
        result: The text that the model is told; '' until it has ended.
        feedback: The latest news of a running call, for people; the model does not see it.
        duration: Seconds from its start until now, or until it ended.
    """

    id: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    state: CallState = CallState.WAITING
    result: str = ''
    feedback: str = ''
    duration: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether the state is final."""
        return self.state.ended

    def moved(self, state: CallState, result: str = '', duration: float | None = None) -> ToolCall:
        """Return the call in another state.

        Args:
            state: The new state.
            result: The text that the model is told.
            duration: Seconds since its start; None leaves it.
        """
        return replace(
            self, state=state, result=result, duration=self.duration if duration is None else duration
        )
