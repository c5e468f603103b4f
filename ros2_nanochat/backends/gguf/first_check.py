"""Checks the logits of a GGUF file when it is opened first on this machine.

A file that passed is remembered (findings.py) with all that its logits depend on: the file, the libraries of
llama.cpp, the kind of processor and the options of its context. On a GPU they also depend on a driver that is
not known here, so there the file is checked at each start.
"""

from __future__ import annotations

import glob
import os
from typing import Any

from ros2_nanochat.backends.base import Backend
from ros2_nanochat.backends.check import VERSION, check_model
from ros2_nanochat.backends.gguf import findings
from ros2_nanochat.backends.gguf.header import parts_of
from ros2_nanochat.processor import processor_name

_PASSED = 'passed'


class FirstCheck:
    """The check of a file. Create this before the file is loaded, so that it belongs to what is loaded.

    Args:
        path: The GGUF file.
        api: `llama_cpp.llama_cpp`.
        version: The version of llama-cpp-python.
    """

    def __init__(self, path: str, api: Any, version: str):
        self._file: str | None
        try:
            files = [*parts_of(path), *_libraries(api)]
            self._file = findings.name_of(files, version, processor_name())
        except (AttributeError, OSError):  # a build whose library is not known: what it computes may change
            self._file = None

    def run(self, backend: Backend, always: bool = False) -> None:
        """Check an open model, unless it has passed before.

        Args:
            backend: The model.
            always: Check it in any case, and do not remember that it passed.

        Raises:
            BackendError: The model's logits are wrong. The message is one line.
        """
        if always or self._file is None or backend.config.gpu_layers:
            check_model(backend)
            return
        finding = findings.name_of(
            (),
            'check',
            VERSION,
            self._file,
            backend.config.flash_attention,
            backend.info.context_length,
            backend.max_sequences,
            backend.max_batch_tokens,
            backend.max_chunk_tokens,
        )
        if findings.recall(finding) != _PASSED and check_model(backend):
            findings.remember(finding, _PASSED)


def _libraries(api: Any) -> list[str]:
    """The libraries that compute: llama.cpp's own, and those of ggml beside it."""
    library = api._lib._name
    folder = glob.escape(os.path.dirname(library))
    return [library, *sorted(glob.glob(os.path.join(folder, 'libggml*')))]
