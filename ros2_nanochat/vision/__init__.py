"""Pictures for language models: opening them safely, encoding them, putting them into prompts."""

from __future__ import annotations

import importlib
import importlib.util

from ros2_nanochat.errors import require


def open_vision(path, info, backend, config):
    """The encoder of an opened model, or None; see `open.open_vision`. Without Pillow there is none,
    unless one is asked for by name.
    """
    if not path and importlib.util.find_spec('PIL') is None:
        return None
    require('PIL', 'vision')
    return importlib.import_module('ros2_nanochat.vision.open').open_vision(path, info, backend, config)
