"""The loop of a turn with tools: a reply, its calls, their answers, the next reply.

Knows neither ROS nor how calls are executed; a `ToolRunner` does that. The history changes only here, in the
thread that iterates the events, and each event tells what the history already holds.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.engine.stream import StreamingResponse
from ros2_nanochat.errors import one_line
from ros2_nanochat.states import FinishReason
from ros2_nanochat.tools.call import ToolCall
from ros2_nanochat.tools.events import Answered, CallChanged, Called, Ended, Event, Paused, TextPiece
from ros2_nanochat.tools.execution import Execution
from ros2_nanochat.tools.reading_ahead import Ahead, ReadAhead
from ros2_nanochat.tools.runner import ToolRunner

Respond = Callable[[str], StreamingResponse]

CANCEL_SECONDS = 5.0
"""How long the loop waits for a cancelled call to end before it counts as `unknown`."""

_THOUGHT = 64
"""Tokens of text after which a reply is taken for one without a call, if the answer has a form."""

_ENDED_BY_ITSELF = (FinishReason.STOP, FinishReason.LENGTH)


class ToolLoop:
    """Answers one turn. Iterate `events()` once; `stop()` may be called from any thread.

    The history must end with the question. When the events have ended, it holds the replies, their calls and
    one answer for each call, also if the turn was stopped: nothing is left open.

    - A reply with calls is followed by their answers and another reply. Calls run one after the other, in the
      order in which the model wrote them.
    - After `max_tool_rounds` replies with calls, the next reply is made without (`tool_choice` is `none`), so
      the turn always ends with text.
    - `tool_choice` applies to the first reply: `auto`; `required` (at least one call); `none`; or the name of
      a tool, which is then called. Later replies are `auto`.
    - `stop()` ends the reply at what was delivered, cancels the call that runs, and waits for it at most
      `cancel_seconds`. Calls that have not begun are answered as cancelled. There is no further reply.
    - If the answer has a form (`formed`), it is made by a last reply of its own, in which no tool can be
      called. Texts of the replies before are neither told nor kept.
    - A reply that was cut in the middle of a call is kept up to the call; the call is not executed.

    Args:
        history: The conversation, with its `tools`.
        runner: Executes the calls.
        respond: Makes the prompt and starts the next reply: `respond(tool_choice)`. `replying` makes one; a
            robot passes its own, which may raise only for the first reply.
        tool_choice: See above.
        max_tool_rounds: Replies with calls in one turn, 1 or more.
        lock: Held while the history changes.
        due: `time.monotonic()` at which running calls are cancelled and the turn ends with `deadline`.
        cancel_seconds: How long a cancelled call may take to end; then it counts as `unknown`.
        read_ahead: Lets the model read the calls while a tool runs; see `reading_ahead`.
        formed: `respond('none')` makes a reply in the form that was asked for.
    """

    def __init__(
        self,
        history: ChatHistory,
        runner: ToolRunner,
        respond: Respond,
        *,
        tool_choice: str = 'auto',
        max_tool_rounds: int = 4,
        lock: AbstractContextManager | None = None,
        due: float = math.inf,
        cancel_seconds: float = CANCEL_SECONDS,
        read_ahead: ReadAhead | None = None,
        formed: bool = False,
    ):
        if not isinstance(max_tool_rounds, int) or max_tool_rounds < 1:
            raise ValueError(f'max_tool_rounds={max_tool_rounds!r} is not valid: a whole number of 1 or more')
        self._history = history
        self._respond = respond
        self._tool_choice = tool_choice
        self._max_rounds = max_tool_rounds
        self._lock = contextlib.nullcontext() if lock is None else lock
        self._formed = formed
        self._guard = threading.RLock()
        self._reply: StreamingResponse | None = None
        self._is_last = False  # whether the running reply has to be the answer
        self._execution = Execution(runner, Ahead(read_ahead, self._lock), due, cancel_seconds)
        self.replies: list[StreamingResponse] = []
        """The replies so far, the running one last."""

    @property
    def stop_reason(self) -> FinishReason | None:
        """Why `stop` was called; None if it was not."""
        return self._execution.stopped

    @property
    def calls(self) -> list[ToolCall]:
        """The calls so far, as they ended."""
        return self._execution.calls

    # --- from any thread ---

    def stop(self, reason: FinishReason | str = FinishReason.CANCELLED) -> None:
        """End the turn: the reply at what was delivered, a running call by cancelling it. The first reason
        counts. Returns at once; the events then end.

        Args:
            reason: The `finish_reason` of the turn.
        """
        self._execution.stop(FinishReason(reason))
        with self._guard:
            reply = self._reply
        if reply is not None and self.stop_reason is not None:
            reply.stop(self.stop_reason)

    # --- the thread of the turn ---

    def start(self) -> ToolLoop:
        """Start the first reply. `events` does this if you do not.

        Raises:
            ValueError: The question cannot be answered, for example because it is too long.
        """
        if not self.replies:
            self._next_reply(self._tool_choice)
        return self

    def _next_reply(self, tool_choice: str) -> StreamingResponse:
        self._is_last = tool_choice == 'none'
        reply = self._respond(tool_choice)
        self.replies.append(reply)
        with self._guard:
            self._reply = reply
            if self.stop_reason is not None:
                reply.stop(self.stop_reason)
        return reply

    def events(self, pause: float | None = None) -> Iterator[Event]:
        """Run the turn.

        If you end the iteration early, the turn is stopped as by `stop()`.

        Args:
            pause: Yield `Paused` each time that a reply gives no text for this many seconds.

        Raises:
            ValueError: As `start`. Later errors are in `Ended.error`.
        """
        self.start()
        open_calls: list[ToolCall] = []
        error = ''
        try:
            for number in itertools.count():
                reply = self.replies[-1]
                yield from self._text(reply, number, pause)
                open_calls = self._keep(reply)
                again = bool(open_calls) or (self._is_hidden and reply.finish_reason in _ENDED_BY_ITSELF)
                for call in open_calls:
                    yield Called(call, number)
                while open_calls:
                    for changed in self._execution.run(open_calls[0]):
                        yield CallChanged(changed)
                    yield Answered(self._answer(open_calls.pop(0)))
                if not again or self.stop_reason is not None:
                    break
                try:
                    last = not reply.calls or number + 1 >= self._max_rounds
                    self._next_reply('none' if last else 'auto')
                except Exception as problem:  # the calls have happened: the turn says so
                    error = one_line(problem)
                    break
        finally:
            if self._reply is not None and not self._reply.eos:  # the iteration was ended early
                self.stop()
                self._keep(self._reply)
            while open_calls:
                self.stop()
                self._execution.finish_quietly(open_calls[0])
                self._answer(open_calls.pop(0))
        yield self._ended(error)

    @property
    def _is_hidden(self) -> bool:
        """Whether the text of the running reply is not the answer, which has a form."""
        return self._formed and not self._is_last

    def _text(self, reply: StreamingResponse, number: int, pause: float | None) -> Iterator[Event]:
        reasoned = 0  # tokens
        for delta in reply.deltas() if pause is None else reply.deltas_and_pauses(pause):
            if delta is None:
                yield Paused()
            elif delta.reasoning or not (delta.call or self._is_hidden):
                reasoned = delta.num_tokens
                yield TextPiece(delta, number)
            elif not delta.call and delta.num_tokens - reasoned > _THOUGHT:
                reply.stop(FinishReason.LENGTH)  # it calls nothing: the answer is asked for in its form

    def _keep(self, reply: StreamingResponse) -> list[ToolCall]:
        """Add a reply that has ended to the history; return its calls."""
        with self._guard:
            self._reply = None
        if reply.finish_reason is None or not (reply.tokens or reply.finish_reason is FinishReason.STOP):
            return []  # nothing was delivered: as if the model had not been asked
        if self._is_hidden and not reply.calls:
            reply.kv_cache.pop(len(reply.tokens))
            self._history.kv_cache = reply.kv_cache
            return []
        with self._lock:
            message = self._history.append('bot', reply)
        return [ToolCall(call.id, call.name, call.arguments) for call in message.calls]

    def _answer(self, call: ToolCall) -> ToolCall:
        """Add the answer of the call that ended last to the history."""
        ended = self.calls[-1]
        with self._lock:
            self._history.append_answer(call.id, call.name, ended.result)
        return ended

    def _ended(self, error: str) -> Ended:
        replies = self.replies
        last, rounds = replies[-1], tuple(reply.usage for reply in replies)
        reason = last.finish_reason
        if error:
            reason = FinishReason.ERROR
        elif self.stop_reason is not None and (last.calls or not FinishReason(reason or '').complete):
            reason = self.stop_reason
        return Ended(
            FinishReason(reason),
            self._answer_text(),
            _paragraphs(reply.reasoning for reply in replies),
            tuple(self.calls),
            replace(rounds[0], new_tokens=sum(usage.new_tokens for usage in rounds)),
            rounds,
            error or last.error or '',
        )

    def _answer_text(self) -> str:
        """The answer: texts of all replies, but only that of the last one if it has a form."""
        if self._formed:
            return self.replies[-1].text if self._is_last else ''
        if len(self.replies) == 1:
            return self.replies[-1].text
        return _paragraphs(reply.text for reply in self.replies)


def _paragraphs(texts: Iterable[str]) -> str:
    return '\n\n'.join(text.strip() for text in texts if text.strip())
