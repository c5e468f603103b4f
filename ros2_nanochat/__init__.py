"""Chat with language and vision models on robots: the library under the ROS 2 package `nanochat`.

The public names are imported on first use, so `import ros2_nanochat` is fast and needs neither ROS nor a
model runtime.
"""

import importlib

_HOMES = {
    'NanoLLM': 'nano_llm',
    'ChatHistory': 'chat.history',
    'ChatMessage': 'chat.message',
    'ChatTemplate': 'chat.template.chat_template',
    'GenerationConfig': 'config',
    'KVCache': 'engine.kv_cache',
    'ModelConfig': 'config',
    'StreamingResponse': 'engine.stream',
    'Tool': 'answer.tool',
}

__all__ = [*_HOMES, '__version__']  # noqa: PLE0604 (the keys are strings)
__version__ = '0.1.0'


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__():
    return sorted(__all__)
