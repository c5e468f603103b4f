"""Answers the turns of a robot that has tools: reply, calls, their answers, next reply.

The loop itself is that of the library (`tools/loop.py`). Here are a robot's own concerns: pieces and
sentences go out as they come, and what has happened is on disk before and after each call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ros2_nanochat.answer.call_form import CallForm
from ros2_nanochat.answer.written_call import WrittenCall
from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.chat.message import ChatMessage
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.answering import Answering, Memory
from ros2_nanochat.robot.sentences import PAUSE, SentenceSplitter
from ros2_nanochat.robot.tool_entries import Example
from ros2_nanochat.robot.tool_journal import NOT_CALLED
from ros2_nanochat.robot.tool_record import CallRecord
from ros2_nanochat.robot.toolbox import Toolbox, TurnTools
from ros2_nanochat.robot.turn import Turn
from ros2_nanochat.robot.worker import Worker
from ros2_nanochat.tools import (
    Answered,
    Called,
    CallState,
    Ended,
    Paused,
    TextPiece,
    Tool,
    ToolCall,
    ToolLoop,
    form_of_reply,
    reading_ahead,
)

_PATIENCE = 1.0  # seconds beyond those that a stopped call has


class ToolTurn:
    """The replies and calls of one turn: what a turn without tools has in its stream.

    Args:
        loop: The loop.
        tools: The tools of the turn.
        memory: The conversation.
    """

    def __init__(self, loop: ToolLoop, tools: TurnTools, memory: Memory):
        self.loop, self.tools, self.memory = loop, tools, memory
        self.stop = loop.stop

    @property
    def tokens(self) -> list[int]:
        """The ids of all replies."""
        return [token for reply in self.loop.replies for token in reply.tokens]


class ToolAnswering(Answering):
    """Answers the turns of one robot that has tools.

    Args:
        box: The robot's tools.
        checkpoint: Called with the memory, the robot's thread and whether all calls have their answers, each
            time that the history holds something that must survive a crash.
        arguments: Those of `Answering`.
    """

    def __init__(self, box: Toolbox, checkpoint: Callable[[Memory, Worker, bool], None], *arguments):
        super().__init__(*arguments)
        self._box, self._checkpoint = box, checkpoint
        self._told: list[ToolCall] = []  # calls in the background of which the history may not tell yet

    def begin(self, turn: Turn, memory: Memory, worker: Worker):
        """Add the question to the history and start the reply. See `Answering.begin`."""
        with memory.lock:
            tools = self._box.tools
            if memory.history.tools != tools:
                memory.history.tools = tools
                memory.history.examples = example_messages(self._box.examples, tools)
        self._box.put_back(self._told)  # the last turn was not kept
        self._told = []
        stream = super().begin(turn, memory, worker)
        if stream is None or not memory.history.tools:
            return stream
        return self._looped(turn, memory, worker, stream)

    def _looped(self, turn: Turn, memory: Memory, worker: Worker, first) -> ToolTurn:
        replies = [first]

        def respond(tool_choice: str):
            if replies:
                return replies.pop()
            with worker.step('making the prompt', 60.0):
                prompt = self._embed(turn, memory.history)
                return self._generate(turn, memory.history, prompt, tool_choice=tool_choice)

        tools = TurnTools(self._box, turn)
        limits = self._box.limits
        loop = ToolLoop(
            memory.history,
            tools,
            respond,
            tool_choice='none' if turn.without_tools else str(limits.tool_choice),
            max_tool_rounds=limits.rounds,
            lock=memory.lock,
            due=turn.due,
            cancel_seconds=limits.stop_timeout + _PATIENCE,
            read_ahead=reading_ahead(memory.history, turn.options.priority),
            formed=turn.options.generation.response_format is not None,
        )
        return ToolTurn(loop.start(), tools, memory)

    def _question(self, turn: Turn) -> str:
        """Return the question, after the news of calls in the background."""
        self._told = self._box.take_news()
        return '\n\n'.join([*map(_news, self._told), super()._question(turn)])

    def _generate(
        self,
        turn: Turn,
        history: ChatHistory,
        prompt,
        config: GenerationConfig | None = None,
        tool_choice: str = '',
        **options,
    ):
        if history.tools:
            choice = tool_choice or str(self._box.limits.tool_choice)
            form = history.call_form('none' if turn.without_tools else choice)
            several = self._box.limits.parallel_calls
            form = form if several or form is None else one_call(form)
            config, options['calls'] = form_of_reply(turn.options.generation, form)
        return super()._generate(turn, history, prompt, config, **options)

    def stream(self, turn: Turn, stream, worker: Worker) -> None:
        """Pass on the replies as they stream, let the calls be executed, and record how the turn ended."""
        if isinstance(stream, ToolTurn):
            try:
                self._pass_on(turn, stream, worker)
            finally:
                stream.tools.finish()
                turn.tool_calls = stream.tools.records
        else:
            super().stream(turn, stream, worker)

    def _pass_on(self, turn: Turn, stream: ToolTurn, worker: Worker) -> None:
        loop = stream.loop
        sentences = SentenceSplitter(spoken=not turn.options.raw_sentences)
        passed = 0  # tokens of this reply
        num_open = 0  # calls without an answer
        texts: list[str] = []  # the pieces of the answer
        begun = -1  # number of the reply that has text
        for event in loop.events(PAUSE):
            worker.check()
            if isinstance(event, Paused):
                self._speak(worker, turn, sentences.pause())
            elif isinstance(event, TextPiece):
                count, passed = event.delta.num_tokens - passed, event.delta.num_tokens
                text = event.text
                if not event.reasoning:
                    self._speak(worker, turn, sentences.add(text))
                    text, begun = ('\n\n' if texts and begun != event.round else '') + text, event.round
                    texts.append(text)
                self._emit(worker, 'token', turn, turn.num_pieces, text, count, event.reasoning)
                self._count_piece(turn)
            elif isinstance(event, Called):
                self._speak(worker, turn, sentences.flush())
                written = len(loop.replies[event.round].tokens)
                name = stream.tools.record_id(event.call.id)
                self._emit(worker, 'called', turn, turn.num_pieces, name, written - passed)
                self._count_piece(turn)
                if not num_open:
                    self._checkpoint(stream.memory, worker, False)
                num_open, passed = num_open + 1, written
            elif isinstance(event, Answered):
                num_open -= 1
                turn.tool_calls = stream.tools.records
                self._checkpoint(stream.memory, worker, not num_open)
                if not num_open:
                    passed = 0
                    sentences = SentenceSplitter(spoken=not turn.options.raw_sentences)
            elif isinstance(event, Ended):
                self._speak(worker, turn, sentences.flush())
                self._note_end(turn, loop, event, ''.join(texts))

    @staticmethod
    def _count_piece(turn: Turn) -> None:
        turn.num_pieces += 1
        if turn.num_pieces == 1:
            turn.time_to_first_token = time.monotonic() - turn.arrived

    def _note_end(self, turn: Turn, loop: ToolLoop, ended: Ended, text: str) -> None:
        num_tokens = sum(len(reply.tokens) for reply in loop.replies)
        turn.usage = replace(ended.usage, new_tokens=num_tokens)
        turn.reply, turn.reasoning = text, ended.reasoning
        turn.finish_reason, turn.error = ended.finish_reason, ended.error
        self._note_form(turn, loop.replies[-1])
        turn.queue_time += turn.usage.queue_time or 0.0

    def saved(self, history: ChatHistory) -> None:
        """Called when the history has been saved, with the answers of its calls."""
        self._box.saved([call.id for call in history.open_calls()], self._told)

    def keep(self, stream, history: ChatHistory) -> None:
        """Add a reply to the history, unless its loop has done so."""
        self._told = []
        if not isinstance(stream, ToolTurn):
            super().keep(stream, history)


def one_call(form: CallForm) -> CallForm:
    """Return the form of replies that hold at most one call."""
    return replace(form, format=replace(form.format, between=None))


def example_messages(examples: Sequence[Example], tools: Sequence[Tool]) -> list[ChatMessage]:
    """Return examples as messages: commands, calls and answers.

    Args:
        examples: The examples of the tools file.
        tools: The tools that can be called now. Examples of others are left out.
    """
    names = {tool.name for tool in tools}
    messages = []
    for n, example in enumerate(each for each in examples if each.call in names):
        call = WrittenCall(example.call, example.arguments, f'example{n % 100:02d}')
        messages += [ChatMessage('user', text=example.say), ChatMessage('bot', text='', calls=[call])]
        if example.answer:
            messages.append(ChatMessage('tool', text=example.answer, call_id=call.id, name=call.name))
        if example.reply:
            messages.append(ChatMessage('bot', text=example.reply))
    return messages


def _news(call: ToolCall) -> str:
    """What the model is told about a call in the background that has ended."""
    return f'({call.name}, which went on in the background, has ended: {call.state}: {call.result})'


def answer_open_calls(
    history: ChatHistory, lost: list[CallRecord], ended: list[CallRecord]
) -> list[CallRecord]:
    """Answer the calls of a restored history that have no answer.

    Args:
        history: The history.
        lost: The calls that were under way, according to the journal: they become `unknown`.
        ended: The calls that had ended, according to the journal.

    Returns:
        The calls whose end nobody was told, with their final state.
    """
    known = {record.call.id.partition('.')[2]: record for record in [*ended, *lost]}
    told = list(lost)
    for written in history.open_calls():
        if (record := known.get(written.id)) is None:
            call = ToolCall(
                f'lost.{written.id}', written.name, written.arguments, CallState.CANCELLED, NOT_CALLED
            )
            told.append(record := CallRecord(call))
        history.append_answer(written.id, written.name, record.call.result)
    return told


def recover(box: Toolbox, history: ChatHistory, store, system_prompt: str | None) -> None:
    """Tell a restored history, and the robot's listeners, of calls that the previous run left.

    Args:
        box: The robot's tools.
        history: The history.
        store: A `ConversationStore`, or None.
        system_prompt: The robot's system prompt.
    """
    lost, ended = box.left
    num_messages = len(history)
    records = answer_open_calls(history, lost, ended)
    asked = '\n'.join(message.text or '' for message in history if message.role == 'user')
    news = [each.call for each in [*ended, *lost] if each.background and _news(each.call) not in asked]
    box.recovered(records, news)
    if store is None:
        return
    try:
        if len(history) > num_messages:
            store.save(history, system_prompt)
        box.saved([])
    except OSError as error:
        box.log.error(f'the calls recovered after a crash could not be saved: {one_line(error)}')
