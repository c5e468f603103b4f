"""Makes a model for `mlc`: quantizes a checkpoint and compiles its library with the `mlc_llm` command, into a
cache folder.

What is there is whole: everything is made in a folder aside, which takes its name at the end. Two processes
do not make it twice. The command line is told by python/mlc_llm/cli of mlc-llm.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import filelock

from ros2_nanochat.backends.mlc.checkpoint import (
    beside_tokenizer,
    check_checkpoint,
    conversation_name,
    make_view,
    size_of_weights,
)
from ros2_nanochat.backends.mlc.folder import CONFIG, MLCFolder, cache_folder, is_mlc_folder, target_of
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError
from ros2_nanochat.files import read_json

_log = logging.getLogger(__name__)
_CHUNK = 1024  # tokens of a prefill at once: buffers are planned for it, and a Jetson has little memory
_BATCH = 16  # sequences at once, at least
_HEARTBEAT = 20  # seconds between lines that say how far it is
_TARGETS = {'llvm': 'cpu'}  # the kinds of TVM, where devices have another name
_NOISE = re.compile(r'\x1b\[[0-9;]*m')
INSTALL = (
    'mlc_llm is not installed, which quantizing and compiling need: on a Jetson run in a container that has'
    ' it (jetson-containers run $(autotag mlc)), elsewhere see https://llm.mlc.ai/docs/install/mlc_llm.html;'
    ' or name a model that is ready: a folder or hub repository of MLC weights (its names end in -MLC), and'
    ' its library with model_lib'
)


def prepare(path: str, config: ModelConfig, notify: Callable[[str], None] = _log.warning) -> str:
    """The folder of MLC weights for what lies at `path`, with its library in reach: itself where it is one,
    else one that is made of it.

    notify: called with a line as the work goes on. Raises BackendError, one line, where that cannot be done.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if config.quantization and is_mlc_folder(os.path.expanduser(config.quantization)):
        path = os.path.abspath(os.path.expanduser(config.quantization))
    elif config.quantization and os.sep in config.quantization:
        raise BackendError(
            f'quantization={config.quantization!r} is no folder of MLC weights: it has no {CONFIG}'
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
        return make_model(path, config, target, notify)
    folder = MLCFolder(path)
    if folder.find_library(config) is None:
        folder.check_shards()
        try:
            command()
        except BackendError as error:
            raise BackendError(
                f'{path} has no model library: no .so beside it, none of its name in {cache_folder()}, and'
                f' model_lib names none; and to make one, {error}'
            ) from None
        make_library(folder, target, notify)
    return path


def make_model(path: str, config: ModelConfig, target: str, notify: Callable[[str], None]) -> str:
    """Quantize and compile a checkpoint, unless that was done before; return the folder in the cache."""
    source = check_checkpoint(path)
    quantization = config.quantization or 'q4f16_1'
    key = _digest([json.dumps(source, sort_keys=True), _state_of_weights(path)])
    name = _safe(f'{os.path.basename(path)}-{quantization}-{target}')
    final = os.path.join(cache_folder(), f'{name}-{key}-MLC')
    if is_mlc_folder(final):  # of the model's own context, which serves a shorter one too
        return final
    if config.max_context_len:
        final = os.path.join(cache_folder(), f'{name}-{config.max_context_len}-{key}-MLC')
        if is_mlc_folder(final):
            return final
    with _making(final, notify) as aside:
        if aside is None:
            return final
        _check_room(path, quantization, os.path.dirname(final))
        view, out = os.path.join(aside, 'checkpoint'), os.path.join(aside, 'model')
        os.mkdir(view)
        os.mkdir(out)
        make_view(path, view)
        run = _Steps(3, aside, notify)
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
        library = os.path.join(out, f'{name}.so')
        run(
            f'compiling for {target}',
            'compile',
            os.path.join(out, CONFIG),
            '--device',
            _TARGETS.get(target, target),
            '--output',
            library,
        )
        MLCFolder(out).check_shards()
        _check_made(library)
        os.rename(out, final)
    return final


def make_library(folder: MLCFolder, target: str, notify: Callable[[str], None]) -> str:
    """Compile the library of MLC weights into the cache folder, under the name by which `find_library` looks
    for it.
    """
    stem = re.sub(r'[-_]MLC$', '', folder.name)
    stem = stem if folder.quantization in stem else f'{stem}-{folder.quantization}'
    final = os.path.join(cache_folder(), f'{stem}-{target}.so')
    with _making(final, notify) as aside:
        if aside is not None:
            library = os.path.join(aside, 'library.so')
            _Steps(1, aside, notify)(
                f'compiling {folder.name} for {target}',
                'compile',
                os.path.join(folder.path, CONFIG),
                '--device',
                _TARGETS.get(target, target),
                '--output',
                library,
            )
            _check_made(library)
            os.rename(library, final)
    return final


@contextlib.contextmanager
def _making(final: str, notify: Callable[[str], None]) -> Iterator[str | None]:
    """A folder aside in which to make `final`, for one process at a time; None where another one has made it
    meanwhile. It is gone afterwards.
    """
    root, name = os.path.split(final)
    aside = None
    try:
        os.makedirs(root, exist_ok=True)
        lock = filelock.FileLock(os.path.join(root, f'.{name}.lock'))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            notify(f'waiting for another process that makes {final}')
            lock.acquire()
        try:
            if os.path.exists(final):
                yield None
                return
            command()  # before anything is made
            for left in os.listdir(root):  # by a process that was killed: the lock is ours
                if left.startswith(f'.{name}.making-'):
                    shutil.rmtree(os.path.join(root, left), ignore_errors=True)
            aside = tempfile.mkdtemp(prefix=f'.{name}.making-', dir=root)
            yield aside
        finally:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            lock.release()
    except OSError as error:
        raise BackendError(
            f'{final} cannot be written: {error.strerror or error}; free some room, or set XDG_CACHE_HOME to'
            ' a disk that has it'
        ) from error


class _Steps:
    """Runs commands of mlc_llm one after the other, says which, and turns a failure into one line."""

    def __init__(self, count: int, folder: str, notify: Callable[[str], None]):
        self._count, self._folder, self._notify = count, folder, notify
        self._done = 0

    def __call__(self, doing: str, *arguments: str) -> None:
        self._done += 1
        label = f'mlc_llm {self._done}/{self._count}'
        self._notify(f'{label}: {doing} (this may take minutes)')
        began = time.monotonic()
        log = os.path.join(self._folder, f'{self._done}.log')
        # a group of its own, so that what the command starts in turn ends with it
        with open(log, 'wb') as output:
            process = subprocess.Popen(
                [*command(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, 'PYTHONUNBUFFERED': '1'},
            )
            try:
                while (code := self._wait(process)) is None:
                    self._notify(f'{label}: {time.monotonic() - began:.0f} s: {_last_line(log)}')
            except BaseException:
                _end(process)
                raise
        if code:
            raise BackendError(
                f'mlc_llm {arguments[0]} failed{f" on signal {-code}" if code < 0 else ""}:'
                f' {_telling(_read(log))}'
            )
        self._notify(f'{label}: done in {time.monotonic() - began:.0f} s')

    @staticmethod
    def _wait(process: subprocess.Popen) -> int | None:
        try:
            return process.wait(_HEARTBEAT)
        except subprocess.TimeoutExpired:
            return None


def _end(process: subprocess.Popen) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
            return


def _read(log: str) -> str:
    with open(log, encoding='utf-8', errors='replace') as file:
        return _NOISE.sub('', file.read())


def _last_line(log: str) -> str:
    return next(
        (line.strip()[-120:] for line in reversed(re.split(r'[\r\n]+', _read(log))) if line.strip()), '...'
    )


def _telling(text: str) -> str:
    """The line of a program's output that says why it failed."""
    if 'No space left on device' in text:
        return (
            f'the disk is full; free some room, or set XDG_CACHE_HOME to a disk that has it ({cache_folder()}'
            ' is used)'
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    known = [
        line
        for line in lines
        if re.match(r'(\w+\.)*\w*(Error|Exception|error)\b.*:', line) or 'error:' in line
    ]
    line = (known or lines or ['it said nothing'])[-1]
    return line if len(line) <= 300 else line[:300] + '...'


def command() -> list[str]:
    """How to run mlc_llm here; a BackendError tells how to get it."""
    if program := shutil.which('mlc_llm'):
        return [program]
    if importlib.util.find_spec('mlc_llm') is not None:
        return [sys.executable, '-m', 'mlc_llm']
    raise BackendError(INSTALL)


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


def _check_made(library: str) -> None:
    if not os.path.isfile(library) or not os.path.getsize(library):
        raise BackendError(
            'mlc_llm compile ended without an error and without a library; run it by hand to see why'
        )


def _state_of_weights(path: str) -> str:
    """Changes when the weights change: names, sizes and times of the files."""
    entries = [
        (name, os.stat(os.path.join(path, name)))
        for name in sorted(os.listdir(path))
        if name.endswith(('.safetensors', '.bin'))
    ]
    return json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in entries])


def _digest(parts: list[str]) -> str:
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:10]


def _safe(name: str) -> str:
    return re.sub(r'[^\w.+-]', '_', name)
