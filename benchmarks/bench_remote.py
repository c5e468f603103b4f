"""A model on a server, beside a bare HTTP client of the same server in the same run: time to the first piece,
tokens per second, and CPU per token. With `--ros`, as a subscriber in another process than the node sees it.

Run with `python -m benchmarks.bench_remote [--quick] [--ros]`, for `--ros` in the built workspace. Needs
xllamacpp. CPU is measured on a scripted server that sends tokens as fast as it can.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
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


# --- over ROS ---


def bare_times(url: str, body: dict) -> list[float]:
    """When each piece of a stream came."""
    times = []
    with CLIENT.stream('POST', url, json=body) as response:
        for line in response.iter_lines():
            if line.startswith('data: {') and json.loads(line[6:]).get('content'):
                times.append(time.perf_counter())
    return times


def while_all_stream(began: float, times: list[list[float]]) -> tuple[float, float]:
    """`(tokens/s while all stream, median seconds to the first)`."""
    since, until = max(each[0] for each in times), min(each[-1] for each in times)
    rate = sum(since < at <= until for each in times for at in each) / (until - since)
    return rate, statistics.median(each[0] - began for each in times)


@contextlib.contextmanager
def robots(url: str, count: int, tokens: int):
    """A node with `count` robots whose model is on a server, and a function that asks all of them at once."""
    import rclpy
    from nanochat.srv import Reset
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String

    from benchmarks.bench_ros import Listener, chat_node

    names = [f'r{n}' for n in range(count)]
    rclpy.init()
    node, executor = rclpy.create_node('bench_remote'), SingleThreadedExecutor()
    executor.add_node(node)
    threading.Thread(target=executor.spin, daemon=True).start()
    options = {'max_new_tokens': tokens, 'image_mode': "'off'", 'max_context_len': 0}
    with chat_node(api='openai', model=url, robots=json.dumps(names), **options) as process:
        listener = Listener(node, [f'/{name}/nanochat/tokens' for name in names])
        askers = [node.create_publisher(String, f'/{name}/nanochat/query', 10) for name in names]
        resets = [node.create_client(Reset, f'/{name}/nanochat/reset') for name in names]

        def ask(text: str) -> tuple[float, list[list[float]]]:
            for reset in resets:
                if not reset.wait_for_service(60):
                    raise SystemExit('the node did not start')
            for done in [reset.call_async(Reset.Request()) for reset in resets]:
                while not done.done():
                    time.sleep(0.002)
            listener.start()
            began = time.perf_counter()
            for asker in askers:
                asker.publish(String(data=text))
            listener.wait()
            return began, listener.times

        time.sleep(2.0)  # discovery
        yield process, ask
    executor.shutdown()
    rclpy.shutdown()


def over_ros(conversations: int, repeats: int) -> None:
    """What a ROS subscriber sees, as shares of a bare client of the same server; both take turns."""
    question = 'Count from one to a hundred.'
    with LlamaServer(slots=conversations, context=512) as server:
        with NanoLLM.from_pretrained(server.url, api='openai') as model:
            history = ChatHistory(model)
            history.append('user', question)
            ids = [int(i) for i in history.embed_chat()[0].entries]
        body = {'prompt': ids, 'n_predict': TOKENS, 'temperature': 0, 'stream': True, 'return_tokens': True}
        url = f'{server.root}/completion'
        rates, firsts = [], []
        with robots(server.url, conversations, TOKENS) as (_, ask):
            ask(question)  # the prompt is known
            for _ in range(repeats):
                began = time.perf_counter()
                plain = while_all_stream(began, at_once(lambda: bare_times(url, body), conversations))
                heard = while_all_stream(*ask(question))
                rates.append(heard[0] / plain[0])
                firsts.append(plain[1] / heard[1])
                print(
                    f'    bare {plain[0]:.1f}/s {plain[1]:.3f} s, over ROS {heard[0]:.1f}/s {heard[1]:.3f} s'
                )
    print(
        f'{conversations:3} robots over ROS: tokens/s {statistics.median(rates):.3f} of the bare client,'
        f' first piece {statistics.median(firsts):.3f} (bare / ours; 1 is equal)'
    )


def node_cpu(words: int) -> None:
    """CPU time of the node per token that it streams to a subscriber."""
    here, there = multiprocessing.get_context('spawn').Pipe()
    server = multiprocessing.get_context('spawn').Process(target=_serve, args=(there, words))
    server.start()
    with robots(here.recv(), 1, words) as (process, ask):
        ask('go')
        before = _cpu_seconds(process.pid)
        times = ask('go')[1][0]
        print(f'CPU of the node per token: {1e3 * (_cpu_seconds(process.pid) - before) / len(times):.3f} ms')
    here.send(None)
    server.join(10)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--ros', action='store_true', help='only what a subscriber sees')
    options = parser.parse_args()
    print(machine())
    if options.ros:
        for conversations in (1, 4) if options.quick else (1, 16):
            over_ros(conversations, 3 if options.quick else 7)
        node_cpu(2000 if options.quick else 10000)
        return
    for conversations in (1, 4) if options.quick else (1, 16):
        speed(conversations, 3 if options.quick else 7)
    cpu(2000 if options.quick else 20000)


if __name__ == '__main__':
    main()
