"""Command line options of the terminal chat and of completion, and their prompts. Opens no model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ros2_nanochat.answer.response_format import read_response_format
from ros2_nanochat.config import (
    GenerationConfig,
    ModelConfig,
    NodeConfig,
    Option,
    Options,
    RobotOptions,
    options_of,
    program_defaults,
)
from ros2_nanochat.config.wording import shown_default
from ros2_nanochat.errors import shorten
from ros2_nanochat.files import read_text, valid_text
from ros2_nanochat.program import OptionParser
from ros2_nanochat.terminal.nanollm_options import add_nanollm_options


def make_parser(program: str, description: str, conversation: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options that the terminal chat and completion share.

    Args:
        program: Name of the program.
        description: What it does.
        conversation: Also add the options of a chat.
    """
    parser = OptionParser(prog=program, description=description)
    _add_options(parser.add_argument_group('the model'), ModelConfig)
    _add_options(parser.add_argument_group('the reply'), GenerationConfig)
    if conversation:
        group = parser.add_argument_group('the conversation')
        _add_options(group, NodeConfig)
        _add_options(group, RobotOptions)
        group.add_argument(
            '--template-option',
            action='append',
            metavar='NAME=VALUE',
            help='a variable of the chat template, such as enable_thinking=false; can be repeated. The value'
            ' is JSON, or else text',
        )
        group.add_argument(
            '--tools',
            metavar='MODULE:OBJECT',
            help='functions that the model may call: a function, or a list of functions or Tools, in a Python'
            ' module, such as my_tools:TOOLS; see docs/tools.md',
        )
    parser.add_argument(
        '--prompt',
        action='append',
        nargs='+',
        metavar='TEXT|FILE',
        help='ask this and leave; can be repeated. A .txt file has one '
        'prompt a line, a .json file a list of them; - reads standard input, one a line',
    )
    parser.add_argument('--disable-stats', action='store_true', help='no figures after each reply')
    parser.add_argument('--debug', action='store_true', help='show where an error comes from')
    add_nanollm_options(parser)
    return parser


def _add_options(group: argparse._ArgumentGroup, kind: type[Options]) -> None:
    """Add an argument for each option of a dataclass that has one. It is None until it is given."""
    for option in options_of(kind):
        if not option.argument:
            continue
        settings: dict[str, Any] = {'dest': option.name, 'help': _help(option)}
        if option.kind is bool:
            settings['action'] = argparse.BooleanOptionalAction
        elif option.kind is tuple:
            settings.update(nargs='+', metavar=option.metavar)
        else:
            settings['type'] = option.kind
            settings.update(
                {'choices': option.choices} if option.choices else {'metavar': option.metavar or None}
            )
        group.add_argument(f'--{option.name.replace("_", "-")}', **settings)


def _help(option: Option) -> str:
    default = option.otherwise if option.program_default is None else shown_default(option.program_default)
    return f'{option.explained()} (default: {default})'.replace('%', '%%')


def given(args: argparse.Namespace, kind: type[Options]) -> dict[str, Any]:
    """Return the options of a dataclass that are on the command line."""
    values = {option.name: getattr(args, option.name, None) for option in options_of(kind)}
    return {name: value for name, value in values.items() if value is not None}


def model_config(args: argparse.Namespace) -> ModelConfig:
    """Return which model to open. ValueError for a value that is not valid."""
    return ModelConfig(**given(args, ModelConfig))


def robot_options(args: argparse.Namespace) -> RobotOptions:
    """Return the options of the conversation. ValueError for a value that is not valid."""
    return RobotOptions(**given(args, RobotOptions), generation=generation_config(args))


def generation_config(args: argparse.Namespace) -> GenerationConfig:
    """Return the options of generation. ValueError for a value that is not valid."""
    options = given(args, GenerationConfig)
    if 'stop_tokens' in options:
        options['stop_tokens'] = tuple(map(_stop_token, options['stop_tokens']))
    if 'response_format' in options:  # read here, because the user may name a file
        options['response_format'] = read_response_format(options['response_format'], files=True)
    return replace(program_defaults(GenerationConfig), **options)


def template_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the variables of the chat template.

    Raises:
        ValueError: One has no value.
    """
    options = {}
    for text in args.template_option or ():
        name, separator, value = valid_text(text).partition('=')
        if not separator or not name:
            raise ValueError(f'--template-option {shorten(text)} is not valid: it has to be NAME=VALUE')
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _stop_token(stop: str) -> int | str:
    if stop.isdecimal():
        return int(stop)
    try:
        return stop.encode().decode('unicode_escape') if stop.isascii() else stop
    except UnicodeDecodeError as error:
        raise ValueError(
            f'--stop-tokens {stop} is not valid: a backslash begins an escape such as \\n ({error.reason});'
            ' write two for one'
        ) from None


def load_prompts(given: Sequence[Sequence[str]] | None) -> list[str] | None:
    """Return the prompts of `--prompt`, None if it is not used.

    Raises:
        ValueError: A file cannot be read.
    """
    if given is None:
        return None
    prompts: list[str] = []
    for prompt in (text for group in given for text in group):
        if prompt == '-':
            prompts += _lines(sys.stdin.read().removeprefix('\ufeff'))
        elif prompt.lower().endswith(('.txt', '.json')) and (
            not any(c.isspace() for c in prompt) or os.path.isfile(os.path.expanduser(prompt))
        ):
            prompts += load_file(os.path.expanduser(prompt))
        else:
            prompts.append(prompt)
    return [valid_text(prompt) for prompt in prompts]


def load_file(path: str) -> list[str]:
    """Return the prompts in a file.

    Args:
        path: A .txt file with one prompt a line, or a .json file with a list of strings or of objects with
            `text` and optionally `image`.

    Raises:
        ValueError: The file cannot be read.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'prompts cannot be read from {path}: {error}') from error
    if not path.lower().endswith('.json'):
        return _lines(text)
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'{path}, line {error.lineno}: {error.msg}') from error
    except RecursionError:
        raise ValueError(f'{path} is nested too deep') from None
    prompts = []
    for n, entry in enumerate(data if isinstance(data, list) else [data]):
        if isinstance(entry, dict) and isinstance(entry.get('text'), str):
            image = entry.get('image')
            prompts += [image, entry['text']] if isinstance(image, str) else [entry['text']]
        elif isinstance(entry, str):
            prompts.append(entry)
        else:
            raise ValueError(
                f'{path}, entry {n}: a prompt is a string, or an object with "text" and perhaps "image"'
            )
    return prompts


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
