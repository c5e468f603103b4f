"""What programs share: importing; the outermost caller, which turns any error into one line and an exit
status; ending together with the parent; refusing what a forked process cannot use.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from ros2_nanochat.errors import BackendError, shorten

# Errors that Python raises about a bug in the program, not about its input.
_MISTAKES = (ArithmeticError, AssertionError, AttributeError, LookupError, NameError, SyntaxError, TypeError)
_SHOWN = 600  # characters of an error
_PR_SET_PDEATHSIG = 1  # prctl(2)


class OptionParser(argparse.ArgumentParser):
    """Reports a wrong option in one line. The usage, which argparse adds, hides it in a screen of options."""

    def error(self, message: str) -> NoReturn:
        """Show a message and end the program with exit status 2."""
        self.exit(2, f'{self.prog}: {shorten(message, _SHOWN)}: {self.prog} --help lists the options\n')


def run_program(
    body: Callable[[], int],
    tell: Callable[[str], None],
    debug: bool = False,
    describe: Callable[[BaseException], str] = str,
    how: str = '--debug',
) -> int:
    """Run a program, and turn any error into one line and an exit status.

    Args:
        body: The program; returns its exit status.
        tell: Shows the line.
        debug: Also show the traceback.
        describe: Turns an error that is not a bug of the program into text.
        how: What the user adds to see the traceback.

    Returns:
        The exit status: that of `body`, 1 if it failed, 130 after Ctrl-C.
    """
    prepare_streams()
    try:
        return body()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has closed it: `nanochat-chat ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        tell(error_line(error, describe, how))
        return 1


@contextlib.contextmanager
def interruptible_imports() -> Iterator[None]:
    """Let Ctrl-C end the process at once, as it does programs in C. For the first block of a program, which
    imports the rest: nothing needs cleaning up yet, and Ctrl-C would show a traceback.
    """
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ours and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def prepare_streams() -> None:
    """Make sure that the standard streams exist and accept any text.

    Characters that the encoding lacks become `?`, bytes that cannot be decoded become U+FFFD, and a stream
    that was closed (`<&-`) is empty.
    """
    for name, mode in (('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w')):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, mode, encoding='utf-8'))  # noqa: SIM115 it lasts as we do
        elif isinstance(stream, io.TextIOWrapper) and name != 'stderr':
            stream.reconfigure(errors='replace')


def error_line(error: BaseException, describe: Callable[[BaseException], str] = str, how: str = '') -> str:
    """Return an error as one line. If it is a bug of the program, the line says so, and how to see the
    traceback.

    Args:
        error: The error.
        describe: Turns an error that is not a bug into text.
        how: What the user adds to see the traceback; empty if there is no way.
    """
    text = shorten(describe(error), _SHOWN) or type(error).__name__
    if not isinstance(error, _MISTAKES):
        return text
    return f'internal error: {type(error).__name__}: {text}' + (f' (use {how} to see where)' if how else '')


def die_with_parent() -> None:
    """Make the kernel kill this process when its parent ends; does nothing where that is not possible."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def check_process(owner: int) -> None:
    """Check that this process may use a model: its threads do not exist in a process that was forked from
    the one that opened it, which would wait for ever.

    Args:
        owner: The process that opened the model.

    Raises:
        BackendError: This is another one.
    """
    if os.getpid() != owner:
        raise BackendError(
            f'the model belongs to process {owner}, which opened it, and this is process {os.getpid()}: open'
            " a model here, or start processes with multiprocessing's method 'spawn'"
        )
