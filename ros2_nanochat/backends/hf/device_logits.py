"""Rows of logits of `hf` that stay on their device until needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ros2_nanochat.backends.logits import Logits


class DeviceLogits(Logits):
    """Rows of logits [k, v] that stay on their device until needed.

    Args:
        rows: A torch tensor [k, v].
    """

    can_mask = True

    def __init__(self, rows):
        self._rows = rows
        self.shape = (rows.shape[0], rows.shape[1])

    def numpy(self) -> np.ndarray:
        return self._rows.float().cpu().numpy()

    def argmax(self) -> np.ndarray:
        values, best = self._rows.max(-1)  # a NaN counts as the largest
        return best.masked_fill(~values.isfinite(), -1).cpu().numpy()

    def mask(self, rows: Sequence[int], allowed: np.ndarray) -> None:
        import torch

        with torch.inference_mode():
            device = self._rows.device
            index = torch.as_tensor(np.asarray(rows), device=device)
            ruled_out = torch.as_tensor(~allowed).to(device, non_blocking=True)
            self._rows[index] = self._rows[index].masked_fill(ruled_out, -torch.inf)
