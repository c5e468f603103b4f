"""Choosing ids on the device, with the functions that mlc-llm puts into libraries for a GPU. Knows rows of
logits; nothing of requests.

What they take is told by python/mlc_llm/compiler_pass/attach_sampler.py and
attach_softmax_with_temperature.py, and how mlc-llm itself calls them by cpp/serve/sampler/gpu_sampler.cc. A
row is drawn in the same way whatever else is in the batch, so that a seed gives one reply.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ros2_nanochat.backends.mlc.tvm_runtime import Runtime

NAMES = ('softmax_with_temperature', 'multinomial_from_uniform', 'argsort_probs', 'sample_with_top_p')
"""Functions of a library that this calls."""

# The kernel of multinomial_from_uniform compares with 1e-6 less than the number, and takes no id at all where
# the sum of rounded
# probabilities stays under it: keep away from both ends.
_LEAST, _MOST = 2e-6, 1 - 1e-5


class DeviceSampler:
    """functions: those of the library by name, None for what it lacks."""

    def __init__(self, runtime: Runtime, functions: dict):
        self._runtime = runtime
        found: list[Any] = [functions.get(name) for name in NAMES]
        self._softmax, self._multinomial, self._sort, self._nucleus = found
        self.takes_largest = bool(self._softmax and self._multinomial)
        """Whether `largest` works."""
        self.draws = bool(self.takes_largest and self._sort and self._nucleus)
        """Whether `draw` works."""

    def largest(self, logits, shape: tuple[int, int]) -> np.ndarray:
        """The likeliest id of each row [k]. shape: (k, v), which the logits may have in more axes."""
        count = shape[0]
        # at temperature 0 the library's softmax leaves probability to the likeliest alone
        probabilities = self._probabilities(logits, shape, np.zeros(count))
        return self._host(
            self._multinomial(probabilities, self._floats(np.full(count, 1e-3)), self._ids(np.arange(count))),
            shape,
        )

    def draw(
        self,
        logits,
        shape: tuple[int, int],
        rows: np.ndarray,
        temperature: np.ndarray,
        top_p: np.ndarray,
        uniform: np.ndarray,
    ) -> np.ndarray:
        """Ids [n] of rows [n]: the one at which the sum of probabilities passes `uniform` [n], from 0 to 1.
        Temperature and top-p [n].
        """
        heats = np.ones(shape[0])
        heats[rows] = temperature
        probabilities = self._probabilities(logits, shape, heats)
        uniform = np.clip(uniform, _LEAST, _MOST)
        chosen, whole = np.empty(len(rows), np.int64), top_p >= 1
        if whole.any():
            chosen[whole] = self._host(
                self._multinomial(probabilities, self._floats(uniform[whole]), self._ids(rows[whole])), shape
            )
        if not whole.all():
            part = ~whole
            limits = np.ones(shape[0])
            limits[rows] = top_p
            values, order = self._sort(probabilities)
            chosen[part] = self._host(
                self._nucleus(
                    values, order, self._floats(uniform[part]), self._ids(rows[part]), self._floats(limits)
                ),
                shape,
            )
        return chosen

    def _probabilities(self, logits, shape: tuple[int, int], temperature: np.ndarray):
        count, width = shape
        view = self._runtime.view
        return view(self._softmax(view(logits, (count, 1, width)), self._floats(temperature)), shape)

    def _floats(self, values: np.ndarray):
        return self._runtime.from_numpy(np.ascontiguousarray(values, np.float32))

    def _ids(self, values: np.ndarray):
        return self._runtime.from_numpy(np.ascontiguousarray(values, np.int32))

    @staticmethod
    def _host(ids, shape: tuple[int, int]) -> np.ndarray:
        ids = ids.numpy().reshape(-1)
        if len(ids) and (
            ids.min() < 0 or ids.max() >= shape[1]
        ):  # the kernels write nothing where probabilities are no numbers
            raise ValueError('the logits are no numbers: the model failed')
        return ids
