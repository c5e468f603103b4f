"""Answers one turn: adds its pictures and text to the history, lets the model continue, and passes on the
reply as it streams.

Runs on the robot's thread. Whatever may block (the model, a disk, a listener) is a step of the `Worker`, so
that its supervisor sees where a thread is stuck.
"""

from __future__ import annotations

import copy
import functools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.config import GenerationConfig, RobotOptions
from ros2_nanochat.errors import EncodingStopped, one_line
from ros2_nanochat.robot.frames import CameraFrames
from ros2_nanochat.robot.sentences import PAUSE, SentenceSplitter
from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.robot.worker import Worker
from ros2_nanochat.states import FinishReason

_PROMPT_SECONDS = 60.0  # for making the prompt; a chat template that loops never ends
_BYTES_PER_TOKEN = 32  # more than any text has: a longer query cannot fit into the context


@dataclass
class Memory:
    """What a robot's thread works on. A thread that replaces another one gets its own.

    Attributes:
        history: The conversation.
        system_prompt: The system prompt, as last read from the robot's options.
        lock: Held while the history changes.
        instruction: The text about the form of answers that follows the system prompt.
    """

    history: ChatHistory
    system_prompt: str | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    instruction: str = ''

    def copy(self, before: list[ChatMessage] | None = None) -> Memory:
        """Return a copy for another thread, which the current thread cannot change.

        Args:
            before: The messages before a turn that is abandoned. Its KV cache is abandoned, too. None if no
                turn was running.
        """
        history = copy.copy(self.history)
        history.messages = list(history.messages if before is None else before)
        if before is not None:
            history.kv_cache = None
        return Memory(history, self.system_prompt, instruction=self.instruction)


def too_long(query: str, context_length: int, what: str = 'query') -> str:
    """Return why a query is rejected without being read, because it cannot fit into the context; else ''.

    Args:
        query: The query.
        context_length: Tokens of the context.
        what: What it is, for the message.
    """
    limit = _BYTES_PER_TOKEN * context_length
    size = len(query) if len(query) > limit else len(query.encode('utf-8', 'replace'))
    if size <= limit:
        return ''
    return (
        f'the {what} has {size} bytes, and at most {limit} are read for a context of {context_length} tokens:'
        ' shorten it, or raise max_context_len'
    )


def check_texts(options: RobotOptions, context_length: int) -> None:
    """Check the texts of a robot's options that become part of each prompt.

    Args:
        options: The options.
        context_length: Tokens of the context.

    Raises:
        ValueError: One cannot fit into the context.
    """
    for name in ('system_prompt', 'template_options'):
        if unread := too_long(getattr(options, name) or '', context_length, name):
            raise ValueError(unread)


