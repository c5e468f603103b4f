"""Chooses ids on the device, with the functions that mlc-llm puts into libraries for a GPU. Knows rows of
logits; nothing of requests.

Sources of their arguments: python/mlc_llm/compiler_pass/attach_sampler.py,
attach_softmax_with_temperature.py and attach_logit_processor.py; of their use:
cpp/serve/sampler/gpu_sampler.cc. A row is drawn in the same
way whatever else is in the batch, so that a seed gives one reply.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ros2_nanochat.backends.mlc.tvm_runtime import Runtime

NAMES = ('softmax_with_temperature', 'multinomial_from_uniform', 'argsort_probs', 'sample_with_top_p')
"""The library functions that choose ids."""

MASK = 'apply_bitmask_inplace'
"""The library function that rules out ids."""

# The kernel of multinomial_from_uniform compares with the number minus 1e-6, and chooses no id at all if the
# sum of the rounded probabilities stays below it: keep away from both ends.
_LEAST, _MOST = 2e-6, 1 - 1e-5


class DeviceSampler:
    """Chooses ids with the functions of a library.

    Args:
        runtime: TVM and the device.
        functions: The library's functions by name; None for those that it lacks.
    """

    def __init__(self, runtime: Runtime, functions: dict):
        self._runtime = runtime
        found: list[Any] = [functions.get(name) for name in NAMES]
        self._softmax, self._multinomial, self._sort, self._nucleus = found
        self.takes_largest = bool(self._softmax and self._multinomial)
        """Whether `largest` works."""
        self.draws = bool(self.takes_largest and self._sort and self._nucleus)
        """Whether `draw` works."""
        self._bitmask: Any = functions.get(MASK)
        self.masks = bool(self.takes_largest and self._bitmask)
        """Whether `mask` works."""

    def largest(self, logits, shape: tuple[int, int]) -> np.ndarray:
        """Return the likeliest id of each row, [k].

        Args:
            logits: An array on the device.
            shape: (k, v), even if the array has more axes.
        """
        count = shape[0]
        # at temperature 0 the library's softmax leaves probability only to the likeliest
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
        """Draw ids [n]: of each row, the id at which the cumulative probability passes `uniform`.

        Args:
            logits: An array on the device.
            shape: (k, v), even if the array has more axes.
            rows: Which rows, [n].
            temperature: Temperature of each, [n].
            top_p: Top-p of each, [n].
            uniform: A number of each, [n], from 0 to 1.
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

    def mask(self, logits, shape: tuple[int, int], rows: np.ndarray, allowed: np.ndarray) -> None:
        """Rule out ids of some rows, in place.

        Args:
            logits: An array on the device.
            shape: (k, v), even if the array has more axes.
            rows: Which rows, [n].
            allowed: Which ids may be chosen, [n, v] bool.
        """
        count, width = shape
        bits = np.zeros(
            (count, -(-width // 32) * 4), np.uint8
        )  # the function finds a row's bits by its number
        bits[rows, : -(-width // 8)] = np.packbits(allowed, axis=1, bitorder='little')
        self._bitmask(
            self._runtime.view(logits, shape),
            self._ids(rows),
            self._runtime.from_numpy(bits.view(np.int32)),
        )

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
        ):  # the kernels write nothing if probabilities are not numbers
            raise ValueError('the logits are no numbers: the model failed')
        return ids
