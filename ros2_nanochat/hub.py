"""Finds a model: the embedded default, a local path, or a repository of the Hugging Face hub. Infers the api
from the files.

Knows files and names, not how a model is run.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import threading
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, shorten, shown
from ros2_nanochat.hub_transfer import HubTransfer, Unreachable
from ros2_nanochat.locate import (
    MLC_CONFIG,
    NO_VISION,
    agree_on_api,
    choose_gguf,
    choose_mmproj,
    embedded_model,
    locate,
)

_log = logging.getLogger(__name__)
_NAME = re.compile(r'(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<file>.+))?')
_HOSTS = ('huggingface.co', 'hf.co')
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
    """A model's name on the hub.

    Attributes:
        repository: `owner/name`.
        revision: A branch, tag or commit; None for the default branch.
        file: The name or pattern of one file in the repository; empty for all.
    """

    repository: str
    revision: str | None = None
    file: str = ''


def hub_name(model: str) -> HubName | None:
    """Parse a model's name as a name on the hub.

    Args:
        model: `owner/name`, `owner/name@revision`, either with `:file`, or the address of a page of the hub:
            of a repository, or of a folder or file in it.

    Returns:
        The name, or None if the text cannot be one.

    Raises:
        ValueError: It is an address, but not of a model on the hub.
    """
    if match := _NAME.fullmatch(model):
        host = match['repository'].partition('/')[0]
        if host not in _hosts():
            return HubName(match['repository'], match['revision'], match['file'] or '')
    scheme, separator, rest = model.rpartition('://')
    host, _, path = rest.partition('/')
    if separator and '@' in host:
        raise ValueError('model is an address with a name or password in it: pass your token in $HF_TOKEN')
    if scheme.lower() == 'hf':
        return hub_name(rest)
    if host.lower().removeprefix('www.') not in _hosts():
        if separator:
            raise ValueError(
                f'model={shorten(model)!r} is no page of the hub: give owner/name, a path, or an address'
                f' of {_HOSTS[0]}; for a server of models add api=openai'
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
        file = ''  # the page of one part: the whole model is opened
    return HubName(repository, '/'.join(below[:size]), file)


def _hosts() -> tuple[str, ...]:
    """Hosts whose addresses are pages of the hub, including the mirror that $HF_ENDPOINT names."""
    mirror = urlsplit(os.environ.get('HF_ENDPOINT', '')).netloc
    return (*_HOSTS, mirror) if mirror else _HOSTS


def resolve(config: ModelConfig, stop: threading.Event | None = None) -> tuple[str, str]:
    """Find the model that a config names, and download it if it is a hub repository.

    Args:
        config: The config.
        stop: Set it to end the download.

    Returns:
        `(local path, api)`.

    Raises:
        ValueError: There is no such model.
        BackendError: The model cannot be fetched.
    """
    if config.api in ('fake', 'openai'):
        return config.model or '', config.api
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
                f'model={shown(config.model)} does not exist: it is not a file or folder here, nor the'
                ' owner/name of a hub repository'
            )
        path = download(config, stop=stop)
    return locate(path, config)


def resolve_vision(config: ModelConfig, api: str, stop: threading.Event | None = None) -> ModelConfig:
    """Bring a vision part that is named on the hub; return the config with its local path.

    Args:
        config: The config.
        api: What runs the model.
        stop: Set it to end the download.

    Raises:
        ValueError: There is no such file.
        BackendError: It cannot be fetched.
    """
    vision = config.vision
    if api == 'fake' or not vision or vision in ('tiny', NO_VISION):
        return config
    path = os.path.expanduser(vision)
    if os.path.exists(path):
        return config
    name = None if os.path.isabs(path) or path.startswith('.') else hub_name(vision)
    if name is None or (vision.endswith('.gguf') and not name.file):
        raise ValueError(
            f'vision={shown(vision)} does not exist: it is not a file or folder here, nor owner/name or'
            ' owner/name:file.gguf on the hub'
        )
    part = dataclasses.replace(config, model=vision, api=None)
    fetched = download(part, mmproj=api == 'gguf', stop=stop)
    return dataclasses.replace(config, vision=fetched)


# --- the hub ---


def hub_token(config: ModelConfig) -> str | None:
    """Return the account token: the one in the config, else `$HUGGINGFACE_TOKEN` or `$HF_TOKEN`."""
    return config.api_token or os.environ.get('HUGGINGFACE_TOKEN') or os.environ.get('HF_TOKEN') or None


def download(config: ModelConfig, mmproj: bool = False, stop: threading.Event | None = None) -> str:
    """Fetch a model from the hub into the hub's cache.

    If the hub cannot be reached, the cached copy is used and a warning is logged.

    Args:
        config: Its `model` is a name or an address of the hub (see `hub_name`).
        mmproj: Fetch only the vision part of a GGUF model, if the repository has one.
        stop: Set it to end the download.

    Returns:
        The local path.

    Raises:
        ValueError: The name is not valid, or the repository holds no model that can be opened.
        BackendError: The repository cannot be fetched.
    """
    name = hub_name(config.model or '') or HubName(config.model or '')
    repository = name.repository
    stopped = stop.is_set if stop else None
    with HubTransfer(repository, name.revision, hub_token(config), stopped) as hub:
        try:
            chosen, patterns = _needed(hub.files(), name.file, config, repository, mmproj)
            folder = hub.fetch(patterns)
        except Unreachable as error:
            return _cached(name, config, str(error), mmproj)
    return os.path.join(folder, chosen) if chosen else folder


def _needed(
    files: list[str], wanted: str, config: ModelConfig, repository: str, mmproj: bool
) -> tuple[str | None, dict]:
    """`(file to open, or None for the folder; patterns of the files to fetch)` of a repository with these
    files.
    """
    if mmproj and (chosen := choose_mmproj(files, repository, wanted)):
        return chosen, {'allow_patterns': [_exactly(chosen)]}
    ggufs = sorted(name for name in files if name.endswith('.gguf') and 'mmproj' not in name.lower())
    if (
        wanted
        or config.api == 'gguf'
        or (ggufs and config.api is None and not any(name.endswith('.safetensors') for name in files))
    ):
        chosen = choose_gguf(ggufs, wanted or config.quantization, repository)
        patterns = [re.sub(r'-00001-of-', '-*-of-', _exactly(chosen))]
        if config.vision is None:
            beside = [name for name in files if os.path.dirname(name) == os.path.dirname(chosen)]
            if vision := choose_mmproj(beside, chosen) or choose_mmproj(files, chosen):
                patterns.append(_exactly(vision))
        return chosen, {'allow_patterns': patterns}
    if MLC_CONFIG in files:
        return None, {}
    if not any(name.endswith('.safetensors') for name in files):
        raise ValueError(
            f'{repository} holds no .gguf file, no MLC model and no weights in .safetensors (pickled ones are'
            ' never opened)'
        )
    return None, {'ignore_patterns': _NEVER_NEEDED}


def _exactly(name: str) -> str:
    """The pattern of one file."""
    return re.sub(r'([*?[])', r'[\1]', name)


def _cached(name: HubName, config: ModelConfig, reason: str, mmproj: bool) -> str:
    import huggingface_hub

    repository, kept = name.repository, {'revision': name.revision, 'local_files_only': True}
    try:
        folder = huggingface_hub.snapshot_download(repository, allow_patterns=[], **kept)
        files = [
            os.path.relpath(os.path.join(root, file), folder)
            for root, _, found in os.walk(folder)
            for file in found
        ]
        chosen, patterns = _needed(files, name.file, config, repository, mmproj)
        huggingface_hub.snapshot_download(repository, **kept, **patterns)  # fails if a part is missing
    except Exception as error:
        raise BackendError(
            f'{repository} cannot be fetched: {reason}, and no whole copy of it is cached'
        ) from error
    _log.warning('%s: the cached copy of %s is used', reason, repository)
    return os.path.join(folder, chosen) if chosen else folder
