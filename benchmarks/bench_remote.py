"""A model on a server, beside a bare HTTP client of the same server in the same run: time to the first piece,
tokens per second, and CPU per token. With `--ros`, as a subscriber in another process than the node sees it:
of llama.cpp's server, which computes on the same processor, and of one that sends words at a fixed pace and
leaves the processor to the clients. `--url` names a server that runs already, `--vllm` starts a vLLM with the
embedded model (in the environment that tools/vllm_env.sh makes): both tell what a subscriber sees of it. With
`--apart` servers use one half of the cores, and the node and all clients the other, which is closer to a
server on another machine.

Run with `python -m benchmarks.bench_remote [--quick] [--ros] [--url http://host:8000/v1] [--vllm] [--apart]`,
all but the first in the built workspace. Needs xllamacpp, but for `--url` and `--vllm`. A key is taken from
$OPENAI_API_KEY. CPU is measured on a scripted server that sends tokens as fast as it can.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test'))
from llama_server import LlamaServer
from scripted_server import ScriptedServer
from vllm_server import KEY, VllmServer, checkpoint

from benchmarks.common import machine
from ros2_nanochat import ChatHistory, NanoLLM

TOKENS = 64
PAUSE = 0.03
QUESTION = 'Count from one to a hundred.'
_SERVER_CORES: set[int] = set()  # cores of servers; empty: all
_FREE: dict[str, list[http.client.HTTPConnection]] = {}  # kept connections, by host


@contextlib.contextmanager
def on_server_cores():
    """A server that is started inside runs on the cores of servers."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _SERVER_CORES or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def headers() -> dict[str, str]:
    key = os.environ.get('OPENAI_API_KEY')
    return {'Content-Type': 'application/json', **({'Authorization': f'Bearer {key}'} if key else {})}


def events(url: str, body: dict):
    """The JSON of each event of a stream, over a connection that is kept."""
    parts = urlsplit(url)
    free = _FREE.setdefault(parts.netloc, [])
    content, kind = json.dumps(body).encode(), headers()
    to_server = http.client.HTTPSConnection if parts.scheme == 'https' else http.client.HTTPConnection
    while True:
        try:
            connection, is_kept = free.pop(), True
        except IndexError:
            connection, is_kept = to_server(parts.netloc, timeout=120), False
        try:
            connection.request('POST', parts.path, content, kind)
            response = connection.getresponse()
            break
        except (ConnectionError, http.client.BadStatusLine):  # the server closed it
            connection.close()
            if not is_kept:
                raise
    if response.status != 200:
        raise SystemExit(f'{url} answered HTTP {response.status}: {response.read(200)!r}')
    for line in response:
        if line.startswith(b'data: {'):
            yield json.loads(line[6:])
    free.append(connection)


def bare(url: str, body: dict) -> tuple[float, float, int]:
    """`(seconds to the first text, seconds in all, pieces)` of a stream that nothing is done with."""
    began, first, count = time.perf_counter(), None, 0
    for event in events(url, body):
        if text_of(event):
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
    with on_server_cores():
        server = LlamaServer(slots=conversations, context=512)
    with server:
        with NanoLLM.from_pretrained(server.url, api='openai') as model:
            history = ChatHistory(model)
            history.append('user', QUESTION)
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


def _serve(pipe, words: int, pause: float) -> None:
    with ScriptedServer(words=words, delay=pause) as server:
        server.keeps_connections = True  # as real servers do
        pipe.send(server.url)
        pipe.recv()


@contextlib.contextmanager
def scripted(words: int, pause: float = 0.0):
    """The address of a scripted server in a process of its own."""
    context = multiprocessing.get_context('spawn')
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, words, pause), daemon=True)
    with on_server_cores():
        process.start()
    there.close()  # else nothing would come, not even the end, of a process that failed
    try:
        yield here.recv()
    finally:
        with contextlib.suppress(OSError):
            here.send(None)
        process.join(10)


def cpu(words: int) -> None:
    """CPU time of this process per token, and of a bare client."""
    with scripted(words) as url, NanoLLM.from_pretrained(url, api='openai') as model:
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


# --- over ROS ---


def bare_times(url: str, body: dict) -> list[float]:
    """When each piece of a stream came."""
    return [time.perf_counter() for event in events(url, body) if text_of(event)]


def text_of(event: dict) -> str:
    """The text of an event, of llama.cpp's own address or OpenAI's."""
    choice = (event.get('choices') or [{}])[0]
    delta = choice.get('delta') or {}
    return event.get('content') or delta.get('content') or delta.get('reasoning_content') or ''


def while_all_stream(began: float, times: list[list[float]]) -> tuple[float, float]:
    """`(tokens/s while all stream, median seconds to the first)`."""
    since, until = max(each[0] for each in times), min(each[-1] for each in times)
    rate = sum(since < at <= until for each in times for at in each) / (until - since)
    return rate, statistics.median(each[0] - began for each in times)


@contextlib.contextmanager
def robots(url: str, count: int, tokens: int, only_words: bool = False):
    """A node with `count` robots whose model is on a server, and a function that asks all of them at once."""
    import rclpy
    from nanochat.srv import Reset
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String

    from benchmarks.bench_ros import Listener, chat_node

    class Pieces(Listener):
        """Counts messages with words, as the bare client counts events: in messages, `said:` is two."""

        def _note(self, robot: int, token) -> None:
            known = len(self.times[robot])
            super()._note(robot, token)
            is_word = not only_words or any(map(str.isalnum, token.text))
            del self.times[robot][known + is_word :]

    names = [f'r{n}' for n in range(count)]
    rclpy.init()
    node, executor = rclpy.create_node('bench_remote'), SingleThreadedExecutor()
    executor.add_node(node)
    threading.Thread(target=executor.spin, daemon=True).start()
    options = {'max_new_tokens': tokens, 'image_mode': "'off'", 'max_context_len': 0}
    with chat_node(api='openai', model=url, robots=json.dumps(names), **options) as process:
        listener = Pieces(node, [f'/{name}/nanochat/tokens' for name in names])
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


