"""Pictures for language models: opens them safely, encodes them, and puts them into prompts."""

from __future__ import annotations

import importlib
import importlib.util

from ros2_nanochat.errors import require


def open_vision(path, info, backend, config):
    """Return the vision encoder of an opened model, or None; see `open.open_vision`.

    Without Pillow the result is None, unless you name an encoder.
    """
    if not path and importlib.util.find_spec('PIL') is None:
        return None
    require('PIL', 'vision')
    return importlib.import_module('ros2_nanochat.vision.open').open_vision(path, info, backend, config)
