"""The loop of the terminal chat: questions, commands, and replies that Ctrl-C stops.

Uses a model and a history, and shows them on a `Screen`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import replace

from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.chat.message import is_image
from ros2_nanochat.config import GenerationConfig
from ros2_nanochat.program import error_line
from ros2_nanochat.terminal.commands import COMMANDS, Commands, Leave
from ros2_nanochat.terminal.screen import LineReader, Screen
from ros2_nanochat.terminal.tool_turn import show_turn
from ros2_nanochat.tools import FunctionRunner, ToolLoop, form_of_reply, reading_ahead


class ChatLoop:
    """One conversation in a terminal or a script.

    Args:
        model: A `NanoLLM`.
        history: The conversation.
        screen: Where it is shown.
        config: The options of generation.
        wrap_tokens: Tokens to keep when the context is full, None for half of it.
        stats: Show figures after each reply.
        streaming: Show replies as they stream.
        debug: Show the traceback of errors.

    Attributes:
        failed: Whether anything went wrong.
    """

    def __init__(
        self,
        model,
        history: ChatHistory,
        screen: Screen,
        config: GenerationConfig,
        wrap_tokens: int | None = None,
        stats: bool = True,
        streaming: bool = True,
        debug: bool = False,
    ):
        self.model = model
        self.history = history
        self.screen = screen
        self._config = config.stopping_at(history.template.stop)
        self._wrap_tokens = wrap_tokens
        self._stats, self._streaming, self._debug = stats, streaming, debug
        self.commands = Commands(model, history, screen)
        self.commands.form = config.response_format
        self._interrupts = 0
        self.failed = False

    def run(self, prompts: Iterable[str] | None = None) -> None:
        """Ask the prompts, or read lines until the user leaves."""
        try:
            if prompts is not None:
                for prompt in prompts:
                    self.screen.question(prompt)
                    self.line(prompt)
                return
            reader = LineReader(COMMANDS, self.screen.interactive)
            while True:
                self._read(reader)
        except (Leave, EOFError):
            pass

    def _read(self, reader: LineReader) -> None:
        try:
            line = reader.read()
        except KeyboardInterrupt:
            self._interrupt()
            return
        self._interrupts = 0
        self.line(line)

    def _interrupt(self) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            raise Leave
        self.screen.note('Ctrl-C again leaves.')

    def line(self, line: str) -> None:
        """Process a command or a question.

        If it fails, the error is shown and the conversation stays as it was.
        """
        line = line.strip()
        if not line:
            return
        try:
            name, _, rest = line.partition(' ')
            if name in COMMANDS:
                self.commands.run(name, rest)
            elif re.fullmatch(r'/\w+', name) and not is_image(name):
                raise ValueError(f'there is no command {name}: {" ".join(COMMANDS)}')
            else:
                self.ask(line)
        except Leave:
            raise
        except Exception as error:  # whatever it is, the conversation continues
            if self._debug:
                traceback.print_exc()
            self.failed = True
            self.screen.error(error_line(error, how='--debug'))
        except KeyboardInterrupt:
            self._interrupt()

    # --- questions ---

    def ask(self, line: str) -> None:
        """Ask a question, with the images before it, and show the reply.

        Images without a question are kept for the next one.
        """
        images, text = _split_images(line)
        before = list(self.history.messages)
        try:
            for image in images:
                self.history.append('user', image=image)
            if not text:
                return
            self.history.append('user', text=text)
            if self.history.tools:
                self._ask_with_tools()
                return
            prompt = self._prompt()
            config = replace(self._config, response_format=self.commands.form)
            reply = self.model.generate(prompt, kv_cache=self.history.kv_cache, config=config)
            self._show(reply)
            if reply.finish_reason in ('error', 'refused'):
                raise ValueError(reply.error)
        except BaseException:
            self.history.messages[:] = before
            raise
        self.history.append('bot', reply)
        if config.response_format is not None and not reply.valid:
            self.screen.note(f'The answer is not in the form: the reply was cut ({reply.finish_reason}).')
        if self._stats:
            self.screen.note(_figures(reply))

    def _prompt(self):
        longest = self._config.max_new_tokens
        room = self.model.info.context_length - max(longest, 1) if longest >= 0 else 0
        prompt, _ = self.history.embed_chat(
            max_tokens=room if room > 0 else None, wrap_tokens=self._wrap_tokens
        )
        if self.history.num_dropped:
            self.screen.note(
                f'The context is full: the oldest {self.history.num_dropped} messages were dropped.'
            )
        return prompt

    def _ask_with_tools(self) -> None:
        config = replace(self._config, response_format=self.commands.form)

        def respond(tool_choice: str):
            chosen, calls = form_of_reply(config, self.history.call_form(tool_choice))
            return self.model.generate(
                self._prompt(), kv_cache=self.history.kv_cache, config=chosen, calls=calls
            )

        loop = ToolLoop(
            self.history,
            FunctionRunner(self.history.tools),
            respond,
            read_ahead=reading_ahead(self.history),
            formed=config.response_format is not None,
        )
        with self._interrupting(loop):
            ended = show_turn(loop.events(), self.screen)
        if ended.error:
            raise ValueError(ended.error)
        if self._stats:
            self.screen.note(_figures(ended))

    def _show(self, reply) -> None:
        """Show a reply as it streams."""
        reasoning = False
        with self._interrupting(reply):
            for delta in reply.deltas() if self._streaming else list(reply.deltas()):
                if reasoning and not delta.reasoning:
                    self.screen.piece('\n\n', reasoning=True)
                reasoning = delta.reasoning
                self.screen.piece(delta.text, delta.reasoning)
        self.screen.end()

    @contextlib.contextmanager
    def _interrupting(self, reply) -> Iterator[None]:
        """Ctrl-C stops a reply or a turn; if it does not end, a second Ctrl-C leaves."""

        def interrupt(*_):
            self._interrupts += 1
            if self._interrupts > 1:
                raise Leave
            reply.stop()

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _split_images(line: str) -> tuple[list[str], str]:
    """Split a line into image names at its beginning and the question.

    A name with blanks has to be quoted.
    """
    images, rest = [], line
    while rest:
        match = re.match(r'"([^"]+)"|\'([^\']+)\'|(\S+)', rest)
        name = os.path.expanduser(next((part for part in match.groups() if part), '')) if match else ''
        if match is None or not is_image(name):
            break
        images.append(name)
        rest = rest[match.end() :].strip()
    return images, rest


def _figures(reply) -> str:
    usage = reply.usage
    figures = [
        f'{usage.prompt_tokens} tokens in',
        *([] if usage.reused_tokens is None else [f'{usage.reused_tokens} of them known']),
        f'{usage.new_tokens} out',
    ]
    if usage.image_tokens:
        figures.insert(-1, f'{usage.image_tokens} for images')
    if usage.time_to_first_token is not None:
        figures.append(f'first after {usage.time_to_first_token:.2f} s')
    if usage.tokens_per_second is not None:
        figures.append(f'{usage.tokens_per_second:.1f} tokens/s')
    ended = '' if reply.finish_reason == 'stop' else f', ended by {reply.finish_reason}'
    return f'({", ".join(figures)}{ended})'
