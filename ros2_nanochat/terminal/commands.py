"""The commands of the terminal chat, which begin with a slash: their names, and what they do to the
conversation.

They ask the model nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ros2_nanochat.answer.response_format import ResponseFormat, read_response_format
from ros2_nanochat.chat.history import ChatHistory
from ros2_nanochat.errors import shown
from ros2_nanochat.terminal.screen import Screen

COMMANDS = {
    '/help': 'show the commands',
    '/reset': 'forget the conversation',
    '/system': '/system TEXT sets the system prompt; without TEXT, it shows it',
    '/format': '/format FORM sets the form of answers (yes | no, json, ...); without FORM, it ends it',
    '/undo': 'take back the last question and its reply',
    '/save': '/save FILE writes the conversation',
    '/load': '/load FILE continues a saved one',
    '/stats': 'figures of the model and the conversation',
    '/quit': 'leave (so do Ctrl-D, and Ctrl-C twice)',
}
_KEYS = 'Put image file names or URLs before a question. Ctrl-C stops a reply.'


class Leave(Exception):
    """The user wants to leave."""


class Commands:
    """Runs commands on a conversation.

    Args:
        model: A `NanoLLM`.
        history: The conversation.
        screen: Where results are shown.

    Attributes:
        form: The form that answers must have.
    """

    def __init__(self, model, history: ChatHistory, screen: Screen):
        self.model, self.history, self.screen = model, history, screen
        self.form: ResponseFormat | None = None

    def run(self, name: str, rest: str) -> None:
        """Run a command.

        Args:
            name: One of `COMMANDS`.
            rest: The text after it.

        Raises:
            ValueError: The command cannot be done; OSError if a file is the reason.
            Leave: The user wants to leave.
        """
        getattr(self, f'_do_{name[1:]}')(rest.strip())

    def _do_help(self, _: str) -> None:
        for name, meaning in COMMANDS.items():
            self.screen.note(f'{name:9}{meaning}')
        self.screen.note(_KEYS)

    def _do_reset(self, _: str) -> None:
        self.history.reset()
        self.screen.note('The conversation is forgotten.')

    def _do_system(self, text: str) -> None:
        if text:
            self.history.system_prompt = text
        self.screen.note(f'System prompt: {self.history.system_prompt or "(none)"}')

    def _do_format(self, text: str) -> None:
        self.form = read_response_format(text, files=True)
        self.screen.note(f'Answers have this form: {text}' if self.form else 'Answers are free text.')

    def _do_undo(self, _: str) -> None:
        messages = self.history.messages
        last = max((i for i, message in enumerate(messages) if message.role == 'user'), default=None)
        if last is None:
            raise ValueError('there is no question to take back')
        while last > 0 and messages[last - 1].role == 'user':
            last -= 1
        removed = self.history.pop(len(self.history) - last)
        text = ' '.join(message.text for message in removed if message.role == 'user' and message.text)
        self.screen.note(f'Taken back: {text}')

    def _do_save(self, path: str) -> None:
        path = _file('/save', path)
        self.history.save(path)
        self.screen.note(f'Saved {len(self.history)} messages to {path}.')

    def _do_load(self, path: str) -> None:
        path = _file('/load', path)
        self.history.load(path)
        self.screen.note(f'Loaded {len(self.history)} messages from {path}.')

    def _stats_lines(self) -> Iterator[str]:
        info, last = self.model.info, self.model.stats.get('last') or {}
        yield (
            f'model                {info.name}'
            f' ({info.api}{", " + info.quantization if info.quantization else ""})'
        )
        yield (
            f'context              {self.history.num_tokens if len(self.history) else 0} of'
            f' {info.context_length} tokens'
        )
        yield f'template             {self.history.template.name}'
        for name, value in [*self.model.stats.items(), *last.items()]:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield f'{name:21}{value:,.3f}' if isinstance(value, float) else f'{name:21}{value:,}'

    def _do_stats(self, _: str) -> None:
        for line in self._stats_lines():
            self.screen.note(line)

    def _do_quit(self, _: str) -> None:
        raise Leave


def _file(command: str, path: str) -> str:
    """Return the file that a command names, without quotes."""
    if len(path) > 1 and path[0] == path[-1] and path[0] in '"\'':
        path = path[1:-1]
    if not path:
        raise ValueError(f'{command} needs the name of a file')
    if '\0' in path:
        raise ValueError(f'{command} {shown(path)} is not valid: the name of a file has no null bytes')
    return os.path.expanduser(path)
