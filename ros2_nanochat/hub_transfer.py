"""Downloads a repository of the Hugging Face hub, in a separate process if the caller may want to end that:
nothing within one process can end a request that hangs.

The request is JSON on standard input, `{"repository", "revision", "token", "patterns"}`; the answer is one
JSON object: `{"folder"}`, or the name of an exception with its text.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any

from ros2_nanochat.errors import BackendError, LoadAborted, one_line
from ros2_nanochat.program import die_with_parent

_LOOK = 0.05  # seconds between two looks at whether to stop


class Unreachable(Exception):
    """The hub gave nothing; a cached copy may help. The text is the reason."""


def fetch_repository(
    repository: str,
    revision: str | None,
    token: str | None,
    patterns: dict[str, list[str]],
    stop: threading.Event | None = None,
) -> str:
    """Download files of a repository into the hub's cache.

    Args:
        repository: `owner/name`.
        revision: A branch, tag or commit; None for the default branch.
        token: The account token.
        patterns: `allow_patterns` or `ignore_patterns` of `snapshot_download`.
        stop: Set it to end the download. What has arrived is used by the next one.

    Returns:
        The folder.

    Raises:
        Unreachable: The hub gave nothing.
        LoadAborted: `stop` was set.
        ValueError: The name is not valid.
        BackendError: The hub refuses it.
    """
    if stop is None or not sys.executable:
        return _fetch(repository, revision, token, patterns)
    request = {'repository': repository, 'revision': revision, 'token': token, 'patterns': patterns}
    child = subprocess.Popen(
        [sys.executable, '-m', 'ros2_nanochat.hub_transfer'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,  # Ctrl-C reaches only this process, which then ends the child
    )
    try:
        answer = _answer_of(child, json.dumps(request).encode(), stop)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if answer is None:
        raise LoadAborted(f'the download of {repository} was stopped')
    for kind in (ValueError, BackendError, Unreachable):
        if kind.__name__ in answer:
            raise kind(answer[kind.__name__])
    if 'folder' not in answer:
        raise Unreachable(f'the process that downloads ended with {child.returncode}')
    return answer['folder']


def _answer_of(child: subprocess.Popen, request: bytes, stop: threading.Event) -> dict[str, Any] | None:
    """Return the child's answer; None if it was stopped."""
    data: bytes | None = request
    while True:
        if stop.is_set():
            return None
        try:
            said, _ = child.communicate(data, timeout=_LOOK)
        except subprocess.TimeoutExpired:
            data = None  # it was passed, or will be by the next call
            continue
        try:
            return json.loads(said)
        except ValueError:
            return {}


def _fetch(repository: str, revision: str | None, token: str | None, patterns: dict) -> str:
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(repository, revision=revision, token=token, **patterns)
    except Exception as error:
        raise Unreachable(reason(error, repository, token)) from error


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
    """Do what standard input asks for, and print the answer."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # nothing else reaches the answer
    request = json.load(sys.stdin)
    try:
        answer = {'folder': _fetch(**request)}
    except (ValueError, BackendError, Unreachable) as error:
        kind = next(kind for kind in (ValueError, BackendError, Unreachable) if isinstance(error, kind))
        answer = {kind.__name__: str(error)}
    json.dump(answer, answers)
    answers.flush()


if __name__ == '__main__':
    main()
