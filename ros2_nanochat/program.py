"""The outermost caller of every program: whatever goes wrong there becomes one line and an exit status."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable

from ros2_nanochat.errors import shorten

# What Python raises about a program rather than about its input.
_MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, SyntaxError, TypeError)
_SHOWN = 600  # characters of an error


def run_program(
    body: Callable[[], int],
    tell: Callable[[str], None],
    debug: bool = False,
    describe: Callable[[BaseException], str] = str,
    how: str = '--debug',
) -> int:
    """Run a program.

    Args:
        body: The program; returns its exit status.
        tell: Shows the line.
        debug: Show the traceback as well.
        describe: Text of an error that comes from outside.
        how: What the user adds to see the traceback.

    Returns:
        The exit status: that of `body`, 1 if it failed, 130 after Ctrl-C.
    """
    prepare_streams()
    try:
        return body()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has left: `nanochat-chat ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        tell(error_line(error, describe, how))
        return 1


def prepare_streams() -> None:
    """Let the standard streams take and give any text, and be there: an encoding that lacks a character shows
    `?`, bytes that cannot be decoded become U+FFFD, and a stream that was closed (`<&-`) is empty.
    """
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, mode, encoding='utf-8'))  # noqa: SIM115 it lasts as we do
        elif isinstance(stream, io.TextIOWrapper) and name != 'stderr':
            stream.reconfigure(errors='replace')


def error_line(error: BaseException, describe: Callable[[BaseException], str] = str, how: str = '') -> str:
    """An error in one line. One that is the program's own says so, and how to see its traceback."""
    text = shorten(describe(error), _SHOWN) or type(error).__name__
    if not isinstance(error, _MISTAKES):
        return text
    return f'internal error: {type(error).__name__}: {text}' + (f' (with {how} you see where)' if how else '')
