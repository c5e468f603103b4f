"""Arrays of `mlc` on their way: ids to the device, logits that stay there until they are asked for, and
bfloat16, which NumPy lacks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ros2_nanochat.backends.logits import HostLogits, Logits
from ros2_nanochat.backends.mlc.sampling import DeviceSampler
from ros2_nanochat.backends.mlc.tvm_runtime import Runtime
from ros2_nanochat.errors import require

_KEPT = 64  # arrays for up to so many ids are kept


class IdArrays:
    """Ids [n] on the device as int32. A decode step needs few of them each time: such an array is used again,
    so it is valid until the next call.
    """

    def __init__(self, runtime: Runtime):
        self._runtime = runtime
        self._arrays: dict[int, tuple] = {}

    def __call__(self, ids):
        if len(ids) > _KEPT:
            return self._runtime.from_numpy(np.ascontiguousarray(ids, np.int32))
        if len(ids) not in self._arrays:
            array = self._runtime.empty((len(ids),), 'int32')
            self._arrays[len(ids)] = array, self._runtime.shared(array)
        array, host = self._arrays[len(ids)]
        if host is None:
            array.copyfrom(np.ascontiguousarray(ids, np.int32))
        else:
            host[:] = ids
        return array


class DeviceLogits(Logits):
    """Logits [k, v] float32 that lie on the device until they are asked for."""

    def __init__(self, runtime: Runtime, logits, sampler: DeviceSampler):
        self._runtime = runtime
        self._logits = logits
        self._sampler = sampler
        self.can_sample = sampler.draws
        *counts, width = logits.shape
        self.shape = (int(np.prod(counts)), int(width))

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        return self._logits.numpy().reshape(self.shape).astype(np.float32, copy=False)

    def argmax(self) -> np.ndarray:
        """The likeliest id of each row [k]: the ids alone leave the device where the library can sample
        there.
        """
        if not self._sampler.takes_largest:
            return HostLogits(self.numpy()).argmax()
        return self._sampler.largest(self._logits, self.shape)

    def sample(
        self,
        rows: Sequence[int],
        temperature: Sequence[float],
        top_p: Sequence[float],
        uniform: Sequence[float],
    ) -> np.ndarray:
        """Ids [n] of some rows [n], each with its temperature, top-p and number from 0 to 1; the ids alone
        leave the device.
        """
        return self._sampler.draw(
            self._logits, self.shape, *(np.asarray(values) for values in (rows, temperature, top_p, uniform))
        )


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values rounded to the nearest bfloat16, as uint16."""
    ml_dtypes = require('ml_dtypes', 'mlc')
    return np.ascontiguousarray(values, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 whose bits are bytes or uint16."""
    ml_dtypes = require('ml_dtypes', 'mlc')
    return bits.view(ml_dtypes.bfloat16).astype(np.float32)