class Answering:
    """Answers the turns of one robot.

    Args:
        model: A `NanoLLM`.
        sight: The robot's camera frames.
        store: A `ConversationStore` or None.
        emit: Calls a method of the robot's output: `emit(worker, name, *arguments)`.
    """

    def __init__(self, model, sight: CameraFrames, store, emit: Callable):
        self._model, self._sight, self._store, self._emit = model, sight, store, emit

    def begin(self, turn: Turn, memory: Memory, worker: Worker):
        """Add the question to the history and start the reply.

        Args:
            turn: The question.
            memory: The conversation.
            worker: The robot's thread.

        Returns:
            The `StreamingResponse`, None if the turn was stopped before.

        Raises:
            Exception: The question cannot be answered. The history may have changed.
        """
        if not turn.query.strip() and not turn.pictures:
            raise ValueError('the query is empty: write a question')
        unable = None if self._model.has_vision else f'{self._model.info.name} has no vision'
        # Without the lock: asking, cancelling and reading the history must not wait for the vision encoder.
        shown = self._shown(turn, memory.history, unable)
        turn.let_go()
        worker.check()
        if _is_over(turn):
            turn.finish_reason = turn.stop_reason or FinishReason.DEADLINE
            return None
        if memory.history.kv_cache is None and self._store is not None:
            self._store.restore_kv(memory.history)
        with memory.lock, worker.step('making the prompt', _PROMPT_SECONDS):
            prompt = self._prompt(turn, memory, shown)
            worker.check()
            return self._generate(turn, memory.history, prompt)

    def _shown(self, turn: Turn, history, unable: str | None) -> list[tuple[ChatMessage, Callable[[], None]]]:
        """Return the encoded images of a turn as messages, each with a function to call when it is in the
        history.
        """
        of_camera = not turn.pictures
        shown: list[tuple[ChatMessage, Callable[[], None]]] = []
        for picture, opened in self._sight.pictures(turn, history, unable, self._model.open_image):
            message = ChatMessage('user', image=opened, text=picture.label or None)
            try:
                turn.encode_time += message.embed(self._model, lambda: _is_over(turn)).seconds
            except EncodingStopped:
                break
            except Exception as error:
                if not of_camera:
                    raise
                turn.picture = None
                turn.remark(f'the camera image was not used: {one_line(error)}')
                continue
            tell = functools.partial(self._sight.shown, message, picture, opened) if of_camera else _nothing
            shown.append((message, tell))
            if self._store is None:
                message.let_go()  # pixels would add up: 6 MB for each frame of 1080p
        return shown

    def _prompt(self, turn: Turn, memory: Memory, shown: list):
        history = memory.history
        if turn.options.template_variables != history.template_options:
            history.template_options = turn.options.template_variables
        self._set_system_prompt(turn, memory)
        users = _num_questions(history)
        for message, tell in shown:
            history.append('user', message)
            tell()
        if turn.query.strip():
            history.append('user', text=self._question(turn))
            users += 1
        prompt = self._embed(turn, history)
        turn.dropped_turns = users - _num_questions(history)
        return prompt

    def _question(self, turn: Turn) -> str:
        """Return the question as the model reads it."""
        return _paragraphs(turn.query, self._instruction(turn, turn.own_form))

    def _embed(self, turn: Turn, history: ChatHistory):
        context = self._model.info.context_length
        room = min(turn.options.generation.max_new_tokens, context // 2)
        prompt, _ = history.embed_chat(
            max_tokens=context - room if room > 256 else None, wrap_tokens=turn.options.wrap_tokens
        )
        turn.encode_time += history.encode_seconds
        return prompt

    def _set_system_prompt(self, turn: Turn, memory: Memory) -> None:
        """Set the robot's system prompt, followed by the form that its answers must have: the model then
        reads the form once, not with each question.
        """
        history = memory.history
        instruction = memory.instruction if turn.own_form else self._instruction(turn, not turn.own_form)
        if turn.options.system_prompt != memory.system_prompt:
            memory.system_prompt = turn.options.system_prompt
            prompt = history.template.system_prompt if memory.system_prompt is None else memory.system_prompt
        elif instruction == memory.instruction and (history.system_prompt or '').endswith(instruction):
            return
        else:
            prompt = history.system_prompt
            for written in (memory.instruction, instruction):
                prompt = (prompt or '').removesuffix(written).rstrip('\n') if written else prompt
        memory.instruction = instruction
        history.system_prompt = _paragraphs(prompt or '', instruction)

    @staticmethod
    def _instruction(turn: Turn, here: bool) -> str:
        """Return what the prompt says about the form of the answer, '' if that belongs elsewhere."""
        form = turn.options.generation.response_format
        return form.instruction if here and form is not None and turn.options.explain_format else ''

    def _generate(
        self, turn: Turn, history: ChatHistory, prompt, config: GenerationConfig | None = None, **options
    ):
        config = turn.options.generation if config is None else config
        return self._model.generate(
            prompt,
            config=config.stopping_at(history.template.stop),
            kv_cache=history.kv_cache,
            priority=turn.options.priority,
            deadline=None if turn.due == math.inf else max(0.0, turn.due - time.monotonic()),
            **options,
        )

    def stream(self, turn: Turn, stream, worker: Worker) -> None:
        """Pass on the reply as it streams, and record on the turn how it ended.

        Args:
            turn: The question.
            stream: The `StreamingResponse`.
            worker: The robot's thread.
        """
        sentences, tokens, first = SentenceSplitter(spoken=not turn.options.raw_sentences), 0, None
        for piece in stream.deltas_and_pauses(PAUSE):
            if piece is None:
                worker.check()
                self._speak(worker, turn, sentences.pause())
                continue
            text, num_tokens, _, reasoning, _ = piece
            self._emit(worker, 'token', turn, turn.num_pieces, text, num_tokens - tokens, reasoning)
            turn.num_pieces += 1
            tokens = num_tokens
            if first is None:
                first = time.monotonic()
                turn.time_to_first_token = first - turn.arrived
            if not reasoning and (complete := sentences.add(text)):
                self._speak(worker, turn, complete)
        worker.check()
        self._speak(worker, turn, sentences.flush())
        # The ids that were handed out; the model may have been ahead of them when it was stopped.
        turn.usage = replace(stream.usage, new_tokens=len(stream.tokens))
        turn.served_by = stream.served_by
        turn.reply, turn.reasoning = stream.text, stream.reasoning or ''
        turn.finish_reason, turn.error = stream.finish_reason, stream.error or ''
        self._note_form(turn, stream)
        turn.queue_time += turn.usage.queue_time or 0.0

    def saved(self, history: ChatHistory) -> None:
        """Called when the history has been saved."""

    def keep(self, stream, history: ChatHistory) -> None:
        """Add a reply that has ended to the history."""
        history.append('bot', stream)

    @staticmethod
    def _note_form(turn: Turn, stream) -> None:
        turn.valid = stream.valid
        try:
            turn.parsed = stream.parsed
        except ValueError as error:
            turn.valid = False
            turn.remark(f'the answer is in the form but not of its type: {one_line(error)}')
        if stream.probabilities and turn.reply in stream.probabilities:
            turn.choice, turn.probability = turn.reply, stream.probabilities[turn.reply]

    def _speak(self, worker: Worker, turn: Turn, sentences: list[str]) -> None:
        for sentence in sentences:
            self._emit(worker, 'sentence', turn, sentence)


def _is_over(turn: Turn) -> bool:
    """Whether a turn was stopped, or its time is up, before its reply began."""
    return bool(turn.stop_reason or turn.claimed) or turn.due <= time.monotonic()


def _nothing() -> None:
    """Do nothing: only camera images are compared with later ones."""


def _paragraphs(*texts: str) -> str:
    return '\n\n'.join(text for text in texts if text)


def _num_questions(history: ChatHistory) -> int:
    return sum(each.role == 'user' and each.text is not None and each.image is None for each in history)
