"""The interface of NanoLLM, with its names, arguments and results, on this package's engine.

Change `from nano_llm import ...` to `from ros2_nanochat.compat import ...`, and likewise for `nano_llm.utils`
and `nano_llm.plugins`. docs/library.md lists what is accepted, ignored and not offered. New programs should
use `ros2_nanochat` itself.
"""

from ros2_nanochat import __version__
from ros2_nanochat.compat.attributes import missing
from ros2_nanochat.compat.functions import BotFunctions, bot_function
from ros2_nanochat.compat.history import ChatHistory
from ros2_nanochat.compat.message import ChatMessage
from ros2_nanochat.compat.model import NanoLLM
from ros2_nanochat.compat.stream import StreamingResponse
from ros2_nanochat.compat.templates import ChatTemplate, ChatTemplates, StopTokens, remove_special_tokens
from ros2_nanochat.engine.kv_cache import KVCache

__all__ = [
    'BotFunctions',
    'ChatHistory',
    'ChatMessage',
    'ChatTemplate',
    'ChatTemplates',
    'KVCache',
    'NanoLLM',
    'StopTokens',
    'StreamingResponse',
    '__version__',
    'bot_function',
    'remove_special_tokens',
]

_ELSEWHERE = {
    **dict.fromkeys(
        ('Agent', 'Pipeline', 'Plugin'), 'robots use the ROS 2 node in place of agents and plugins'
    ),
    **dict.fromkeys(('load_dataset', 'convert_dataset', 'DatasetTypes'), 'data sets are not offered'),
}


def __getattr__(name: str):
    if name in _ELSEWHERE:
        raise missing(__name__, name, _ELSEWHERE[name])
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
