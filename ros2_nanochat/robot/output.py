"""Who receives what a robot says: its topics, or whatever else listens."""

from __future__ import annotations

from typing import Protocol

from ros2_nanochat.robot.turn import Turn


class Output(Protocol):
    """Receives a robot's turns. Called on the robot's thread; `ended` also on the caller's.

    `started` is called when a turn begins, `token` for each piece of the reply, `called` where the model
    calls a tool instead, `sentence` for each complete sentence, and `ended` once for each turn. Exceptions
    are logged and appear in the diagnostics, but do not propagate.
    """

    def started(self, turn: Turn) -> None: ...
    def token(self, turn: Turn, index: int, text: str, num_tokens: int, reasoning: bool) -> None: ...
    def called(self, turn: Turn, index: int, call_id: str, num_tokens: int) -> None: ...
    def sentence(self, turn: Turn, text: str) -> None: ...
    def ended(self, turn: Turn) -> None: ...
