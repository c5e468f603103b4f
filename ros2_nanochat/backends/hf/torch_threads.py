"""How many threads torch uses: the number that is set, or on a CPU the one that is fastest now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ros2_nanochat.backends.threads import ThreadChooser, fixed_threads
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.processor import IdleCores, physical_cores


class TorchThreads:
    """Sets torch's threads between steps.

    Args:
        config: The options of the model.
        device: Where it runs.
        cpus: The CPUs that it may use; None for all of the process.
    """

    def __init__(self, config: ModelConfig, device: torch.device, cpus: Iterable[int] | None):
        self._fixed = config.threads
        self._chooser: ThreadChooser | None = None
        if config.threads:
            torch.set_num_threads(config.threads)
        elif device.type == 'cpu' and not config.compile:  # compiled code keeps its number
            cores = physical_cores(cpus)
            self._chooser = ThreadChooser(cores, idle=IdleCores(cores, cpus))

    def run(self, entries: int, forward: Callable[[], Any]) -> Any:
        """Run a step of `entries` entries and return its result."""
        chooser = self._chooser
        if chooser is None:
            return forward()
        threads = chooser.choose(entries)
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        began = time.perf_counter()
        result = forward()
        chooser.record(entries, threads, time.perf_counter() - began)
        return result

    def stats(self) -> dict[str, int | str]:
        """Return `threads` that decode, `threads_prefill`, and `threads_reason`."""
        if self._chooser is not None:
            return self._chooser.stats()
        return fixed_threads(
            torch.get_num_threads(), 'threads is set' if self._fixed else "torch's own number"
        )
