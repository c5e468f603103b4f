"""Every option, declared once: its type, default, range, purpose, and where it can be set.

The declarations are frozen dataclasses. A wrong value raises a `ValueError` that names the option, the value
and what is allowed. This package knows nothing of backends, templates or ROS.
"""

from ros2_nanochat.config.declaration import (
    Option,
    Options,
    names,
    option,
    options_of,
    program_defaults,
    reject_unknown,
    whole,
)
from ros2_nanochat.config.generation import GenerationConfig
from ros2_nanochat.config.model import (
    APIS,
    DEFAULT_CONTEXT,
    MAX_THREADS,
    EngineConfig,
    FlashAttention,
    ModelConfig,
)
from ros2_nanochat.config.robot import ImageMode, ImageTransport, NodeConfig, OnNewQuery, RobotOptions
from ros2_nanochat.config.web import WebConfig

__all__ = [
    'APIS',
    'DEFAULT_CONTEXT',
    'MAX_THREADS',
    'EngineConfig',
    'FlashAttention',
    'GenerationConfig',
    'ImageMode',
    'ImageTransport',
    'ModelConfig',
    'NodeConfig',
    'OnNewQuery',
    'Option',
    'Options',
    'RobotOptions',
    'WebConfig',
    'names',
    'option',
    'options_of',
    'program_defaults',
    'reject_unknown',
    'whole',
]
