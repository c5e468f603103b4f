"""The progress of a load in transformers, taken from the progress bars that it shows."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def report_progress(step: Callable[[float], None]):
    """Read the progress bar of this thread, and keep bars and reports of transformers off the terminal.

    Args:
        step: Called with the share that is done, 0 to 1.
    """
    thread = threading.get_ident()

    class Bar:
        """Looks like a progress bar to transformers."""

        def __init__(self, items=None, total=None, **_):
            self._items = items
            self.total = total or (len(items) if hasattr(items, '__len__') else 0)
            self.n = 0

        def __iter__(self):
            for item in self._items:
                yield item
                self.update()

        def update(self, n: int = 1) -> None:
            self.n += n
            if self.total:
                step(min(self.n / self.total, 1.0))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def __getattr__(self, name):
            return lambda *args, **options: None

    def hook(factory, args, options):
        return Bar(*args, **options) if threading.get_ident() == thread else factory(*args, **options)

    from transformers import modeling_gguf_pytorch_utils as of_gguf  # creates its bar without the hook

    makes_bar = getattr(of_gguf, 'tqdm', None)
    previous = transformers_logging.set_tqdm_hook(hook)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(
        max(verbosity, transformers_logging.ERROR)
    )  # its tables about a checkpoint: our error is one line
    of_gguf.tqdm = lambda *args, **options: hook(makes_bar, args, options)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)
        transformers_logging.set_verbosity(verbosity)
        of_gguf.tqdm = makes_bar
