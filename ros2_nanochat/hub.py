"""Finds a model: the embedded default, a path, or a repository of the Hugging Face hub; and tells from what
lies there which api runs it.

Knows files and names; nothing of how a model is run.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, one_line, require, shorten
from ros2_nanochat.locate import agree_on_api, choose_gguf, embedded_model, locate

_log = logging.getLogger(__name__)
_NAME = re.compile(r'(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>.+))?')
_HOSTS = ('huggingface.co', 'hf.co')
_PATIENCE = (
    10.0  # seconds for the hub's first answer: a robot out of reach of the net has its copy in the cache
)
_NEVER_NEEDED = [
    '*.bin',
    '*.pt',
    '*.pth',
    '*.h5',
    '*.msgpack',
    '*.onnx',
    '*.tflite',
    '*.ot',
    'original/*',
    'consolidated*',
    '*.gguf',
]


@dataclass(frozen=True)
class HubName:
    """A repository of the hub. revision: a branch, tag or commit; file: name or pattern of one file in it."""

    repository: str
    revision: str | None = None
    file: str = ''


def hub_name(model: str) -> HubName | None:
    """What a model's name means on the hub; None if it can be no name there.

    Args:
        model: `owner/name`, `owner/name@revision`, either with `:file`, or the address of a page of the hub:
            of a repository, of a folder or of a file in it.

    Raises:
        ValueError: It is the address of something else.
    """
    if match := _NAME.fullmatch(model):
        host = match['repository'].partition('/')[0]
        if host not in _hosts():
            return HubName(match['repository'], match['revision'], match['file'] or '')
    scheme, separator, rest = model.rpartition('://')
    host, _, path = rest.partition('/')
    if scheme.lower() == 'hf':
        return hub_name(rest)
    if host.lower().removeprefix('www.') not in _hosts():
        if separator:
            raise ValueError(
                f'model={shorten(model)!r} is no page of the hub: give owner/name, a path, or an address of'
                f' {_HOSTS[0]}'
            )
        return None
    parts = [unquote(part) for part in re.split('[?#]', path)[0].split('/') if part]
    if not separator and (name := _NAME.fullmatch('/'.join(parts))):
        return HubName(name['repository'], name['revision'], name['file'] or '')
    if len(parts) < 2 or parts[0] in ('datasets', 'spaces', 'collections', 'docs', 'blog', 'models'):
        raise ValueError(f'model={shorten(model)!r} is no page of a model: its address is {host}/owner/name')
    repository, kind, below = '/'.join(parts[:2]), parts[2:3], parts[3:]
    if not kind or kind[0] not in ('tree', 'blob', 'resolve', 'raw') or not below:
        return HubName(repository)
    size = 3 if below[0] == 'refs' and len(below) > 2 else 1  # refs/pr/1 is one revision
    file = '/'.join(below[size:])
    if kind[0] == 'tree':
        file = file and f'{file}/*'
    elif not file.endswith('.gguf'):
        file = ''  # the page of a part of the model: it is opened as a whole
    return HubName(repository, '/'.join(below[:size]), file)


def _hosts() -> tuple[str, ...]:
    """Hosts whose addresses are pages of the hub: a mirror that $HF_ENDPOINT names as well."""
    mirror = urlsplit(os.environ.get('HF_ENDPOINT', '')).netloc
    return (*_HOSTS, mirror) if mirror else _HOSTS


def resolve(config: ModelConfig) -> tuple[str, str]:
    """`(local path, api)` of the model that a config names; downloads where it names a repository of the hub.

    Raises ValueError where there is no such model, BackendError where it cannot be fetched.
    """
    if config.api == 'fake':
        return config.model or '', 'fake'
    if not config.model:
        return embedded_model(), agree_on_api(config, 'gguf')
    path = os.path.expanduser(config.model)
    if not os.path.exists(path):
        if (
            os.path.isabs(path)
            or path.startswith('.')
            or (name := hub_name(config.model)) is None
            or (path.endswith('.gguf') and not name.file)
        ):
            raise ValueError(
                f'model={config.model!r} does not exist: it is no file or folder here, nor the owner/name of'
                ' a hub repository'
            )
        path = download(config)
    return locate(path, config)


# --- the hub ---


def hub_token(config: ModelConfig) -> str | None:
    """The account token: as passed, else from `$HUGGINGFACE_TOKEN` or `$HF_TOKEN`."""
    return config.api_token or os.environ.get('HUGGINGFACE_TOKEN') or os.environ.get('HF_TOKEN') or None


def download(config: ModelConfig) -> str:
    """Fetch what a name or an address of the hub means (see `hub_name`) into its cache, and return the local
    path.

    Where the hub cannot be reached a cached copy is used, and that is said.
    """
    huggingface_hub = require('huggingface_hub', 'gguf')
    name = hub_name(config.model or '') or HubName(config.model or '')
    repository, wanted = name.repository, name.file
    token = hub_token(config)
    try:
        info = huggingface_hub.HfApi(token=token).model_info(
            repository, revision=name.revision, timeout=_PATIENCE
        )
    except Exception as error:  # requests and httpx have no common base for an unreachable host
        return _cached(name, config, _reason(error, repository, token))
    chosen, patterns = _needed([file.rfilename for file in info.siblings or ()], wanted, config, repository)
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=name.revision, token=token, **patterns
        )
    except Exception as error:
        return _cached(name, config, _reason(error, repository, token))
    return os.path.join(folder, chosen) if chosen else folder


def _reason(error: Exception, repository: str, token: str | None) -> str:
    """Why the hub gave nothing, where a cached copy may help; raises what it would not help with."""
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


def _needed(files: list[str], wanted: str, config: ModelConfig, repository: str) -> tuple[str | None, dict]:
    """`(the one file to open or None for the folder, patterns of what to fetch)` of a repository with these
    files.
    """
    ggufs = sorted(name for name in files if name.endswith('.gguf') and 'mmproj' not in name.lower())
    if (
        wanted
        or config.api == 'gguf'
        or (ggufs and config.api is None and not any(name.endswith('.safetensors') for name in files))
    ):
        chosen = choose_gguf(ggufs, wanted or config.quantization, repository)
        return chosen, {
            'allow_patterns': [re.sub(r'-00001-of-', '-*-of-', re.sub(r'([*?[])', r'[\1]', chosen))]
        }
    if 'mlc-chat-config.json' in files:
        return None, {}
    if not any(name.endswith('.safetensors') for name in files):
        raise ValueError(
            f'{repository} holds no .gguf file, no MLC model and no weights in .safetensors (pickled ones are'
            ' never opened)'
        )
    return None, {'ignore_patterns': _NEVER_NEEDED}


def _cached(name: HubName, config: ModelConfig, reason: str) -> str:
    import huggingface_hub

    repository, kept = name.repository, {'revision': name.revision, 'local_files_only': True}
    try:
        folder = huggingface_hub.snapshot_download(repository, allow_patterns=[], **kept)
        files = [
            os.path.relpath(os.path.join(root, file), folder)
            for root, _, found in os.walk(folder)
            for file in found
        ]
        chosen, patterns = _needed(files, name.file, config, repository)
        huggingface_hub.snapshot_download(repository, **kept, **patterns)  # fails if a part is missing
    except Exception as error:
        raise BackendError(
            f'{repository} cannot be fetched: {reason}, and no whole copy of it is cached'
        ) from error
    _log.warning('%s: the cached copy of %s is used', reason, repository)
    return os.path.join(folder, chosen) if chosen else folder
