"""Arrays of `mlc` in transit: ids to the device, logits that stay there until needed, and bfloat16, which
NumPy lacks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ros2_nanochat.backends.logits import HostLogits, Logits
from ros2_nanochat.backends.mlc.sampling import DeviceSampler
from ros2_nanochat.backends.mlc.tvm_runtime import Runtime
from ros2_nanochat.errors import require

_KEPT = 64  # arrays for up to this many ids are kept


class IdArrays:
    """Ids [n] on the device as int32. The small arrays of decode steps are reused, so one is valid until the
    next call.

    Args:
        runtime: TVM and the device.
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
    """Logits [k, v] float32 that stay on the device until needed.

    Args:
        runtime: TVM and the device.
        logits: The array on the device.
        sampler: Chooses ids on the device.
    """

    def __init__(self, runtime: Runtime, logits, sampler: DeviceSampler):
        self._runtime = runtime
        self._logits = logits
        self._sampler = sampler
        self.can_sample = sampler.draws
        self.can_mask = sampler.masks
        *counts, width = logits.shape
        self.shape = (int(np.prod(counts)), int(width))

    def numpy(self) -> np.ndarray:
        """Return a copy on the host."""
        return self._logits.numpy().reshape(self.shape).astype(np.float32, copy=False)

    def argmax(self) -> np.ndarray:
        """Return the likeliest id of each row [k]. Only the ids leave the device, if the library can sample
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
        """See `Logits.sample`. Only the ids leave the device."""
        return self._sampler.draw(
            self._logits, self.shape, *(np.asarray(values) for values in (rows, temperature, top_p, uniform))
        )

    def mask(self, rows: Sequence[int], allowed: np.ndarray) -> None:
        """See `Logits.mask`. Only bits go to the device."""
        self._sampler.mask(self._logits, self.shape, np.asarray(rows), allowed)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 values to the nearest bfloat16; return their bits as uint16."""
    ml_dtypes = require('ml_dtypes', 'mlc')
    return np.ascontiguousarray(values, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Return the float32 values of bfloat16 bits, given as bytes or uint16."""
    ml_dtypes = require('ml_dtypes', 'mlc')
    return bits.view(ml_dtypes.bfloat16).astype(np.float32)
