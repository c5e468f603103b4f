"""What NanoLLM's programs import from `nano_llm.utils`: command line options, prompts, tables, Ctrl-C."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ros2_nanochat.chat.message import is_image
from ros2_nanochat.compat.attributes import AttributeDict, missing
from ros2_nanochat.compat.templates import ChatTemplates
from ros2_nanochat.config import APIS
from ros2_nanochat.files import read_text
from ros2_nanochat.image_sources import EXTENSIONS, lends_pixels

__all__ = [
    'ArgParser',
    'AttributeDict',
    'DefaultChatPrompts',
    'DefaultCompletionPrompts',
    'ImageExtensions',
    'ImageTypes',
    'KeyboardInterrupt',
    'LogFormatter',
    'load_prompts',
    'print_table',
]

ImageExtensions = EXTENSIONS


class _PixelArrayType(type):
    def __instancecheck__(cls, thing: Any) -> bool:
        torch = sys.modules.get('torch')
        if torch is not None and isinstance(thing, torch.Tensor):
            return True
        return lends_pixels(thing) and is_image(thing)


class PixelArray(metaclass=_PixelArrayType):
    """For `isinstance`: tensors, and objects that expose their pixels through the array interface, such as
    jetson_utils' cudaImage. Their packages are not imported.
    """


ImageTypes = (Image.Image, np.ndarray, PixelArray)
"""The types of images in memory, as in NanoLLM. Encoded bytes, open files and names are none of them."""
DefaultChatPrompts = [
    'What is the capital of Japan?',
    'And of France?',
    'Name three things that a robot can carry.',
    'What is 7 times 6?',
]
DefaultCompletionPrompts = ['Once upon a time,', 'The capital of Japan is', 'A robot is a machine that']

_LEVELS = ('debug', 'info', 'warning', 'error', 'critical')


class ArgParser(argparse.ArgumentParser):
    """A command line parser with NanoLLM's options.

    Args:
        extras: Groups of options: `model`, `chat`, `prompt`, `generation`, `log`, `video_input`.
        **options: Options of `argparse.ArgumentParser`.

    Raises:
        ValueError: A group of NanoLLM is not offered, such as `asr`.
    """

    Defaults = ['model', 'chat', 'generation', 'log']

    def __init__(self, extras: Sequence[str] = tuple(Defaults), **options):
        options.setdefault('formatter_class', argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(**options)
        groups = {
            'model': self._add_model,
            'chat': self._add_chat,
            'prompt': lambda: None,
            'generation': self._add_generation,
            'log': self._add_log,
            'video_input': self._add_video_input,
        }
        unknown = [extra for extra in extras if extra not in groups]
        if unknown:
            raise ValueError(
                f'ArgParser has no options for {str(unknown[0])[:200]!r}: it has {", ".join(groups)}'
            )
        if {'chat', 'prompt'} & set(extras):
            self.add_argument(
                '--prompt', action='append', nargs='*', help='a prompt, or a .txt or .json file'
            )
        for extra in dict.fromkeys(extras):
            groups[extra]()

    def _add_model(self) -> None:
        self.add_argument('--model', help='a path, or a repository of the hub')
        self.add_argument('--quantization', help='a method of the api, or quantized weights')
        self.add_argument('--api', choices=APIS, help='what runs the model; inferred if not given')
        self.add_argument('--vision-api', default='auto', choices=['auto', 'hf', 'trt'], help='has no effect')
        self.add_argument('--vision-model', help='a checkpoint whose vision encoder is used')
        self.add_argument('--vision-scaling', choices=['crop', 'resize'], help='cut or stretch to a square')

    def _add_chat(self) -> None:
        self.add_argument('--chat-template', help=f'a file, or one of {", ".join(ChatTemplates)}')
        self.add_argument('--system-prompt', help="instead of the template's own")
        self.add_argument('--wrap-tokens', type=int, default=512, help='kept when the context is full')

    def _add_generation(self) -> None:
        self.add_argument('--max-context-len', type=int, help='tokens that a conversation may hold')
        self.add_argument('--max-new-tokens', type=int, default=128, help='length of a reply at most')
        self.add_argument('--min-new-tokens', type=int, default=-1, help='length of a reply at least')
        self.add_argument('--do-sample', action='store_true', help='sample with temperature and top-p')
        self.add_argument('--temperature', type=float, default=0.7, help='of sampling')
        self.add_argument('--top-p', type=float, default=0.95, help='share of the probability to sample from')
        self.add_argument('--repetition-penalty', type=float, default=1.0, help='over 1 repeats less')

    def _add_video_input(self) -> None:
        self.add_argument(
            '--video-input', help='a camera, a stream, a video file, or images: a folder or *.jpg'
        )
        self.add_argument('--video-input-width', type=int, help='pixels, of a camera')
        self.add_argument('--video-input-height', type=int, help='pixels, of a camera')
        self.add_argument('--video-input-framerate', type=int, help='of a camera')
        for name in ('codec', 'save'):
            self.add_argument(f'--video-input-{name}', help='accepted, no effect')

    def _add_log(self) -> None:
        self.add_argument('--log-level', default='info', choices=_LEVELS, help='messages that are shown')
        self.add_argument('--debug', '--verbose', action='store_true', help='the same as --log-level debug')

    def parse_args(self, args=None, namespace=None):
        """Parse the command line, read prompts from files, and set up logging."""
        parsed = super().parse_args(args, namespace)
        if hasattr(parsed, 'prompt'):
            parsed.prompt = self.parse_prompt_args(parsed.prompt)
        if getattr(parsed, 'system_prompt', None):
            parsed.system_prompt = load_prompts(parsed.system_prompt, concat=True)
        if hasattr(parsed, 'log_level'):
            parsed.log_level = 'debug' if parsed.debug else parsed.log_level
            LogFormatter.config(level=parsed.log_level)
        return parsed

    @staticmethod
    def parse_prompt_args(prompts: Sequence[Sequence[str]] | None, chat: bool = True) -> list[str] | None:
        """Return the prompts of a repeated `--prompt`. `default` stands for a few examples."""
        if prompts is None:
            return None
        flat = [text for group in prompts for text in group]
        if flat and flat[0].lower() in ('default', 'defaults'):
            return list(DefaultChatPrompts if chat else DefaultCompletionPrompts)
        return flat


def load_prompts(prompts: str | Iterable[str] | None, concat: bool | str = False) -> list[str] | str | None:
    """Return prompts, read from files where needed.

    Args:
        prompts: Texts or file names. A .txt file is one prompt; a .json file is a list of strings or of
            objects with `text`.
        concat: Join them, with a blank or this string.

    Raises:
        ValueError: A file cannot be read.
    """
    if prompts is None:
        return None
    loaded: list[str] = []
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        loaded += _read_prompts(prompt) if prompt.endswith(('.txt', '.json')) else [prompt]
    return (' ' if concat is True else str(concat)).join(loaded) if concat else loaded


def _read_prompts(path: str) -> list[str]:
    try:
        text = read_text(path)
        if path.endswith('.txt'):
            return [text.strip()]
        return [entry if isinstance(entry, str) else entry['text'] for entry in json.loads(text)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'prompts cannot be read from {path[:200]}: {error}') from error


def print_table(table: Mapping[Any, Any] | Iterable[Sequence[Any]], **_) -> None:
    """Print a dictionary, or rows, in columns."""
    rows = [[str(cell) for cell in row] for row in (table.items() if isinstance(table, Mapping) else table)]
    widths: list[int] = []
    for row in rows:
        widths += [0] * (len(row) - len(widths))
        widths[: len(row)] = [max(width, len(cell)) for width, cell in zip(widths, row)]
    for row in rows:
        print('  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


class LogFormatter:
    """Sets up logging."""

    @staticmethod
    def config(level: str = 'info', **_) -> None:
        """Show messages of this level and above on standard error."""
        logging.basicConfig(format='%(levelname)s %(name)s: %(message)s')
        logging.getLogger().setLevel(level.upper())


class KeyboardInterrupt:
    """Handles Ctrl-C: the first makes this object true, a second within `timeout` seconds ends the program.

    Create it in the main thread.

    Args:
        callback: Called at the first Ctrl-C.
        timeout: Seconds within which a second Ctrl-C ends the program.
    """

    def __init__(self, callback: Callable[[], Any] | None = None, timeout: float | None = 2.0):
        self.callback = callback
        self.timeout = timeout or 0.0
        self.interrupted = False
        self._last = -float('inf')
        signal.signal(signal.SIGINT, self.on_interrupt)

    def on_interrupt(self, signum: int, frame: Any) -> None:
        """Handle one Ctrl-C."""
        last, self._last = self._last, time.monotonic()
        if self._last - last < self.timeout:
            sys.exit(128 + signum)
        self.interrupted = True
        os.write(2, b'Ctrl-C stops the reply; once more ends the program.\n')
        if self.callback is not None:
            self.callback()

    def reset(self) -> None:
        """Wait for the next Ctrl-C."""
        self.interrupted = False

    def __bool__(self) -> bool:
        return self.interrupted


def __getattr__(name: str):
    raise missing(__name__, name, f'only {", ".join(__all__)} are offered')
