"""Imports the program of a node without what takes time and is of no use to it."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

# The package `rosidl_generator_py` holds a function that each message needs, and the generator of the
# messages' code with a parser of IDL. It does without the generator if that cannot be imported.
_PACKAGE = 'rosidl_generator_py'
_GENERATOR = f'{_PACKAGE}.generate_py_impl'


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import in this block without ROS's generator of code (0.05 s), which can still be imported as
    `rosidl_generator_py.generate_py_impl`, and without garbage collections (0.04 s): modules are no garbage.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        _import_without_generator()
        yield
    finally:
        if collects:
            gc.enable()


def _import_without_generator() -> None:
    if _PACKAGE in sys.modules:
        return
    sys.modules[_GENERATOR] = None  # type: ignore[assignment]  # an import raises ModuleNotFoundError
    try:
        with contextlib.suppress(ImportError):
            __import__(_PACKAGE)
    finally:
        del sys.modules[_GENERATOR]
