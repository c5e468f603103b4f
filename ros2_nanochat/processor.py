"""The processor: which CPUs the model's threads may use, and how they share them with other programs."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Iterable, Iterator

from ros2_nanochat.config.wording import invalid, shown

_log = logging.getLogger(__name__)
_LEAST_LOOK = 0.1  # seconds, ten ticks
_ARM_CODES = ('CPU implementer', 'CPU variant', 'CPU part')
# libgomp (config/linux/wait.h): a waiting thread looks GOMP_SPINCOUNT times before it sleeps. If the process
# has more OpenMP threads than CPUs, because two of its threads have run a model, it looks 100 times, and
# sleeps at nearly every barrier of a step; with the policy "active" it looks 1,000 times. With that policy
# LLVM's libomp (kmp_settings.cpp) lets threads spin for ever, unless the milliseconds are given.
_OPENMP_SETTINGS = {'GOMP_SPINCOUNT': '5000', 'OMP_WAIT_POLICY': 'active', 'KMP_BLOCKTIME': '1'}


def cpus_of(affinity: str | None) -> frozenset[int] | None:
    """Return the CPUs that the option `cpu_affinity` names; None if it is not set.

    Raises:
        ValueError: This process may not use one of them.
    """
    if affinity is None:
        return None
    ends = [[int(end) for end in part.split('-')] for part in affinity.split(',')]
    named = frozenset(cpu for part in ends for cpu in range(part[0], part[-1] + 1))
    usable = os.sched_getaffinity(0)
    if not named <= usable:
        raise invalid(
            'cpu_affinity',
            shown(affinity),
            f'this process may use the CPUs {", ".join(map(str, sorted(usable)))}',
        )
    return named


def physical_cores(cpus: Iterable[int] | None = None) -> int:
    """Return the number of cores, counting hyper-threads of one core once.

    Args:
        cpus: The CPUs to count; None for all that this process may use.
    """
    cores = set()
    for cpu in os.sched_getaffinity(0) if cpus is None else cpus:
        try:
            with open(f'/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list') as siblings:
                cores.add(siblings.read().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def processor_name(cpuinfo: str = '/proc/cpuinfo') -> str:
    """Return the name of the processor's model; on ARM, where it has none, the codes of its cores.

    Args:
        cpuinfo: The file in which Linux describes each CPU.
    """
    codes: dict[str, None] = {}  # a set that keeps the order
    try:
        with open(cpuinfo) as file:
            for line in file:
                key, _, value = (part.strip() for part in line.partition(':'))
                if key == 'model name':
                    return value
                if key in _ARM_CODES:
                    codes[f'{key} {value}'] = None
    except OSError:
        pass
    return ', '.join([platform.processor() or platform.machine(), *codes])


class IdleCores:
    """How many cores other programs leave idle, from the creation of this object or the last call to a call.

    The load average would count the start of this program, and what ended a minute ago.

    Args:
        cores: The number of cores.
        cpus: The CPUs that belong to them; None for all that this process may use.
    """

    def __init__(self, cores: int, cpus: Iterable[int] | None = None):
        self._cores = cores
        self._cpus = {f'cpu{cpu}' for cpu in (os.sched_getaffinity(0) if cpus is None else cpus)}
        self._began = time.monotonic()
        self._others = self._seconds_of_others()

    def __call__(self) -> int:
        """Return the number, at least 1; all cores if too little time has passed to tell."""
        now = time.monotonic()
        elapsed, before = now - self._began, self._others
        if before is None or elapsed < _LEAST_LOOK:
            return self._cores
        self._began, self._others = now, self._seconds_of_others()
        busy = ((self._others or 0.0) - before) / elapsed
        return min(self._cores, max(1, self._cores - round(busy)))

    def _seconds_of_others(self) -> float | None:
        """What the CPUs computed for others than this process and its ended children (proc_stat(5))."""
        ticks = 0
        try:
            with open('/proc/stat') as file:
                for line in file:
                    name, *times = line.split()
                    if not name.startswith('cpu'):
                        break
                    if name in self._cpus:
                        user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, times[:8])
                        ticks += user + nice + system + irq + softirq + steal
        except (OSError, ValueError):
            return None
        own = os.times()
        return ticks / os.sysconf('SC_CLK_TCK') - sum(own[:4])


def restrict_thread(nice: int, cpus: Iterable[int] | None) -> None:
    """Restrict the current thread and those that it starts. Logs a warning if the system refuses.

    Args:
        nice: The least niceness it should have.
        cpus: The CPUs it may use; None leaves them.
    """
    name = threading.current_thread().name
    try:
        if cpus is not None:
            os.sched_setaffinity(0, cpus)
    except OSError as error:
        _log.warning('the CPUs of the thread %s could not be set: %s', name, error)
    try:
        # on Linux, niceness belongs to the thread
        if nice > os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, nice)
    except OSError as error:
        _log.warning('the priority of the thread %s could not be set: %s', name, error)


@contextlib.contextmanager
def threads_wait_briefly(runtime: str) -> Iterator[None]:
    """Make an OpenMP runtime that is loaded in the block let its waiting threads sleep after a short wait.

    By default OpenMP spins for milliseconds while a thread waits for the others, which takes the cores from
    whatever delays the others: next to other programs a model of 135M made 4 tokens per second, and 30 with a
    short wait. This has an effect only if the user has not configured the runtime. The environment of this
    process is restored.

    Args:
        runtime: The Python module that brings the OpenMP runtime; if it is loaded, nothing is done.
    """
    if runtime in sys.modules or any(name in os.environ for name in _OPENMP_SETTINGS):
        yield
        return
    os.environ.update(_OPENMP_SETTINGS)
    try:
        yield
    finally:
        for name in _OPENMP_SETTINGS:
            os.environ.pop(name, None)
