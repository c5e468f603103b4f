"""A progress bar for loading a model in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class LoadingBar:
    """Shows the progress of a load, if the caller does not and standard error is a terminal.

    Args:
        path: The path of the model, whose last part is shown.
        progress: The caller's own callback, used in place of a bar.
    """

    def __init__(self, path: str, progress: Callable[[float], None] | None):
        self._path, self._progress = path, progress
        self._bar: Any = None

    def __enter__(self) -> Callable[[float], None]:
        if self._progress:
            return self._progress
        if not sys.stderr.isatty():
            return lambda share: None
        from tqdm import tqdm

        bar = self._bar = tqdm(
            total=100,
            desc=f'loading {self._path.rpartition("/")[2]}',
            unit='%',
            leave=False,
            bar_format='{desc} {bar} {percentage:3.0f}%',
        )
        return lambda share: bar.update(100 * share - bar.n)

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()
