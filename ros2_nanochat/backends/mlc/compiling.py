"""Makes a model for `mlc`: quantizes a checkpoint and compiles its library with the `mlc_llm` command, into a
cache folder.

The cache holds only complete results: each is made in a temporary folder, which is renamed at the end. Two
processes never make the same one. Source of the command line: python/mlc_llm/cli of mlc-llm.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable

from ros2_nanochat.backends.mlc.checkpoint import (
    beside_tokenizer,
    check_checkpoint,
    conversation_name,
    make_view,
    size_of_weights,
)
from ros2_nanochat.backends.mlc.folder import (
    MLCFolder,
    NoneFits,
    cache_folder,
    is_mlc_folder,
)
from ros2_nanochat.backends.mlc.library import target_of, unfit_for
from ros2_nanochat.backends.mlc.making import making
from ros2_nanochat.backends.mlc.mlc_llm import Steps, command
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError
from ros2_nanochat.files import read_json
from ros2_nanochat.locate import MLC_CONFIG

_log = logging.getLogger(__name__)
_CHUNK = 1024  # tokens of one prefill call: buffers have this size, and a Jetson has little memory
_BATCH = 16  # minimum number of sequences at once
_SMALL = ('.json', '.jinja', '.model', '.txt')
_TARGETS = {'llvm': 'cpu'}  # TVM's kinds whose devices have another name


def prepare(
    path: str,
    config: ModelConfig,
    notify: Callable[[str], None] = _log.warning,
    check: Callable[[str], str | None] = lambda library: None,
    stop: threading.Event | None = None,
) -> str:
    """Return the folder of MLC weights for a path, and make sure that its library exists.

    Args:
        path: A folder of MLC weights, or a checkpoint from which one is made.
        config: The options of the model.
        notify: Called with a line of text as the work proceeds.
        check: Returns what else is wrong with an existing library, or None; if something is, it is compiled
            again.
        stop: Set it to end the work.

    Raises:
        BackendError: That is not possible. The message is one line.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if config.quantization and is_mlc_folder(os.path.expanduser(config.quantization)):
        path = os.path.abspath(os.path.expanduser(config.quantization))
    elif config.quantization and os.sep in config.quantization:
        raise BackendError(
            f'quantization={config.quantization!r} is no folder of MLC weights: it has no {MLC_CONFIG}'
        )
    elif is_mlc_folder(path) and config.quantization:
        found = MLCFolder(path).quantization
        if found != config.quantization:
            raise BackendError(
                f'the weights in {path} are {found}, and quantization={config.quantization!r} was asked for:'
                ' leave it out, or name the original checkpoint'
            )
    target = target_of(config.device)
    if not is_mlc_folder(path):
        path, is_new = make_model(path, config, target, notify, stop)
        if is_new:
            _note(check, MLCFolder(path).find_library(config), notify)
            return path
    elif not _holds(path, config.max_context_len):
        raise ValueError(
            f'max_context_len={config.max_context_len} is not valid: the weights in {path} are made for'
            f' {MLCFolder(path).context_length} tokens: lower it, or name the original checkpoint'
        )
    folder = MLCFolder(path)
    reason = _what_is_wrong(folder, config, check)
    if reason is None:
        return path
    folder.check_shards()
    try:
        command()
    except BackendError as error:
        raise BackendError(
            f'{reason}; to make one (nanochat-mlc {path} --target {target}), {error}'
        ) from None
    notify(f'{reason}: it is compiled here')
    _note(check, make_library(folder, target, notify, stop), notify)
    return path


def _holds(path: str, tokens: int | None) -> bool:
    """Whether MLC weights are made for a context of so many tokens, or of any number."""
    own = MLCFolder(path).context_length
    return tokens is None or not own or tokens <= own


def _what_is_wrong(folder: MLCFolder, config: ModelConfig, check: Callable[[str], str | None]) -> str | None:
    """Why a library must be compiled; None if the one found is usable. A library that the user names is not
    judged.
    """
    try:
        library = folder.find_library(config)
    except NoneFits as error:
        return str(error)
    if library is None:
        return (
            f'{folder.path} has no model library: no .so next to it, none of its name in {cache_folder()},'
            ' and model_lib names none'
        )
    return None if config.model_lib else unfit_for(library, config.device) or check(library)


def _note(check: Callable[[str], str | None], library: str | None, notify: Callable[[str], None]) -> None:
    """Tell the user if a library that was just compiled does not run here: it may be for another machine."""
    if library and (reason := check(library)):
        notify(f'what mlc_llm has made does not run with this Python: {reason}')


