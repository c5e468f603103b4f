"""Starts and ends ROS programs: rejected arguments and all other errors become one line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy.logging import LoggingSeverity, set_logger_level

from ros2_nanochat.errors import shown
from ros2_nanochat.program import run_program

_HINTS = {
    'opening YAML file': 'is it there, and can you read it?',
    'parameter override rule': 'the value has to be YAML: put a text in quotes, -p "name:=\'text\'"',
    'params file': 'it has to hold the name of a node or /**, below that ros__parameters:, and there the'
    ' parameters, as config/chat.yaml of this package does',
    'remap rule': 'it has to be old:=new, names of letters, digits, _ and / that start with no digit, and a'
    ' namespace (__ns:=/r1) starts with /',
    'log level': 'debug, info, warn, error or fatal',
}
"""What to do about an error of rcl."""


def run_ros_program(name: str, arguments: Sequence[str], body: Callable[[], int]) -> int:
    """Run a program like `run_program`. `--debug` or the log level debug shows the traceback.

    Args:
        name: Name of the program.
        arguments: The command line.
        body: The program; returns the exit code.
    """

    def tell(line: str) -> None:
        print(f'{name}: {line}', file=sys.stderr, flush=True)

    return run_program(body, tell, is_debug(arguments), describe, '--ros-args --log-level debug')


def init(arguments: Sequence[str], **options: Any) -> list[str]:
    """Initialize rclpy with a command line.

    rcl does not log what it raises, so that there is only one line.

    Args:
        arguments: The command line.
        **options: Options of `rclpy.init`.

    Returns:
        The arguments that are not for ROS, without the program's name.
    """
    debug = is_debug(arguments)
    if not debug:
        set_logger_level('rcl', LoggingSeverity.FATAL)
    try:
        rclpy.init(args=list(arguments), **options)
    finally:
        if not debug:
            set_logger_level('rcl', LoggingSeverity.UNSET)
    # Not remove_ros_args: it also removes `model:=x`, which rcl takes for an old form of a remapping.
    return split_arguments(arguments[1:])[1]


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words of a command line that are for ROS, and the others."""
    for_ros: list[str] = []
    others: list[str] = []
    inside = False
    for word in arguments:
        if word == '--ros-args' or (inside and word == '--'):
            inside = word == '--ros-args'
        else:
            (for_ros if inside else others).append(word)
    return for_ros, others


def refuse_words(words: Sequence[str], example: str = 'name:=value') -> None:
    """Check that a program that takes no arguments of its own got none, except `--debug`.

    Args:
        words: The arguments that are not for ROS.
        example: How a parameter is given.

    Raises:
        ValueError: There are some.
    """
    unknown = [word for word in words if word != '--debug']
    if unknown:
        raise ValueError(
            f'{shown(" ".join(unknown))} is not understood: parameters are given as  --ros-args -p {example}'
        )


def parse_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Return the options of a program that has some.

    Args:
        parser: Knows the options.
        words: The arguments that are not for ROS.

    Raises:
        ValueError: There are others.
    """
    options, unknown = parser.parse_known_args(words)
    if unknown:
        raise ValueError(
            f'{shown(" ".join(unknown))} is not understood: {parser.prog} --help lists the options; arguments'
            ' of ROS follow --ros-args, for example  --ros-args -p name:=value'
        )
    return options


def is_debug(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for the log level debug."""
    levels = [value for option, value in zip(arguments, arguments[1:]) if option == '--log-level']
    return '--debug' in arguments or any(level.lower().rpartition(':=')[2] == 'debug' for level in levels)


def describe(error: BaseException) -> str:
    """Return the text of an rcl or rclpy error, without source locations, and with what to do."""
    text = re.sub(r',? at [^\s,]+:\d+', '', str(error)).removeprefix('failed to initialize rcl: ')
    text = ' '.join(text.split()).rstrip('^ ').replace('. Error: error not set', '')
    if type(error).__name__ == 'UnknownROSArgsError':
        text = f'{text} is not understood after --ros-args'
    hint = next((hint for words, hint in _HINTS.items() if words in text and 'parse' in text), '')
    return f'{text.rstrip(".")}: {hint}' if hint else text
