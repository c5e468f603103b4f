"""Makes the pictures of terminals in README.md and docs/terminal.md: a session on the embedded model, as a
terminal shows it, under the command that starts it.

pip install pexpect pyte, and in a shell with `source env.sh`:
python3 tools/terminal_picture.py demo docs/images/demo.svg
python3 tools/terminal_picture.py chat docs/images/terminal.svg
"""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
import tempfile

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

COLUMNS, ROWS = 100, 22
# The command in the title, the arguments that run it here, and the steps: what is typed, and what stands at
# the end of the answer.
SESSIONS = {
    'chat': (
        'python3 -m ros2_nanochat.chat',
        ['-m', 'ros2_nanochat.chat'],
        (
            ('What is the capital of Japan?', r'tokens in.*\)'),
            ('And of France?', r'tokens in.*\)'),
            ('Write a story about a robot.', None),
            ('/undo', 'Taken back: .*'),
            ('/save talk.json', r'Saved .*\.'),
            ('/quit', pexpect.EOF),
        ),
    ),
    'demo': (
        'make demo',
        [os.path.abspath('tools/demo.py')],
        (
            ('What is the capital of Japan?', 'Tokyo.'),
            ('And of France?', 'Paris.'),
            ('/reset', 'forgotten'),
            ('/quit', pexpect.EOF),
        ),
    ),
}


def record(arguments: list[str], steps) -> pyte.Screen:
    """Run the session and return what the screen shows at its end."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.Stream(screen)
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            'TERM': 'xterm-256color',
            'PROMPT_TOOLKIT_NO_CPR': '1',
            'XDG_STATE_HOME': folder,
            'PYTHONPATH': os.pathsep.join([os.getcwd(), os.environ.get('PYTHONPATH', '')]),
        }
        chat = pexpect.spawn(
            sys.executable,
            arguments,
            env=environment,
            cwd=folder,
            encoding='utf-8',
            timeout=300,
            dimensions=(ROWS, COLUMNS),
        )
        chat.logfile_read = type(
            'Feed', (), {'write': staticmethod(stream.feed), 'flush': staticmethod(lambda: None)}
        )
        for line, answer in steps:
            chat.expect('>> ')
            chat.send(line + '\r')
            if answer is None:
                for _ in range(20):  # pieces of green; then stop it
                    chat.expect('\x1b\\[32m')
                chat.sendintr()
                answer = 'ended by cancelled'
            chat.expect(answer)
    return screen


def draw(screen: pyte.Screen, title: str) -> str:
    """The screen as SVG."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system='truecolor'
    )
    for row in range(max(row for row, line in enumerate(screen.display) if line.strip()) + 1):
        text = Text()
        cells = (screen.buffer[row][column] for column in range(COLUMNS))
        for (color, bold, italic), run in itertools.groupby(
            cells, lambda cell: (cell.fg, cell.bold, cell.italics)
        ):
            text.append(
                ''.join(cell.data for cell in run),
                Style(color=None if color == 'default' else color, bold=bold, italic=italic),
            )
        console.print(text, no_wrap=True)
    svg = console.export_svg(title=title)
    return re.sub(r'@font-face \{.*?\}\s*', '', svg, flags=re.DOTALL).replace(
        'Fira Code', 'DejaVu Sans Mono'
    )  # no fonts from elsewhere


if __name__ == '__main__':
    command, program, typed = SESSIONS[sys.argv[1]]
    picture = draw(record(program, typed), command)
    os.makedirs(os.path.dirname(os.path.abspath(sys.argv[2])), exist_ok=True)
    with open(sys.argv[2], 'w', encoding='utf-8') as file:
        file.write(picture)
