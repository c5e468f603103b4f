"""`chat_node`, which writes down each step of its engine: when it began (`time.monotonic`), its seconds, and
the priority of its requests.

    python -m benchmarks.timed_node STEPS --ros-args ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

from ros2_nanochat.engine.request import BACKGROUND
from ros2_nanochat.engine.scheduler import Scheduler
from ros2_nanochat.engine.work import Plan


class Step(NamedTuple):
    """One forward.

    Attributes:
        began: When, on the clock of `time.monotonic`, which is one for all processes.
        seconds: How long it took.
        watching: Whether it was for standing questions.
    """

    began: float
    seconds: float
    watching: bool


def read_steps(path: str) -> list[Step]:
    """Return the steps that a node has written so far."""
    with open(path) as file:
        whole = file.read().rpartition('\n')[0].split('\n')
    rows = [line.split() for line in whole if line]
    return [
        Step(float(began), float(seconds), int(priority) < BACKGROUND) for began, seconds, priority in rows
    ]


def timed(record: Callable, file: TextIO) -> Callable:
    """Wrap `Scheduler.record` so that it also writes each step to a file."""

    def write(scheduler: Scheduler, plan: Plan, seconds: float) -> None:
        priority = max(work.request.priority for work in plan.batch)
        file.write(f'{time.monotonic() - seconds:.6f} {seconds:.6f} {priority}\n')
        record(scheduler, plan, seconds)

    return write


def main() -> int:
    """Run the node. Return its exit code."""
    from ros2_nanochat.ros.programs import chat_node as run

    path, *arguments = sys.argv[1:]
    with open(path, 'w', buffering=1) as file:
        Scheduler.record = timed(Scheduler.record, file)  # type: ignore[method-assign]
        return run(arguments)


if __name__ == '__main__':
    sys.exit(main())
