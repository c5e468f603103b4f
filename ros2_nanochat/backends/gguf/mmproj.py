"""Finds the mmproj file of a GGUF model (its vision part, in llama.cpp's form) and reads from its head what
it is and what memory it takes.
"""

from __future__ import annotations

import logging
import math
import os
import re
from dataclasses import dataclass

from ros2_nanochat.backends.gguf.header import check_gguf, read_head, read_metadata
from ros2_nanochat.backends.gguf.process import LogLines
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, printable
from ros2_nanochat.locate import NO_VISION, is_mmproj, mmproj_in, mmproj_near, tiny_mmproj

_log = logging.getLogger(__name__)
_KEY = 'clip.vision.'
_WIDTHS = re.compile(r'text model \(n_embd = (\d+)\) and mmproj \(n_embd = (\d+)\)')
_OF_LAYERS = ('attention.head_count', 'block_count')  # 0 without an encoder (Gemma 4 Unified)
_SIZES = ('image_size', 'patch_size', 'embedding_length', *_OF_LAYERS)
_UNKNOWN_TOKENS = 46 * 46  # for which libmtmd reserves memory if a model takes any size


@dataclass(frozen=True)
class Mmproj:
    """The vision part of a model.

    Attributes:
        path: The file.
        asked: The user named it. Otherwise a fault in it costs the vision, not the model.
        late: It is small, and loaded with the first picture.
        refuses_narrow: Narrow pictures are refused, because llama.cpp crashes on them.
    """

    path: str
    asked: bool
    late: bool = False
    refuses_narrow: bool = False


def find_mmproj(path: str, config: ModelConfig) -> Mmproj | None:
    """Return the vision part of the model at `path`: the one that `config.vision` names, the tiny one for the
    embedded default, or one that lies near the model; None if there is none, or it is not an mmproj.
    """
    if config.vision == NO_VISION:
        return None
    if config.vision:
        named = tiny_mmproj() if config.vision == 'tiny' else os.path.expanduser(config.vision)
        if named and os.path.isdir(named) and not os.path.exists(os.path.join(named, 'config.json')):
            named = mmproj_in(named, os.path.basename(path))
        return Mmproj(named, True) if named and is_mmproj(named) else None
    if not config.model:
        tiny = tiny_mmproj()
        return Mmproj(tiny, False, late=True) if tiny else None
    near = mmproj_near(path)
    return Mmproj(near, False) if near else None


def check_mmproj(path: str) -> None:
    """Check the head of an mmproj file before libmtmd reads it.

    Raises:
        BackendError: It is cut short, not an mmproj, without vision, or its figures make no sense.
    """
    check_gguf(path)
    head = read_head(path)
    metadata = head.metadata
    architecture = metadata.get('general.architecture')
    if architecture != 'clip':
        raise BackendError(
            f'vision={path!r} is not the vision part of a model (its architecture is'
            f' {printable(architecture)}): name the mmproj file of the model'
        )
    if not metadata.get('clip.has_vision_encoder'):
        raise BackendError(f'vision={path!r} holds no vision encoder: name the mmproj file of a vision model')
    has_layers = any(name.startswith('v.blk.') for name in head.tensors)
    for name in _SIZES:
        value = metadata.get(_KEY + name)
        least = int(name != 'image_size' and (has_layers or name not in _OF_LAYERS))
        if value is not None and (not isinstance(value, int) or value < least):
            raise BackendError(
                f'vision={path!r} is damaged: {_KEY}{name} is {printable(value, 60)}; download it again'
            )


def mmproj_memory(vision: Mmproj, config: ModelConfig) -> tuple[int, int]:
    """Return the bytes of the weights and of the compute buffers of a vision part; 0 for one that will not be
    opened because its head cannot be read.
    """
    try:
        weights, metadata = check_gguf(vision.path), read_metadata(vision.path)
    except BackendError:
        if vision.asked:
            raise
        return 0, 0

    def get(name: str, default: int) -> int:
        value = metadata.get(_KEY + name, default)
        return value if isinstance(value, int) and value > 0 else default

    width, patch = get('embedding_length', 0), get('patch_size', 14)
    merge = get('spatial_merge_size', 0)
    patches = math.ceil(get('image_size', 0) / patch) ** 2
    if merge:  # any size of picture
        patches = max(patches, merge**2 * (config.image_max_tokens or _UNKNOWN_TOKENS))
    row = 2 * get('feed_forward_length', 4 * width) + 12 * width + 3 * patch**2
    return weights, 4 * patches * row + (16 << 20)


def warn_of_unused(error: Exception) -> None:
    """Log that a vision part that lies beside a model cannot be used."""
    _log.warning('the model is opened without vision: %s (vision:=none opens it without a warning)', error)


def say_found(found: Mmproj) -> None:
    """Log which vision part was found."""
    if not found.asked and not found.late:
        _log.info('the vision part of the model is %s (vision:=none opens the model without it)', found.path)


def stretched_to(path: str) -> int:
    """Return the side of the square to which pictures are stretched first; 0: they are not stretched.

    The key is our own, for an encoder that was trained that way; libmtmd would add borders.
    """
    side = read_metadata(path).get('nanochat.stretch', 0)
    return side if isinstance(side, int) and 0 < side <= 4096 else 0


def cannot_open(path: str, log: LogLines) -> str:
    """Return what to say if libmtmd does not open a file."""
    reason = log.reason()
    if widths := _WIDTHS.search(' '.join(log.lines)):
        return (
            f'vision={path!r} was made for a language model with embeddings of {widths[2]}, and those of this'
            f' model are {widths[1]} wide: they do not belong together'
        )
    return (
        f'vision={path!r} cannot be opened: {reason}; take an mmproj file that fits the model, or update'
        ' llama-cpp-python'
    )
