"""Talks to the Hugging Face hub in a separate process: nothing within one process can end a request that
hangs, and Ctrl-C would wait for the threads of a download.

Each line on standard input is a request in JSON, `{"do": "list" or "fetch", ...}`. Each has one line as its
answer: `{"result"}`, or the name of an exception with its text.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from ros2_nanochat.errors import BackendError, LoadAborted, one_line, require
from ros2_nanochat.program import die_with_parent

_LOOK = 0.05  # seconds between two looks at whether to stop
_PATIENCE = 10.0  # seconds for the hub's first answer: an offline robot soon falls back to its cache


class Unreachable(Exception):
    """The hub gave nothing; a cached copy may help. The text is the reason."""


_FAILURES = (ValueError, BackendError, Unreachable)


class HubTransfer:
    """One repository of the hub, asked and fetched by a process that ends with this one, with the `with`
    block, or when it is stopped. What has arrived until then is used by the next download.

    Args:
        repository: `owner/name`.
        revision: A branch, tag or commit; None for the default branch.
        token: The account token.
        stopped: Asked again and again; what runs ends when it returns True.
    """

    def __init__(
        self,
        repository: str,
        revision: str | None = None,
        token: str | None = None,
        stopped: Callable[[], bool] | None = None,
    ):
        self._source = {'repository': repository, 'revision': revision, 'token': token}
        self._stopped = stopped or (lambda: False)
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> HubTransfer:
        require('huggingface_hub', 'gguf')
        return self

    def __exit__(self, *_) -> None:
        child = self._child
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def files(self) -> list[str]:
        """Return the names of the repository's files.

        Raises:
            Unreachable: The hub gave nothing.
            LoadAborted: It was stopped.
            ValueError: The name is not valid.
            BackendError: The hub refuses it.
        """
        return self._ask({'do': 'list'}, time.monotonic() + 2 * _PATIENCE)

    def fetch(self, patterns: dict[str, list[str]]) -> str:
        """Download files into the hub's cache, and return the folder. Raises what `files` raises.

        Args:
            patterns: `allow_patterns` or `ignore_patterns` of `snapshot_download`.
        """
        return self._ask({'do': 'fetch', 'patterns': patterns})

    def _ask(self, request: dict[str, Any], until: float = float('inf')) -> Any:
        request = {**self._source, **request}
        if not sys.executable:  # embedded in another program: there is nothing to start
            return _answer(request)
        child = self._child = self._child or _start()
        assert child.stdin is not None and child.stdout is not None  # they are pipes
        try:
            child.stdin.write(json.dumps(request).encode() + b'\n')
            child.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which the answer shows
        said = b''
        while not said.endswith(b'\n'):
            if self._stopped():
                raise LoadAborted(f'the download of {self._source["repository"]} was stopped')
            if time.monotonic() > until:
                raise Unreachable('the hub does not answer')
            if select.select([child.stdout], [], [], _LOOK)[0]:
                piece = os.read(child.stdout.fileno(), 1 << 16)
                if not piece:
                    raise Unreachable(f'the process that downloads ended with {child.wait()}')
                said += piece
        answer = json.loads(said)
        for kind in _FAILURES:
            if kind.__name__ in answer:
                raise kind(answer[kind.__name__])
        return answer['result']


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, '-m', 'ros2_nanochat.hub_transfer', str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,  # Ctrl-C reaches only this process, which then ends the child
    )


# --- in the other process ---


def _answer(request: dict[str, Any]) -> Any:
    do = request.pop('do')
    try:
        return _list(**request) if do == 'list' else _fetch(**request)
    except Exception as error:  # requests and httpx share no base class for an unreachable host
        raise Unreachable(reason(error, request['repository'], request['token'])) from error


def _list(repository: str, revision: str | None, token: str | None) -> list[str]:
    import huggingface_hub

    info = huggingface_hub.HfApi(token=token).model_info(repository, revision=revision, timeout=_PATIENCE)
    return [file.rfilename for file in info.siblings or ()]


def _fetch(repository: str, revision: str | None, token: str | None, patterns: dict[str, list[str]]) -> str:
    import huggingface_hub

    return huggingface_hub.snapshot_download(repository, revision=revision, token=token, **patterns)


def reason(error: Exception, repository: str, token: str | None) -> str:
    """Return why the hub gave nothing, if a cached copy may help.

    Raises:
        ValueError: The name is not valid.
        BackendError: The hub refuses the repository; a cached copy does not help.
    """
    from huggingface_hub import errors

    if isinstance(error, errors.HFValidationError):
        raise ValueError(f'model={repository!r} is not valid: {one_line(error)}') from error
    if isinstance(error, errors.GatedRepoError):
        raise BackendError(
            f'{repository} is gated: accept its terms on its page at the hub, and give your token in'
            ' $HF_TOKEN'
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        said = 'with this token' if token else 'without a token (set $HF_TOKEN for a private or gated one)'
        raise BackendError(f'the hub has no repository {repository!r}, or does not show it {said}') from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise BackendError(f'{repository} has no such revision: {one_line(error)}') from error
    if isinstance(error, errors.OfflineModeIsEnabled):
        return 'the offline mode is on'
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403):
            raise BackendError(
                f'the hub refused the token for {repository} (HTTP {status}): check api_token,'
                ' $HUGGINGFACE_TOKEN or $HF_TOKEN'
            ) from error
        return f'the hub answered HTTP {status}'
    return f'the hub cannot be reached, or the download broke off ({type(error).__name__}: {one_line(error)})'


def main() -> None:
    """Answer each line of standard input."""
    die_with_parent()
    if os.getppid() != int(sys.argv[1]):
        return  # it ended before we asked the kernel
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # nothing else reaches the answers
    for line in sys.stdin:
        try:
            answer = {'result': _answer(json.loads(line))}
        except _FAILURES as error:
            kind = next(kind for kind in _FAILURES if isinstance(error, kind))
            answer = {kind.__name__: str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()
