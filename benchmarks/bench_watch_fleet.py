"""Measures how many scene changes are reported when eight robots share one model, through camera topics, node
and DDS. Each robot has its own camera and two standing questions. Runs in the built workspace.

    python -m benchmarks.bench_watch_fleet [--robots 8] [--changes 8] [--share 0.8] [--rate 2]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
from pathlib import Path

import numpy as np

from benchmarks.common import machine, table

sys.path.insert(0, str(Path(__file__).parents[1] / 'test' / 'ros'))
_FACTS = ('color', 'place')
_NOISE = 3.0


def told(watchers, changes: int, rate: float) -> list:
    """Change the scenes of all robots at independent times. Return the changes, one list per robot."""
    from watch_story import add_all, tell

    found: list[list] = [[] for _ in watchers]

    def run(n: int) -> None:
        camera = watchers[n].cameras[0]
        found[n] = tell(watchers[n], camera, changes, np.random.default_rng(n), _FACTS, noise=_NOISE)

    for watcher in watchers:
        add_all(watcher, rate, _FACTS)
    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(watchers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def report(names: list[str], found: list[list]) -> bool:
    """Print the figures. Return whether each robot saw its changes, and 95 % of them were reported in time.

    Args:
        names: The robots.
        found: The changes, one list per robot: empty if its thread failed.
    """
    every = [each for changes in found for each in changes]
    rows = []
    for name, changes in zip(names, found):
        delays = sorted(each.delay for each in changes)
        faults = [each.fault for each in changes if each.fault]
        rows.append(
            (
                name,
                len(changes),
                len(changes) - len(faults),
                ', '.join(f'{faults.count(fault)} {fault}' for fault in sorted(set(faults)))
                or ('none' if changes else 'all'),
                f'{1000 * statistics.median(delays):.0f} and {1000 * delays[-1]:.0f}' if delays else 'none',
            )
        )
    right = sum(each.told for each in every)
    head = ('robot', 'changes', 'reported by the second frame', 'missed', 'median and max delay, ms')
    table(f'{len(names)} robots with two standing questions each', head, rows)
    for name, changes in zip(names, found):
        for each in (each for each in changes if each.fault):
            print(f'  {name}: {each}')
    print(f'  {right} of {len(every)} changes ({right / max(1, len(every)):.1%})')
    seen = all(changes and all(each.seen for each in changes) for changes in found)
    return seen and right >= 0.95 * len(every)


def main() -> int:
    """Print the figures. The exit code is 1 if fewer than 95 % of the changes are reported by the second
    frame that was looked at, or a robot saw none, or not all of its changes.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--robots', type=int, default=8)
    parser.add_argument('--changes', type=int, default=8)
    parser.add_argument('--share', type=float, default=0.8)
    parser.add_argument('--rate', type=float, default=2.0)
    options = parser.parse_args()
    import rclpy
    from conftest import NodeProcess
    from test_watch import Watcher

    print(machine())
    rclpy.init()
    names = [f'r{n}' for n in range(options.robots)]
    node = NodeProcess(
        model='',
        vision='tiny',
        max_context_len=512,
        robots=names,
        watch_share=options.share,
        explain_format=False,  # the tiny vision encoder knows only the questions as they are
    )
    watchers = []
    try:
        node.wait_for_line(': active', 180.0)
        for name in names:
            watchers.append(Watcher(f'/{name}/nanochat').connect())
            watchers[-1].camera(f'/{name}/nanochat/image', rate=10.0)
        found = told(watchers, options.changes, options.rate)
    finally:
        for watcher in watchers:
            watcher.close()
        node.stop()
        rclpy.try_shutdown()
    good = report(names, found)
    print(node.output if 'Traceback' in node.output else '')
    return int(not good or 'Traceback' in node.output)


if __name__ == '__main__':
    sys.exit(main())
