"""What several modules here share: dictionaries with attributes, arrays as NumPy or torch has them, and the
warning about an option that has no effect.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

_log = logging.getLogger('ros2_nanochat.compat')


class AttributeDict(dict):
    """A dictionary whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f'there is no {name!r}; there is {", ".join(map(str, self))}') from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def to_tensor(array: np.ndarray, return_tensors: str = 'np', dtype: Any = None):
    """The array as NumPy's (`np`) or torch's (`pt`). dtype: of either library."""
    if return_tensors not in ('np', 'tvm', 'pt'):  # NanoLLM gave an array for the first two
        raise ValueError(f'return_tensors={str(return_tensors)[:200]!r} is not valid: np or pt')
    if dtype is not None:
        array = array.astype(str(dtype).removeprefix('torch.') if 'torch' in str(dtype) else dtype)
    if return_tensors != 'pt':
        return array
    return importlib.import_module('torch').from_numpy(np.ascontiguousarray(array))


def warn_ignored(where: str, names: Iterable[str], reason: str = 'it has no effect') -> None:
    """Log which options of a call are accepted without effect."""
    for name in names:
        _log.warning('%s ignores %s: %s', where, str(name)[:200], reason)
