"""Helpers of this package: dictionaries with attributes, arrays for NumPy or torch, and the warning about
options without effect.
"""

from __future__ import annotations

import dis
import importlib
import logging
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

_log = logging.getLogger('ros2_nanochat.compat')


class AttributeDict(dict):
    """A dictionary whose keys are also attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f'there is no {name!r}; there is {", ".join(map(str, self))}') from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


def missing(module: str, name: str, reason: str) -> ImportError | AttributeError:
    """Return what the `__getattr__` of a module raises for a name that it does not have. Call it from there.

    `from ... import` shows the reason of an ImportError only. But whoever asks with `hasattr`, as pickle and
    torch ask every module, expects an AttributeError.

    Args:
        module: The module's name.
        name: The name.
        reason: Why it is not there.
    """
    asking = sys._getframe(2)
    text = f'{module} has no {name}: {reason}'
    if dis.opname[asking.f_code.co_code[asking.f_lasti]] == 'IMPORT_FROM':
        return ImportError(text, name=module)
    return AttributeError(text)


def to_tensor(array: np.ndarray, return_tensors: str = 'np', dtype: Any = None):
    """Return an array for NumPy (`np`) or torch (`pt`).

    Args:
        array: The array.
        return_tensors: `np` or `pt`.
        dtype: Type of the result, of either library.

    Raises:
        ValueError: `return_tensors` is something else.
    """
    if return_tensors not in ('np', 'tvm', 'pt'):  # NanoLLM gave an array for the first two
        raise ValueError(f'return_tensors={str(return_tensors)[:200]!r} is not valid: np or pt')
    if dtype is not None:
        array = array.astype(str(dtype).removeprefix('torch.') if 'torch' in str(dtype) else dtype)
    if return_tensors != 'pt':
        return array
    return importlib.import_module('torch').from_numpy(np.ascontiguousarray(array))


def warn_ignored(where: str, names: Iterable[str], reason: str = 'it has no effect') -> None:
    """Log options of a call that are accepted without effect."""
    for name in names:
        _log.warning('%s ignores %s: %s', where, str(name)[:200], reason)
