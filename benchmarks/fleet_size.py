"""How many servers does a fleet of robots need? A small simulation from measured figures of one server.

Run with `python -m benchmarks.fleet_size --robots 100 --servers 1 2 4 --prefill 8000 --step 0.02`. Measure
`--prefill` (tokens per second while a prompt is read) and `--step`, `--slope` (seconds of one decode step for
one reply, and for each further one) on your own server; the defaults are examples, not measurements.

Each robot asks at random times. A server reads new tokens first, then decodes all its replies in one batch.
"""

from __future__ import annotations

import argparse
import heapq
import random


def percentile(values: list[float], share: float) -> float:
    """Return the value below which a share of all lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def simulate(options: argparse.Namespace, servers: int, seed: int = 1) -> tuple[list[float], list[float]]:
    """Return the seconds to the first token, and to the end, of each question in `--minutes` minutes."""
    rng = random.Random(seed)
    asked = []
    for robot in range(options.robots):
        at = rng.expovariate(1 / options.interval)
        while at < 60 * options.minutes:
            heapq.heappush(asked, (at, robot))
            at += rng.expovariate(1 / options.interval)
    firsts: list[float] = []
    ends: list[float] = []
    by_server: list[list[float]] = [[] for _ in range(servers)]
    for at, robot in sorted(asked):
        by_server[robot % servers].append(at)  # a conversation stays where its KV is
    for arrivals in by_server:
        _serve(arrivals, options, firsts, ends)
    return firsts, ends


def _serve(arrivals: list[float], options: argparse.Namespace, firsts: list[float], ends: list[float]):
    now, running, at = 0.0, [], 0  # running: [arrival, tokens left]
    while at < len(arrivals) or running:
        if not running and at < len(arrivals):
            now = max(now, arrivals[at])
        while at < len(arrivals) and arrivals[at] <= now and len(running) < options.batch:
            now += options.new_tokens / options.prefill
            firsts.append(now - arrivals[at])
            running.append([arrivals[at], options.reply_tokens])
            at += 1
        now += options.step + options.slope * max(0, len(running) - 1)
        for reply in running:
            reply[1] -= 1
        ends += [now - reply[0] for reply in running if not reply[1]]
        running = [reply for reply in running if reply[1]]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--robots', type=int, default=100)
    parser.add_argument('--servers', type=int, nargs='+', default=[1, 2, 4])
    parser.add_argument('--interval', type=float, default=20.0, help="seconds between a robot's questions")
    parser.add_argument('--new-tokens', type=int, default=60, help='tokens of a question that are not reused')
    parser.add_argument('--reply-tokens', type=int, default=80)
    parser.add_argument('--prefill', type=float, default=5000.0, help='tokens per second')
    parser.add_argument('--step', type=float, default=0.02, help='seconds of a decode step for one reply')
    parser.add_argument('--slope', type=float, default=0.0003, help='seconds that each further reply adds')
    parser.add_argument('--batch', type=int, default=64, help='replies at once (max-num-seqs)')
    parser.add_argument('--minutes', type=float, default=10.0)
    options = parser.parse_args()
    load = options.robots / options.interval
    print(f'{load:.1f} questions and {load * options.reply_tokens:.0f} reply tokens per second')
    print('servers  first token p50, p99 (s)   whole reply p50, p99 (s)')
    for servers in options.servers:
        firsts, ends = simulate(options, servers)
        print(
            f'{servers:7}  {percentile(firsts, 0.5):10.2f} {percentile(firsts, 0.99):8.2f}'
            f'      {percentile(ends, 0.5):10.2f} {percentile(ends, 0.99):8.2f}'
        )


if __name__ == '__main__':
    main()
