"""A model on a server, beside a bare HTTP client of the same server in the same run: time to the first piece,
tokens per second, and CPU per token.

Run with `python -m benchmarks.bench_remote [--quick]`. Needs xllamacpp. CPU is measured on a scripted server
that sends tokens as fast as it can.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import threading
import time
from pathlib import Path

import httpx2

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test'))
from llama_server import LlamaServer
from scripted_server import ScriptedServer

from benchmarks.common import machine
from ros2_nanochat import ChatHistory, NanoLLM

TOKENS = 64
CLIENT = httpx2.Client(timeout=120, trust_env=False, limits=httpx2.Limits(max_connections=None))


def bare(url: str, body: dict) -> tuple[float, float, int]:
    """`(seconds to the first text, seconds in all, pieces)` of a stream that nothing is done with."""
    began, first, count = time.perf_counter(), None, 0
    with CLIENT.stream('POST', url, json=body) as response:
        for line in response.iter_lines():
            if line.startswith('data: {'):
                event = json.loads(line[6:])
                choice = (event.get('choices') or [{}])[0]
                if event.get('content') or (choice.get('delta') or {}).get('content'):
                    count += 1
                    first = first or time.perf_counter() - began
    return first or 0.0, time.perf_counter() - began, count


def ours(model: NanoLLM, prompt, tokens: int) -> tuple[float, float, int]:
    """The same through nanochat."""
    began, first, count = time.perf_counter(), None, 0
    for piece in model.generate(prompt, max_new_tokens=tokens):
        count += bool(piece)
        first = first or time.perf_counter() - began
    return first or 0.0, time.perf_counter() - began, count


def at_once(function, count: int) -> list[tuple[float, float, int]]:
    """Run a function in several threads."""
    results: list = []
    threads = [threading.Thread(target=lambda: results.append(function())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def speed(conversations: int, repeats: int) -> None:
    """Time to the first piece and tokens per second, as shares of the bare client's."""
    with LlamaServer(slots=conversations, context=512) as server:
        with NanoLLM.from_pretrained(server.url, api='openai') as model:
            history = ChatHistory(model)
            history.append('user', 'Count from one to a hundred.')
            prompt = history.embed_chat()[0]
            body = {
                'prompt': [int(i) for i in prompt.entries],
                'n_predict': TOKENS,
                'temperature': 0,
                'stream': True,
                'return_tokens': True,
            }
            at_once(lambda: bare(f'{server.root}/completion', body), conversations)  # the prompt is known
            rates, firsts = [], []
            for _ in range(repeats):
                plain = at_once(lambda: bare(f'{server.root}/completion', body), conversations)
                through = at_once(lambda: ours(model, prompt, TOKENS), conversations)
                rate = [sum(n for _, _, n in runs) / max(s for _, s, _ in runs) for runs in (plain, through)]
                first = [statistics.median(first for first, _, _ in runs) for runs in (plain, through)]
                rates.append(rate[1] / rate[0])
                firsts.append(first[0] / first[1])
            print(
                f'{conversations:3} conversations: tokens/s {statistics.median(rates):.3f} of the bare'
                f' client, first piece {statistics.median(firsts):.3f} (bare / ours; 1 is equal)'
            )


def _serve(pipe, words: int) -> None:
    with ScriptedServer(words=words) as server:
        pipe.send(server.url)
        pipe.recv()


def cpu(words: int) -> None:
    """CPU time of this process per token, and of a bare client."""
    here, there = multiprocessing.get_context('spawn').Pipe()
    process = multiprocessing.get_context('spawn').Process(target=_serve, args=(there, words))
    process.start()
    url = here.recv()
    with NanoLLM.from_pretrained(url, api='openai') as model:
        history = ChatHistory(model)
        history.append('user', 'go')
        prompt = history.embed_chat()[0]
        body = {'model': 'scripted', 'stream': True, 'max_tokens': words}
        body['messages'] = [{'role': 'user', 'content': 'go'}]
        spent = []
        for run in (
            lambda: bare(f'{url}/chat/completions', body),
            lambda: ours(model, prompt, words),
        ):
            began = time.process_time()
            count = run()[2]
            spent.append(1e3 * (time.process_time() - began) / max(1, count))
        print(f'CPU per token: {spent[1]:.3f} ms, of a bare client {spent[0]:.3f} ms')
    here.send(None)
    process.join(10)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true')
    options = parser.parse_args()
    print(machine())
    for conversations in (1, 4) if options.quick else (1, 16):
        speed(conversations, 3 if options.quick else 7)
    cpu(2000 if options.quick else 20000)


if __name__ == '__main__':
    main()