def make_model(
    path: str,
    config: ModelConfig,
    target: str,
    notify: Callable[[str], None],
    stop: threading.Event | None = None,
) -> tuple[str, bool]:
    """Quantize and compile a checkpoint, unless that was done before.

    Args:
        path: The checkpoint.
        config: The options of the model.
        target: Kind of device to compile for.
        notify: Called with a line of text as the work proceeds.
        stop: Set it to end the work.

    Returns:
        The folder in the cache, and whether it was made now.

    Raises:
        BackendError: It failed.
    """
    source = check_checkpoint(path)
    quantization = config.quantization or 'q4f16_1'
    key = _digest([json.dumps(source, sort_keys=True), _state_of_weights(path), *_small_files(path)])
    name = _safe(f'{os.path.basename(path)}-{quantization}-{target}')
    final = os.path.join(cache_folder(), f'{name}-{key}-MLC')
    if is_mlc_folder(final) and _holds(final, config.max_context_len):  # for the model's own context
        return final, False
    if config.max_context_len:
        final = os.path.join(cache_folder(), f'{name}-{config.max_context_len}-{key}-MLC')
        if is_mlc_folder(final):
            return final, False
    with making(final, notify, stop=stop) as aside:
        if aside is None:
            return final, True
        command()  # before anything is made
        _check_room(path, quantization, os.path.dirname(final))
        view, out = os.path.join(aside.folder, 'checkpoint'), os.path.join(aside.folder, 'model')
        os.mkdir(view)
        os.mkdir(out)
        make_view(path, view)
        run = Steps(3, aside, notify, stop)
        sizes = ['--context-window-size', str(config.max_context_len)] if config.max_context_len else []
        run(
            'configuring',
            'gen_config',
            view,
            '--quantization',
            quantization,
            '--conv-template',
            conversation_name(path),
            *sizes,
            '--prefill-chunk-size',
            str(min(_CHUNK, config.max_context_len or _CHUNK)),
            '--max-batch-size',
            str(max(_BATCH, config.max_sequences)),
            '--output',
            out,
        )
        run(
            f'quantizing to {quantization}',
            'convert_weight',
            view,
            '--quantization',
            quantization,
            '--device',
            _TARGETS.get(target, target),
            '--output',
            out,
        )
        for file in beside_tokenizer(path):
            shutil.copy(file, out)
        _compile(run, f'compiling for {target}', out, target, os.path.join(out, f'{name}.so'))
        MLCFolder(out).check_shards()
        os.rename(out, final)
    return final, True


def make_library(
    folder: MLCFolder,
    target: str,
    notify: Callable[[str], None],
    stop: threading.Event | None = None,
) -> str:
    """Compile the library of MLC weights into the cache folder, under the name that `find_library` looks for.

    Args:
        folder: The weights.
        target: Kind of device to compile for.
        notify: Called with a line of text as the work proceeds.
        stop: Set it to end the work.

    Returns:
        The path of the library.
    """
    final = folder.made_library(target)
    with making(final, notify, replace=True, stop=stop) as aside:
        if aside is not None:
            command()
            library = os.path.join(aside.folder, 'library.so')
            run = Steps(1, aside, notify, stop)
            _compile(run, f'compiling {folder.name} for {target}', folder.path, target, library)
            os.replace(library, final)
    return final


def _compile(run: Steps, doing: str, folder: str, target: str, library: str) -> None:
    device = _TARGETS.get(target, target)
    run(doing, 'compile', os.path.join(folder, MLC_CONFIG), '--device', device, '--output', library)
    if not os.path.isfile(library) or not os.path.getsize(library):
        raise BackendError(
            'mlc_llm compile ended without an error and without a library; run it by hand to see why'
        )


def _check_room(path: str, quantization: str, folder: str) -> None:
    source = size_of_weights(path)
    bits = int(match[1]) if (match := re.match(r'q(\d)', quantization)) else 16
    stored = (
        4
        if read_json(path, 'config.json').get('torch_dtype', read_json(path, 'config.json').get('dtype'))
        == 'float32'
        else 2
    )
    need = int(source / stored / 8 * (bits * 1.15 if bits else 16)) + (64 << 20)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise BackendError(
            f'{folder} has {free / (1 << 20):,.0f} MiB free, and {os.path.basename(path)} in {quantization}'
            f' takes about {need / (1 << 20):,.0f} MiB: free some room, or set XDG_CACHE_HOME to a disk that'
            ' has it'
        )


def _state_of_weights(path: str) -> str:
    """Names, sizes and times of the files; changes when the weights change."""
    entries = [
        (name, os.stat(os.path.join(path, name)))
        for name in sorted(os.listdir(path))
        if name.endswith(('.safetensors', '.bin'))
    ]
    return json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in entries])


def _small_files(path: str) -> list[str]:
    """Names and contents of the other files in the folder: tokenizer, templates, end tokens."""
    names = sorted(name for name in os.listdir(path) if name.endswith(_SMALL) and name != 'config.json')
    digests = []
    for name in names:
        with open(os.path.join(path, name), 'rb') as file:
            digests.append(f'{name} {hashlib.sha256(file.read()).hexdigest()}')
    return digests


def _digest(parts: list[str]) -> str:
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:10]


def _safe(name: str) -> str:
    return re.sub(r'[^\w.+-]', '_', name)
