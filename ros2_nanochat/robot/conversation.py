"""One robot's conversation: takes questions, decides which runs, keeps the history, and hands out what the
model says.

A plain class on a thread of its own, tested without ROS; robot_port.py puts it on topics. It knows models
only as `NanoLLM` and `ChatHistory` show them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.config import OnNewQuery, RobotOptions
from ros2_nanochat.errors import BackendError, MissingDependency
from ros2_nanochat.robot.frames import CameraFrames
from ros2_nanochat.robot.sentences import SentenceSplitter
from ros2_nanochat.robot.turn import Turn, Waiting

_log = logging.getLogger(__name__)
_SLOW = 0.5  # of the robot's own record of tokens a second: below this something is wrong


class Output(Protocol):
    """Where a robot's turns go. Called on the robot's thread, `ended` also on the caller's; must not
    block.
    """

    def started(self, turn: Turn) -> None: ...
    def piece(self, turn: Turn, index: int, text: str, num_tokens: int, reasoning: bool) -> None: ...
    def sentence(self, turn: Turn, text: str) -> None: ...
    def ended(self, turn: Turn) -> None: ...


class RobotConversation:
    """name: for messages. model: a `NanoLLM`. output: an `Output`, may be exchanged while nothing runs.
    camera: gives `newest() -> Picture | None` and `present`, or None. store: a `state.ConversationStore` or
    None. log: anything with info, warning and error. options: may be exchanged at any time.
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
    ):
        self.name = name
        self.model = model
        self.options = options
        self.history = ChatHistory(model, chat_template=chat_template, system_prompt=options.system_prompt)
        self.last: Turn | None = None
        self.record = 0.0
        self.sight = CameraFrames(camera)
        self._prompt_in_use = options.system_prompt
        self.output = output
        self._store, self._log = store, log
        self._waiting = Waiting()
        self._current: Turn | None = None
        self._jobs: list[tuple[Callable[[], None] | None, threading.Event]] = []
        self._closed = False
        self._changed = threading.Condition()  # guards what runs and waits, and the history
        if store is not None:
            store.restore(self.history, options.system_prompt)
        self._thread = threading.Thread(target=self._run, name=f'robot-{name or "chat"}', daemon=True)
        self._thread.start()

    # --- callers, any thread; none of these waits for the model ---

    def ask(self, turn: Turn) -> Turn:
        """Take a question. It may end here and now: refused, or because others made way for it."""
        gone = []
        with self._changed:
            busy = self._current is not None or len(self._waiting) > 0
            policy, priority = turn.options.on_new_query, turn.options.priority
            if self._closed:
                turn.finish_reason, turn.error = (
                    'refused',
                    'the node is being deactivated: ask again when it is active',
                )
            elif busy and policy is OnNewQuery.REJECT:
                turn.finish_reason, turn.error = (
                    'refused',
                    'another reply streams (on_new_query: reject): ask again when it has ended',
                )
            else:
                if policy is OnNewQuery.INTERRUPT:
                    gone = self._waiting.remove(
                        lambda other: (
                            other.options.on_new_query is OnNewQuery.INTERRUPT
                            and other.options.priority <= priority
                        )
                    )
                if len(self._waiting) >= max(turn.options.max_queue, policy is OnNewQuery.INTERRUPT):
                    turn.finish_reason, turn.error = (
                        'refused',
                        f'{len(self._waiting)} turns wait already (max_queue): ask again later',
                    )
                else:
                    if (
                        policy is OnNewQuery.INTERRUPT
                        and self._current is not None
                        and self._current.options.priority <= priority
                    ):
                        self._current.stop('interrupted')
                    self._waiting.add(turn)
                    self._changed.notify_all()
        for other in gone:
            self._end_unrun(other, 'interrupted')
        if turn.finish_reason:
            self._end_unrun(turn, turn.finish_reason)
        return turn

    def cancel(self) -> bool:
        """Stop the reply that is being produced; whether there was one. What waits stays."""
        with self._changed:
            if self._current is None:
                return False
            self._current.stop('cancelled')
            return True

    def cancel_turn(self, turn: Turn) -> None:
        """Stop one turn, whether it runs or waits."""
        with self._changed:
            waited = self._waiting.remove(lambda other: other is turn)
        turn.stop('cancelled')
        for other in waited:
            self._end_unrun(other, 'cancelled')

    def refuse(self, turn: Turn, error: str) -> None:
        """End a turn with `error` that cannot even be tried."""
        turn.error = error
        self._end_unrun(turn, 'error')

    def stop_all(self, timeout: float = 10.0, then: Callable[[], None] | None = None) -> tuple[bool, int]:
        """Stop the reply and drop what waits; returns whether there was a reply, and how many waited. then:
        called on the robot's thread before another question is begun. RuntimeError where the reply does not
        end within `timeout` seconds.
        """
        done = threading.Event()
        with self._changed:
            dropped = self._waiting.remove(lambda turn: True)
            current = self._current
            if current is not None:
                current.stop('cancelled')
            self._jobs.append((then, done))
            self._changed.notify_all()
        for turn in dropped:
            self._end_unrun(turn, 'cancelled')
        if not done.wait(timeout):
            raise RuntimeError(f'the reply that streams has not ended within {timeout} s')
        return current is not None, len(dropped)

    def reset(self, system_prompt: str = '') -> str:
        """Stop and drop everything, forget the conversation; returns what was done. RuntimeError as
        `stop_all`.
        """

        def forget():
            self.history.reset(system_prompt or True)
            self.sight.forget()
            if self._store is not None:
                self._store.drop_kv()
                self._save()

        stopped, dropped = self.stop_all(then=forget)
        return ', '.join(
            [
                'the conversation is forgotten',
                *['a reply was stopped'] * stopped,
                *[f'{dropped} waiting turns were dropped'] * bool(dropped),
            ]
        )

    def expire(self) -> None:
        """End those that wait past their deadline. To be called now and then."""
        now = time.monotonic()
        with self._changed:
            late = self._waiting.remove(lambda turn: turn.due <= now)
        for turn in late:
            self._end_unrun(turn, 'deadline')

    def messages(self) -> tuple[list[tuple[str, str, int]], int]:
        """The conversation as (role, text, number of images), and the tokens it takes."""
        with self._changed:
            messages = [
                (message.role, message.text or '', int(message.image is not None)) for message in self.history
            ]
            return messages, self.history.num_tokens if messages else 0

    @property
    def state(self) -> str:
        """`idle`, `starting` (the question is read) or `streaming`."""
        current = self._current
        return 'idle' if current is None else 'streaming' if current.num_pieces else 'starting'

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def close(self, timeout: float = 2.0) -> None:
        """Stop what runs, drop what waits, end the thread."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
        try:
            self.stop_all(timeout)
        except RuntimeError as error:
            self._log.warning(f'{self._title}{error}')
        self._thread.join(timeout)

    # --- the robot's thread ---

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._jobs or len(self._waiting))
                while self._jobs:
                    job, done = self._jobs.pop(0)
                    if job is not None:
                        job()
                    done.set()
                if self._closed:
                    return
                if not len(self._waiting):
                    continue
                turn = self._current = self._waiting.take()
            try:
                self._answer(turn)
            except Exception as error:  # ours to mend; the robot goes on
                turn.finish_reason, turn.error = 'error', f'internal error: {error!r}'
                self._log.error(f'{self._title}a turn failed: {error!r}')
            with self._changed:
                if self._store is not None and turn.finish_reason not in ('refused', 'error'):
                    self._save()
                self.last = turn
            self._report(turn)
            with self._changed:
                self._current = None
                self._changed.notify_all()
                idle = not len(self._waiting)
            if (
                turn.new_tokens and idle and self._store is not None
            ):  # else the KV is that of the turns before, which a reset may have forgotten
                self._store.save_kv(self.history)  # announces nothing: it may take as long as copying takes

    def _answer(self, turn: Turn) -> None:
        turn.queue_time = time.monotonic() - turn.arrived
        turn.begun = True
        self.output.started(turn)
        with self._changed:
            before = list(self.history.messages)
        try:
            stream = self._begin(turn)
        except (ValueError, OSError, BackendError, MissingDependency) as error:
            with self._changed:
                self.history.messages = before
            turn.finish_reason, turn.error = 'error', str(error)
            return
        if stream is not None:
            turn.attach(stream)
            self._stream(turn, stream)
        with self._changed:
            if stream is None or (not stream.tokens and turn.finish_reason != 'stop'):
                self.history.messages = before  # nothing was said: as if it had not been asked
            else:
                self.history.append('bot', stream)

    def _begin(self, turn: Turn):
        """Put the question into the history and start the reply; None where it was stopped before."""
        if not turn.query.strip() and not turn.pictures:
            raise ValueError('the query is empty: say something')
        unable = None if self.model.has_vision else f'{self.model.info.name} has no vision'
        pictures = self.sight.pictures(turn, self.history, unable)
        shown = [
            self._encoded(turn, pixels) for _, pixels in pictures
        ]  # without the lock: whoever asks or cancels does not wait for it
        left = turn.due - time.monotonic()
        if turn.stop_reason or left <= 0:
            turn.finish_reason = turn.stop_reason or 'deadline'
            return None
        generation = turn.options.generation
        if self.history.kv_cache is None and self._store is not None:
            self._store.restore_kv(self.history)
        with self._changed:
            if self.options.system_prompt != self._prompt_in_use:
                self._prompt_in_use = self.options.system_prompt
                self.history.system_prompt = (
                    self.history.template.system_prompt
                    if self._prompt_in_use is None
                    else self._prompt_in_use
                )
            users = sum(message.role == 'user' and message.text is not None for message in self.history)
            for message, (picture, pixels) in zip(shown, pictures):
                self.history.append('user', message)
                if not turn.pictures:
                    self.sight.shown(message, picture, pixels)
            if turn.query.strip():
                self.history.append('user', text=turn.query)
                users += 1
            context = self.model.info.context_length
            room = min(generation.max_new_tokens, context // 2)
            prompt, _ = self.history.embed_chat(
                max_tokens=context - room if room > 256 else None, wrap_tokens=turn.options.wrap_tokens
            )
            turn.encode_time += self.history.encode_seconds
            turn.dropped_turns = users - sum(
                message.role == 'user' and message.text is not None for message in self.history
            )
            return self.model.generate(
                prompt,
                config=generation.stopping_at(self.history.template.stop),
                kv_cache=self.history.kv_cache,
                priority=turn.options.priority,
                deadline=None if turn.options.deadline is None else left,
            )

    def _encoded(self, turn: Turn, pixels: np.ndarray) -> ChatMessage:
        """The message that shows an image, which the model has seen."""
        message = ChatMessage(
            'user', image=self._store.keep_image(pixels) if self._store is not None else pixels
        )
        turn.encode_time += getattr(message.embed(self.model), 'seconds', 0.0)
        if self._store is None:
            message.let_go()  # 6 MB for each frame of 1080p that the conversation has shown
        return message

    def _stream(self, turn: Turn, stream) -> None:
        sentences, tokens, first = SentenceSplitter(), 0, None
        for piece in stream.deltas():
            self.output.piece(turn, turn.num_pieces, piece.text, piece.num_tokens - tokens, piece.reasoning)
            turn.num_pieces += 1
            tokens = piece.num_tokens
            if first is None:
                first = time.monotonic()
                turn.time_to_first_token = first - turn.arrived
            if not piece.reasoning:
                for sentence in sentences.add(piece.text):
                    self.output.sentence(turn, sentence)
        for sentence in sentences.flush():
            self.output.sentence(turn, sentence)
        usage = stream.usage
        turn.reply, turn.reasoning = stream.text, stream.reasoning or ''
        turn.finish_reason, turn.error = stream.finish_reason, stream.error or ''
        turn.new_tokens = len(stream.tokens)
        turn.prompt_tokens, turn.reused_tokens = usage.prompt_tokens or 0, usage.reused_tokens or 0
        turn.image_tokens, turn.reused_image_tokens = usage.image_tokens, usage.reused_image_tokens
        turn.queue_time += usage.queue_time or 0.0
        turn.tokens_per_second = usage.tokens_per_second or 0.0
        if turn.new_tokens >= 16:
            self.record = max(self.record, turn.tokens_per_second)

    @property
    def slow(self) -> bool:
        """Whether the last reply came much slower than the fastest one."""
        last = self.last
        return last is not None and last.new_tokens >= 16 and last.tokens_per_second < _SLOW * self.record

    # --- ends ---

    def _end_unrun(self, turn: Turn, reason: str) -> None:
        turn.finish_reason = reason
        turn.queue_time = time.monotonic() - turn.arrived
        self._report(turn)

    def _report(self, turn: Turn) -> None:
        if turn.error:
            self._log.warning(f'{self._title}{turn.finish_reason}: {turn.error}')
        try:
            self.output.ended(turn)
        finally:
            turn.ended.set()

    def _save(self) -> None:
        try:
            self._store.save(self.history, self._prompt_in_use)
        except OSError as error:
            self._log.error(f'{self._title}the turn is not on disk: {error}')

    @property
    def _title(self) -> str:
        return f'{self.name}: ' if self.name else ''
