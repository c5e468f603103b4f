"""Command line options of the terminal chat and of completion, and the prompts they are given. Opens no
model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from ros2_nanochat.config import APIS, GenerationConfig, ModelConfig, names


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """The options that the terminal chat and completion share."""
    defaults = GenerationConfig()
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=None,
    )
    model = parser.add_argument_group('the model')
    model.add_argument(
        '--model',
        metavar='PATH|OWNER/NAME',
        help='a file or folder, or a repository of the Hugging Face hub (owner/name:file.gguf '
        'for one file); without it a small model that comes along, often wrong',
    )
    model.add_argument(
        '--api', choices=APIS, help='what runs the model; inferred from its files where not given'
    )
    model.add_argument(
        '--quantization',
        metavar='METHOD',
        help='quantization (mlc: q4f16_1, hf: a dtype or quantizer), or a path to quantized weights',
    )
    model.add_argument(
        '--vision',
        metavar='PATH|OWNER/NAME',
        help='a LLaVA-form checkpoint whose vision tower and projector stand beside the model',
    )
    model.add_argument(
        '--max-context-len', type=int, metavar='TOKENS', help='tokens that the conversation may hold'
    )
    model.add_argument('--device', default='auto', help='cpu, cuda, cuda:1 (hf, mlc)')
    model.add_argument(
        '--gpu-layers', type=int, default=0, metavar='N', help='layers of a GGUF model on the GPU, -1 for all'
    )
    model.add_argument(
        '--threads', type=int, metavar='N', help='CPU threads; the physical cores where not given'
    )
    model.add_argument('--model-lib', metavar='FILE', help='compiled library of an MLC model')
    reply = parser.add_argument_group('the reply')
    reply.add_argument(
        '--max-new-tokens',
        type=int,
        default=256,
        metavar='N',
        help='length of a reply at most, -1 for as long as the context allows',
    )
    reply.add_argument(
        '--min-new-tokens',
        type=int,
        default=defaults.min_new_tokens,
        metavar='N',
        help='length of a reply at least',
    )
    reply.add_argument(
        '--do-sample', action='store_true', help='sample; otherwise the likeliest token is taken'
    )
    reply.add_argument(
        '--temperature', type=float, default=defaults.temperature, metavar='X', help='of sampling'
    )
    reply.add_argument(
        '--top-p',
        type=float,
        default=defaults.top_p,
        metavar='X',
        help='sample from as many tokens as have this share of the probability',
    )
    reply.add_argument(
        '--top-k',
        type=int,
        default=defaults.top_k,
        metavar='N',
        help='sample from the N likeliest tokens, 0 for all',
    )
    reply.add_argument(
        '--min-p',
        type=float,
        default=defaults.min_p,
        metavar='X',
        help='leave out tokens less likely than X times the likeliest',
    )
    reply.add_argument(
        '--repetition-penalty',
        type=float,
        default=defaults.repetition_penalty,
        metavar='X',
        help='over 1 makes repeating less likely',
    )
    reply.add_argument('--seed', type=int, metavar='N', help='the same seed samples the same reply')
    reply.add_argument(
        '--stop-tokens',
        nargs='+',
        default=[],
        metavar='TEXT|ID',
        help='further strings or token ids that end a reply',
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
    return parser


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `NanoLLM.from_pretrained`."""
    return {name: getattr(args, name) for name in names(ModelConfig) if hasattr(args, name)}


def generation_config(args: argparse.Namespace) -> GenerationConfig:
    """How replies are generated; ValueError for a value that is not valid."""
    options = {name: getattr(args, name) for name in names(GenerationConfig) if hasattr(args, name)}
    options['stop_tokens'] = tuple(map(_stop_token, args.stop_tokens))
    return GenerationConfig(**options)


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
    """The prompts of `--prompt`, None where it is not used. ValueError for a file that cannot be read."""
    if given is None:
        return None
    prompts: list[str] = []
    for prompt in (text for group in given for text in group):
        if prompt == '-':
            prompts += _lines(sys.stdin.read())
        elif prompt.lower().endswith(('.txt', '.json')) and (
            not any(c.isspace() for c in prompt) or os.path.isfile(prompt)
        ):
            prompts += load_file(prompt)
        else:
            prompts.append(prompt)
    return prompts


def load_file(path: str) -> list[str]:
    """The prompts in a .txt file, one a line, or a .json file, a list of strings or of objects with `text`
    and perhaps `image`.
    """
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read()
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
