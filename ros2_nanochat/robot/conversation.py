"""One robot's conversation: accepts questions, decides which one runs, keeps the history, and passes replies
on.

A plain class, tested without ROS; ros/robot_topics.py connects it to topics. It knows models only through
`NanoLLM` and `ChatHistory`. This is the interface for callers. schedule.py holds what runs and waits,
runner.py the thread, answering.py how a turn is answered, recovery.py how failures are handled.

The lock of `Schedule` is held only briefly, `Memory.lock` while a prompt is made. The node's timer takes only
the first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import wait

from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.config import OnNewQuery, RobotOptions
from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.answering import Memory, too_long
from ros2_nanochat.robot.frames import CameraFrames, too_many_pictures
from ros2_nanochat.robot.lane import Later, at_once
from ros2_nanochat.robot.output import Output
from ros2_nanochat.robot.runner import Runner
from ros2_nanochat.robot.schedule import Schedule
from ros2_nanochat.robot.tool_answering import ToolAnswering, recover
from ros2_nanochat.robot.toolbox import Toolbox
from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.states import FinishReason

_log = logging.getLogger(__name__)
_SLOW = 0.5  # fraction of the robot's best tokens per second; below it, something is wrong
_HISTORY_SECONDS = 5.0  # longest wait for a history that is being changed
_SHOWN = 200  # characters that a rejected query keeps


class RobotConversation:
    """The conversation of one robot.

    Args:
        name: The robot's name, for messages and the name of its thread.
        model: A `NanoLLM`.
        options: The robot's options. You may replace them at any time.
        output: Receives the turns. You may replace it while no turn runs.
        camera: A `NewestFrame`, or None.
        store: A `ConversationStore`, or None.
        log: Has `info`, `warning` and `error`.
        chat_template: See `ChatTemplate`.
        tools: What the model may call, or None.
    """

    def __init__(
        self,
        name: str,
        model,
        options: RobotOptions,
        output: Output,
        camera=None,
        store=None,
        log=_log,
        chat_template: str | None = None,
        tools: Toolbox | None = None,
    ):
        self.name, self.model = name, model
        self.options, self.output = options, output
        self.sight = CameraFrames(camera)
        self.tools = Toolbox() if tools is None else tools
        self._store, self._log = store, log
        self._title = f'{name}: ' if name else ''
        history = ChatHistory(model, chat_template, options.system_prompt, options.template_variables)
        if store is not None:
            store.restore(history, options.system_prompt)
        recover(self.tools, history, store, options.system_prompt)
        self._schedule = Schedule()
        self._runner: Runner = Runner(
            f'robot-{name or "chat"}',
            self._title,
            self._schedule,
            Memory(history, options.system_prompt),
            ToolAnswering(
                *(self.tools, lambda *state: self._runner.checkpoint(*state)),
                *(model, self.sight, store, lambda *arguments: self._runner.emit(*arguments)),
            ),
            *(lambda: self.output, store, log),
        )

    @property
    def history(self) -> ChatHistory:
        """The conversation so far."""
        return self._runner.memory.history

    # --- callers, any thread; none of these waits for the model ---

    def ask(self, turn: Turn, later: Later = at_once) -> Turn:
        """Accept a question and return it. Never waits for the model.

        The turn may end at once because it is refused. Turns that it displaces end, too. `later`
        calls what announces these ends, which takes long while a listener blocks a topic.
        """
        unread = too_long(turn.query, self.model.info.context_length)
        if unread:
            turn.query = turn.query[:_SHOWN] + '...'
        unread = unread or too_many_pictures(turn.pictures)
        if unread:
            self.refuse(turn, unread, later)
            return turn
        if self.tools.is_stop_word(turn.query):
            turn.without_tools = True
            self.cancel()
        calls = self.tools.open_runs()
        refusal, gone = self._schedule.admit(turn)
        for other in gone:
            self._end_unrun(other, FinishReason.INTERRUPTED, later)
        if refusal:
            turn.error = refusal
            self._end_unrun(turn, FinishReason.REFUSED, later)
        elif turn.options.on_new_query is OnNewQuery.INTERRUPT:
            self.tools.interrupt(calls, self._schedule.uninterrupted)
        return turn

    def cancel(self) -> bool:
        """Stop the reply that is being generated, and all calls of tools; waiting turns stay.

        Returns:
            Whether there was anything to stop.
        """
        stopped = self._schedule.stop_current(FinishReason.CANCELLED)
        return self.tools.stop() or stopped

    def cancel_turn(self, turn: Turn) -> None:
        """Stop one turn, running or waiting."""
        waited = self._schedule.remove(lambda other: other is turn)
        turn.stop(FinishReason.CANCELLED)
        self.tools.stop(turn_id=turn.id)
        for other in waited:
            self._end_unrun(other, FinishReason.CANCELLED)

    def refuse(self, turn: Turn, error: str, later: Later = at_once) -> None:
        """End a turn with `error` before it is tried."""
        turn.error = error
        self._end_unrun(turn, FinishReason.ERROR, later)

    def stop_all(self, timeout: float = 10.0, then: Callable[[], object] | None = None) -> tuple[bool, int]:
        """Stop the reply and drop all waiting turns.

        Args:
            timeout: Seconds to wait for the reply to end.
            then: Called on the robot's thread before the next question begins.

        Returns:
            Whether there was a reply, and how many turns were waiting.

        Raises:
            RuntimeError: The reply did not end in time.
            Exception: Whatever `then` raises.
        """
        ran, dropped, done = self._schedule.clear(then)
        self.tools.stop()
        for turn in dropped:
            self._end_unrun(turn, FinishReason.CANCELLED)
        if not wait((done,), timeout).done:
            raise RuntimeError(f'the current reply has not ended within {timeout} s')
        done.result()
        self.tools.wait()
        return ran, len(dropped)

    def reset(self, system_prompt: str = '') -> str:
        """Stop all turns and forget the conversation.

        Args:
            system_prompt: The new system prompt; '' keeps the current one.

        Returns:
            What was done, in one line.

        Raises:
            RuntimeError: The reply did not end in time, or the conversation is still on disk.
        """
        note: list[str] = []

        def forget() -> None:
            memory = self._runner.memory
            with memory.lock:
                memory.history.reset(system_prompt or True)
                self.sight.forget()
                if self._runner.saved is not None:
                    note.append(self._runner.saved.forget(memory))

        stopped, dropped = self.stop_all(then=forget)
        return ', '.join(
            [
                'the conversation is forgotten',
                *['a reply was stopped'] * stopped,
                *[f'{dropped} waiting turns were dropped'] * bool(dropped),
                *filter(None, note),
            ]
        )

    def messages(self) -> tuple[list[tuple[str, str, int]], int]:
        """Return the conversation, to show it.

        Returns:
            Each message as (role, text, number of images), and the tokens of the whole, 0 if the chat
            template does not accept it as it is.

        Raises:
            RuntimeError: The history cannot be read at the moment.
        """
        memory = self._runner.memory
        if not memory.lock.acquire(timeout=_HISTORY_SECONDS):
            raise RuntimeError('the conversation is being changed: ask again later')
        try:
            messages = [(m.role, m.text or '', int(m.image is not None)) for m in memory.history]
            try:
                return messages, memory.history.num_tokens if messages else 0
            except Exception as error:  # the template's own, of any kind
                self._log.warning(f'{self._title}the tokens are not counted: {one_line(error)}')
                return messages, 0
        finally:
            memory.lock.release()

    @property
    def state(self) -> str:
        """`idle`, `starting` (the model reads the question) or `streaming`."""
        current = self._schedule.current
        return 'idle' if current is None else 'streaming' if current.num_pieces else 'starting'

    @property
    def num_waiting(self) -> int:
        """How many turns wait."""
        return self._schedule.num_waiting

    @property
    def slow(self) -> bool:
        """Whether the last reply was much slower than the fastest one."""
        last = self.last
        return (
            last is not None and last.usage.new_tokens >= 16 and last.tokens_per_second < _SLOW * self.record
        )

    @property
    def last(self) -> Turn | None:
        """The last turn that ran to its end."""
        return self._runner.last

    @property
    def record(self) -> float:
        """The most tokens per second of any turn so far."""
        return self._runner.record

    @property
    def num_restarts(self) -> int:
        """How often the robot's thread was replaced."""
        return self._runner.faults.restarts

    @property
    def faults(self) -> list[str]:
        """What failed recently or still fails: an answer may be lost, or the file on disk may be outdated."""
        saved = self._runner.saved
        unsaved = saved.failure if saved is not None else ''
        return [
            *[f'the conversation is not on disk: {unsaved}'] * bool(unsaved),
            *self._runner.faults.present,
        ]

    def close(self, timeout: float = 2.0) -> None:
        """Stop the running turn, drop the waiting ones, and end the thread."""
        if not self._schedule.close():
            return
        try:
            self.stop_all(timeout)
        except RuntimeError as error:
            self._log.warning(f'{self._title}{error}')
        self._runner.join(timeout)
        if self._store is not None:
            self._store.close()

    def expire(self) -> None:
        """End turns whose deadline has passed, and check the robot's thread.

        Call this regularly. It waits neither for the model nor for a disk.
        """
        now = time.monotonic()
        for turn in self._schedule.remove(lambda turn: turn.due <= now):
            self._end_unrun(turn, FinishReason.DEADLINE)
        current = self._schedule.current
        if current is not None and current.begun and current.due <= now:
            current.stop(FinishReason.DEADLINE)
            if current.claim(unless_streaming=True):  # its picture is still being encoded
                current.finish_reason = FinishReason.DEADLINE
                self._runner.announce(current)
        self._runner.supervise()

    def _end_unrun(self, turn: Turn, reason: FinishReason, later: Later = at_once) -> None:
        if turn.claim():
            turn.finish_reason = reason
            turn.queue_time = time.monotonic() - turn.arrived
            later(lambda: self._runner.announce(turn))
