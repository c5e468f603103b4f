"""Output of the terminal chat and input of lines: colours by rich, line editing by prompt_toolkit.

Knows no model and no conversation.
"""

from __future__ import annotations

import os
import re
import sys

from rich.console import Console

from ros2_nanochat.files import valid_text
from ros2_nanochat.program import prepare_streams

_CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]')


def harmless(text: str) -> str:
    """Return text without control characters: a model must not move the cursor or set a window's title."""
    return _CONTROL.sub('', text)


class Screen:
    """Shows replies on standard output.

    Everything else also goes there on a terminal, otherwise to standard error.
    """

    def __init__(self):
        prepare_streams()
        self.replies = Console(highlight=False, markup=False, emoji=False)
        self.notices = (
            self.replies
            if sys.stdout.isatty()
            else Console(stderr=True, highlight=False, markup=False, emoji=False)
        )
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()

    def piece(self, text: str, reasoning: bool = False) -> None:
        """Show a piece of a reply at once. Reasoning is dim, and not in the output of a script."""
        console = self.notices if reasoning else self.replies
        console.out(harmless(text), end='', style='dim italic' if reasoning else 'green', highlight=False)

    def end(self) -> None:
        """End a reply's line."""
        self.replies.out('')

    def question(self, text: str) -> None:
        """Show a question that was not typed."""
        self.notices.out(f'>> {harmless(text)}', style='bold cyan', highlight=False)

    def note(self, text: str) -> None:
        """Show a remark of the program."""
        self.notices.out(harmless(text), style='dim', highlight=False)

    def error(self, text: str) -> None:
        """Show an error."""
        self.notices.out(harmless(text), style='bold red', highlight=False)


class LineReader:
    """Reads lines with editing, a persistent history, and completion of commands and file names.

    Without a terminal, reads plain lines.

    Args:
        commands: Names of commands with what they do.
        interactive: Whether there is a terminal.
    """

    def __init__(self, commands: dict[str, str], interactive: bool):
        self._session = _make_session(commands) if interactive else None

    def read(self) -> str:
        """Read a line.

        Raises:
            EOFError: The input or the terminal has ended.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        try:
            if self._session is not None:
                return valid_text(self._session.prompt([('class:prompt', '>> ')]))
            line = sys.stdin.readline()
        except OSError as error:
            raise EOFError from error
        if not line:
            raise EOFError
        return valid_text(line.rstrip('\n').removeprefix('\ufeff'))


def _make_session(commands: dict[str, str]):
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document
    from prompt_toolkit.styles import Style

    class Commands(Completer):
        files = PathCompleter(expanduser=True)

        def get_completions(self, document, event):
            text = document.text_before_cursor
            name, blank, rest = text.partition(' ')
            if text.startswith('/') and not blank:
                for command, meaning in commands.items():
                    if command.startswith(text):
                        yield Completion(command, -len(text), display_meta=meaning)
            elif name in ('/save', '/load'):
                yield from self.files.get_completions(Document(rest), event)

    return PromptSession(
        history=_history(),
        completer=Commands(),
        complete_while_typing=False,
        style=Style.from_dict({'prompt': 'bold ansicyan'}),
    )


def _history():
    """Return the history file, readable only by the user; one in memory if it cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    folder = os.path.join(
        os.environ.get('XDG_STATE_HOME') or os.path.expanduser('~/.local/state'), 'nanochat'
    )
    path = os.path.join(folder, 'history')
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
