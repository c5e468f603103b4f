"""Opens a GGUF file in a separate process before it is opened in this one.

llama.cpp ends its process if a file's figures surprise it. The separate process shows that, and the error
becomes one line. A file that passed is remembered (findings.py), so only a new model takes this time.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable

from ros2_nanochat.backends.gguf import findings
from ros2_nanochat.backends.gguf.header import parts_of
from ros2_nanochat.backends.gguf.mmproj import Mmproj, check_mmproj, warn_of_unused
from ros2_nanochat.config import FlashAttention, ModelConfig
from ros2_nanochat.errors import BackendError, LoadAborted, printable
from ros2_nanochat.locate import NO_VISION, embedded_model, tiny_mmproj

_log = logging.getLogger(__name__)
_PROCESS = 'ros2_nanochat.backends.gguf.trial_process'
_PATIENCE = 120.0  # seconds, plus the time that a slow disk takes to read the file
_SLOW_DISK = 10e6  # bytes per second
_VERSION = 4  # of what a trial tries
OK, OK_NARROW = 'ok', 'narrow too'
_VERDICTS = {OK: True, f'{OK}\n{OK_NARROW}': False}
"""Whether llama.cpp crashes on narrow pictures, by all that the process printed."""
_CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGFPE, signal.SIGILL, signal.SIGBUS}
_REASON = re.compile(r'ASSERT|rror|\.(c|cpp|cu|h|m|mm):\d+: ')  # the last: of GGML_ABORT


def try_with(
    vision: Mmproj | None, path: str, config: ModelConfig, api_version: str, aborted: Callable[[], bool]
) -> Mmproj | None:
    """Open a model and its vision part in a separate process; see `try_apart`.

    Returns:
        The vision part; None if there is none, or if only the model can be run and the user did not name a
        vision part.
    """
    problem = None
    if vision is not None:
        try:
            check_mmproj(vision.path)
            crashes = try_apart(path, vision.path, config, api_version, aborted)
            return dataclasses.replace(vision, refuses_narrow=crashes)
        except LoadAborted:
            raise
        except BackendError as error:
            if vision.asked:
                raise
            problem = error
    try_apart(path, None, config, api_version, aborted)
    if problem is not None:
        warn_of_unused(problem)
    return None


def try_apart(
    path: str, vision: str | None, config: ModelConfig, api_version: str, aborted: Callable[[], bool]
) -> bool:
    """Open a file in a separate process, unless it has passed before.

    Args:
        path: The GGUF file.
        vision: The vision part to open with it.
        config: The options of the model.
        api_version: The version of llama-cpp-python.
        aborted: Whether to stop.

    Returns:
        Whether llama.cpp crashes on narrow pictures.

    Raises:
        BackendError: It cannot be run; the message quotes llama.cpp.
        LoadAborted: `aborted()` became true.
    """
    if not sys.executable or (_is_embedded(path) and vision in (None, tiny_mmproj())):
        return False
    finding = _finding(path, vision, config, api_version)
    if (known := findings.recall(finding)) in _VERDICTS:
        return _VERDICTS[known]
    options = {
        'flash_attention': config.flash_attention,
        'image_max_tokens': config.image_max_tokens,
        'vision': vision or NO_VISION,
    }
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                [sys.executable, '-m', _PROCESS, path, json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                env=_environment(),
                start_new_session=True,  # Ctrl-C reaches only this process, which then ends the child
            )
        except OSError as error:
            _log.warning('%s is opened without a trial in a separate process: %s', path, error)
            return False
        code = _wait(child, path, aborted)
        out.seek(0)
        errors.seek(0)
        said = out.read().decode('utf-8', 'replace').strip()
        shouted = errors.read().decode('utf-8', 'replace')
    if said in _VERDICTS:
        crashes = _VERDICTS[said]
        if crashes and (code is None or -code not in _CRASHES):
            return False  # no time or memory was left for narrow pictures: the next start tries again
        findings.remember(finding, said)
        return crashes
    if code is None:
        raise BackendError(
            f'{path} cannot be run: llama.cpp does not come to an end when it opens the file; download it'
            ' again'
        )
    if code == 0 and said:
        raise BackendError(said)
    name = f'{path} with vision={vision!r}' if vision else path
    raise BackendError(
        f'{name} cannot be run: llama.cpp ends the process that opens it ({_last_words(shouted, code)}). The'
        ' file is damaged, or made for another version of llama.cpp: download it again, or update'
        ' llama-cpp-python'
    )


def _wait(child: subprocess.Popen, path: str, aborted: Callable[[], bool]) -> int | None:
    """Return the exit code of the process, None if it took too long and was ended."""
    left = _PATIENCE + sum(map(os.path.getsize, parts_of(path))) / _SLOW_DISK
    try:
        while True:
            try:
                return child.wait(0.05)
            except subprocess.TimeoutExpired:
                left -= 0.05
            if aborted():
                raise LoadAborted(f'loading {path} was stopped')
            if left < 0:
                return None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _last_words(shouted: str, code: int) -> str:
    lines = [line for line in shouted.splitlines() if _REASON.search(line)]
    if lines:
        return printable(lines[-1].rsplit('/', 1)[-1])
    return signal.Signals(-code).name if code < 0 else f'exit code {code}'


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(path for path in sys.path if path),
        'CUDA_VISIBLE_DEVICES': '',  # the trial runs on the CPU
        'GGML_NO_BACKTRACE': '1',  # a backtrace would start a debugger
    }


def _is_embedded(path: str) -> bool:
    try:
        return os.path.samefile(path, embedded_model())
    except (ImportError, OSError):
        return False


def _finding(path: str, vision: str | None, config: ModelConfig, api_version: str) -> str:
    """The name under which the verdict of a trial is kept."""
    facts: list[object] = ['trial', _VERSION, api_version, config.flash_attention is FlashAttention.ON]
    facts += [config.image_max_tokens] if vision else []
    return findings.name_of([*parts_of(path), *([vision] if vision else [])], *facts)
