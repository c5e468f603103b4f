"""What arrives over DDS in another process: tokens/s and the way of a token, beside a raw llama.cpp loop with a bare publisher behind it.

Both sides publish nanochat/msg/Token to the same subscriber (this process), taking turns. The node answers a goal whose reply is as long as the raw
loop's run. Run in the built workspace: `python -m benchmarks.bench_ros`.
"""
from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.common import machine, table

STORY = 'Write a long story about a robot who learns to cook, with every detail of what it did in the kitchen.'


def bare(prompt: str, steps: int) -> None:
    """The child: a raw loop, and a publisher, nothing else. A line on standard input starts a run, the end of the input ends it."""
    import rclpy
    from rclpy.qos import QoSProfile

    from benchmarks.common import RawLlama
    from nanochat.msg import Token
    from ros2_nanochat import ChatHistory, NanoLLM

    with NanoLLM.from_pretrained(max_context_len=1024, max_sequences=1) as model:
        history = ChatHistory(model)
        history.append('user', text=prompt)
        ids = history.embed_chat()[0].token_ids.tolist()
        path, pieces = model.info.path, [model.backend.token_text(i) for i in range(min(1000, model.info.vocab_size))]
    raw = RawLlama(path, 1, 1024, False)
    rclpy.init()
    node = rclpy.create_node('bare')
    publisher = node.create_publisher(Token, '/bare/tokens', QoSProfile(depth=1000))
    print('ready', flush=True)
    import numpy as np
    for run in sys.stdin:
        raw.prefill(ids[:-1])
        token, position = ids[-1], len(ids) - 1
        for index in range(steps):
            raw._decode([(token, position + index, 0, True)])
            token = int(np.ctypeslib.as_array(raw.api.llama_get_logits(raw.context), (raw.vocabulary,)).argmax())
            publisher.publish(Token(stamp=node.get_clock().now().to_msg(), turn_id=run.strip(), index=index, text=pieces[token % len(pieces)], num_tokens=1,
                                    last=index == steps - 1))


class Subscriber:
    """Notes when each token came, and how old it was."""

    def __init__(self, node, topic: str):
        from nanochat.msg import Token
        from rclpy.qos import QoSProfile
        self.node, self.times, self.ages, self.tokens, self.ended = node, [], [], 0, threading.Event()
        self.subscription = node.create_subscription(Token, topic, self._note, QoSProfile(depth=1000))

    def _note(self, token) -> None:
        now = self.node.get_clock().now().nanoseconds
        if token.num_tokens:
            self.times.append(time.perf_counter())
            self.tokens += token.num_tokens
            self.ages.append((now - token.stamp.sec * 10 ** 9 - token.stamp.nanosec) / 1e6)
        if token.last:
            self.ended.set()

    def run(self, begin) -> tuple[float, float]:
        """Tokens/s of one run, and seconds to its first token."""
        self.times, self.tokens = [], 0
        self.ended.clear()
        began = time.perf_counter()
        begin()
        if not self.ended.wait(120):
            raise TimeoutError('no end of the run came')
        return (self.tokens - 1) / (self.times[-1] - self.times[0]), self.times[0] - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--tokens', type=int, default=200)
    parser.add_argument('--bare', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        return bare(STORY, options.tokens)
    os.environ.update(ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST', ROS_DOMAIN_ID=str(random.randint(1, 100)))
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String

    from ros2_nanochat.ros.client import ChatClient
    print(machine())
    rclpy.init()
    node = rclpy.create_node('bench')
    theirs, ours = Subscriber(node, '/bare/tokens'), Subscriber(node, '/nanochat/tokens')
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    program = next(path for prefix in os.environ['AMENT_PREFIX_PATH'].split(':') if (path := Path(prefix, 'lib/nanochat/chat_node')).exists())
    began = time.perf_counter()
    chat_node = subprocess.Popen([str(program), '--ros-args', '-p', f'max_new_tokens:={options.tokens}', '-p', 'speculation:=false', '-p',
                                  'max_context_len:=1024', '--log-level', 'warn'])
    raw = None
    try:
        with ChatClient(node=node) as chat:
            chat.wait_until_ready(60)
            ours.run(lambda: chat.ask('Hello', max_new_tokens=4))
            start = time.perf_counter() - began
            raw = subprocess.Popen([sys.executable, '-m', 'benchmarks.bench_ros', '--bare', '--tokens', str(options.tokens)], stdin=subprocess.PIPE,
                                   text=True, stdout=subprocess.PIPE)
            raw.stdout.readline()
            asker = node.create_publisher(String, '/nanochat/query', 10)
            time.sleep(1.0)
            rates, firsts = ([], []), []
            for run in range(options.repeats):
                rates[0].append(theirs.run(lambda: (raw.stdin.write(f'{run}\n'), raw.stdin.flush()))[0])
                chat.reset()
                rate, first = ours.run(lambda: asker.publish(String(data=f'{run}: {STORY}')))
                rates[1].append(rate)
                firsts.append(first)
            memory = int(Path(f'/proc/{chat_node.pid}/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
        bare_rate, node_rate = map(statistics.median, rates)
        table(f'received over DDS by another process, {options.tokens} tokens, median of {options.repeats} runs that take turns',
              ('', 'tokens/s', 'of bare', 'age ms p50', 'age ms p99'),
              [('raw loop + bare publisher', bare_rate, 1.0, *_quantiles(theirs.ages)), ('chat node', node_rate, node_rate / bare_rate, *_quantiles(ours.ages))])
        table('the node', ('', ''), [('process start to first token, s', start), ('first token of a turn, s', statistics.median(firsts)),
                                     ('resident memory, MB', memory / 1e6)])
    finally:
        chat_node.terminate()
        chat_node.wait(10)
        if raw is not None:
            raw.stdin.close()
            raw.wait(10)
        executor.shutdown()
        spinning.join(2.0)
        rclpy.try_shutdown()


def _quantiles(values: list[float]) -> tuple[float, float]:
    values = sorted(values)
    return values[len(values) // 2], values[int(0.99 * (len(values) - 1))]


if __name__ == '__main__':
    main()