@contextlib.contextmanager
def llama_cpp(conversations: int):
    """`(address, where the bare client asks, what)` of llama.cpp's server."""
    with on_server_cores():
        server = LlamaServer(slots=conversations, context=512)
    with server:
        with NanoLLM.from_pretrained(server.url, api='openai') as model:
            history = ChatHistory(model)
            history.append('user', QUESTION)
            ids = [int(i) for i in history.embed_chat()[0].entries]
        body = {'prompt': ids, 'n_predict': TOKENS, 'temperature': 0, 'stream': True, 'return_tokens': True}
        yield server.url, f'{server.root}/completion', body


@contextlib.contextmanager
def steady(conversations: int):
    """The same of a server that sends a word every 30 ms."""
    with scripted(TOKENS, PAUSE) as url:
        body = {'model': 'scripted', 'stream': True, 'messages': [{'role': 'user', 'content': QUESTION}]}
        yield url, f'{url}/chat/completions', body


def running(url: str):
    """The same of a server that runs already."""

    @contextlib.contextmanager
    def server(conversations: int):
        with urllib.request.urlopen(urllib.request.Request(f'{url}/models', headers=headers())) as answer:
            name = json.load(answer)['data'][0]['id']
        body = {'model': name, 'max_tokens': TOKENS, 'temperature': 0, 'stream': True}
        body['messages'] = [{'role': 'user', 'content': QUESTION}]
        yield url, f'{url}/chat/completions', body

    return server


@contextlib.contextmanager
def vllm(slots: int):
    """The address of a vLLM with the embedded model."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(Path(folder))
        with on_server_cores():
            server = VllmServer(Path(folder), '--max-num-seqs', str(slots))
        with server:
            os.environ['OPENAI_API_KEY'] = KEY
            yield server.url


def over_ros(name: str, server, conversations: int, repeats: int) -> None:
    """What a ROS subscriber sees, as shares of a bare client of the same server; both take turns."""
    with server(conversations) as (url, address, body):
        pairs = []
        with robots(url, conversations, TOKENS, server is steady) as (process, ask):
            ask(QUESTION)  # the prompt is known
            before, heard = _cpu_seconds(process.pid), 0
            for _ in range(repeats):
                began = time.perf_counter()
                plain = while_all_stream(began, at_once(lambda: bare_times(address, body), conversations))
                began, times = ask(QUESTION)
                heard += sum(map(len, times))
                pairs.append((*plain, *while_all_stream(began, times)))
                print('    bare {:.1f}/s {:.3f} s, over ROS {:.1f}/s {:.3f} s'.format(*pairs[-1]))
            cpu_time = 1e3 * (_cpu_seconds(process.pid) - before) / heard
    rate = statistics.median(ours / bare for bare, _, ours, _ in pairs)
    first = statistics.median(bare / ours for _, bare, _, ours in pairs)
    later = 1e3 * statistics.median(ours - bare for _, bare, _, ours in pairs)
    print(
        f'{name}, {conversations:2} robots over ROS: tokens/s {rate:.3f} of the bare client, first piece'
        f' {first:.3f} (bare / ours; 1 is equal), {later:.1f} ms later; CPU of the node {cpu_time:.2f} ms'
        ' per token, all of a turn included'
    )


def node_cpu(words: int) -> None:
    """CPU time of the node per token that it streams to a subscriber."""
    with scripted(words) as url, robots(url, 1, words) as (process, ask):
        ask('go')
        before = _cpu_seconds(process.pid)
        times = ask('go')[1][0]
        print(f'CPU of the node per token: {1e3 * (_cpu_seconds(process.pid) - before) / len(times):.3f} ms')


def _cpu_seconds(pid: int) -> float:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--ros', action='store_true', help='only what a subscriber sees')
    parser.add_argument('--url', help='only what a subscriber sees, of a server that runs already')
    parser.add_argument('--vllm', action='store_true', help='the same of a vLLM with the embedded model')
    parser.add_argument(
        '--apart', action='store_true', help='servers use one half of the cores, the rest the other'
    )
    options = parser.parse_args()
    print(machine())
    if options.apart:
        cores = sorted(os.sched_getaffinity(0))
        half = len(cores) // 2
        _SERVER_CORES.update(cores[half:])
        os.sched_setaffinity(0, cores[:half] or cores)
    fleets, repeats = ((1, 4), 3) if options.quick else ((1, 16), 7)
    with vllm(fleets[-1]) if options.vllm else contextlib.nullcontext(options.url) as url:
        if url is not None:
            for conversations in fleets:
                over_ros(url, running(url.rstrip('/')), conversations, repeats)
            return
    if options.ros:
        for name, server in (("llama.cpp's server", llama_cpp), ('a steady server', steady)):
            for conversations in fleets:
                over_ros(name, server, conversations, repeats)
        node_cpu(2000 if options.quick else 10000)
        return
    for conversations in fleets:
        speed(conversations, repeats)
    cpu(2000 if options.quick else 20000)


if __name__ == '__main__':
    main()
