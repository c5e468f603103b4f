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


def no_vision(name: str, is_default: bool) -> ValueError:
    """Return the error for a model that cannot see.

    Args:
        name: The model's name.
        is_default: It is the embedded default, for which only Pillow is missing.
    """
    return ValueError(
        f'{name} has no vision: open it with vision= an mmproj file or a LLaVA-form checkpoint made for it,'
        ' or use a vision model'
        + (', or run  pip install pillow  for the small vision part that comes with it' if is_default else '')
    )
