"""Which class runs which api. A backend's module and its runtime are imported only when needed."""

from __future__ import annotations

import importlib

from ros2_nanochat.backends.base import Backend

_BACKENDS = {
    'gguf': ('gguf.backend', 'GGUFBackend'),
    'mlc': ('mlc.backend', 'MLCBackend'),
    'hf': ('hf.backend', 'HFBackend'),
    'awq': ('hf.backend', 'HFBackend'),
    'fake': ('fake', 'FakeBackend'),
}


def backend_class(api: str) -> type[Backend]:
    """Return the class of an api, such as `gguf`.

    Raises:
        MissingDependency: A package that it needs is not installed.
    """
    module, name = _BACKENDS[api]
    return getattr(importlib.import_module(f'ros2_nanochat.backends.{module}'), name)
