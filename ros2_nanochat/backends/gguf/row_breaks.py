"""The embedding that ends each row of a Pixtral picture, which libmtmd may leave without a value.

libmtmd computes [IMG_BREAK] as 0 times memory that nothing has written, plus the embedding
(llama.cpp, tools/mtmd/models/pixtral.cpp): where that memory happens to hold no finite number, the sum is not
finite either.
"""

from __future__ import annotations

import numpy as np

from ros2_nanochat.backends.gguf.header import read_head

_TENSOR = 'v.token_embd.img_break'


class RowBreaks:
    """The embedding of [IMG_BREAK] in the mmproj file at `path`; most files have none."""

    def __init__(self, path: str):
        tensor = read_head(path).tensors.get(_TENSOR)
        self._embedding = None
        if tensor is not None and tensor.end is not None:
            # llama.cpp's converter stores it as float32. Any other type gives a different length, and `fill`
            # then does nothing.
            count = (tensor.end - tensor.start) // 4
            self._embedding = np.fromfile(path, np.float32, count, offset=tensor.start)

    def fill(self, rows: np.ndarray) -> None:
        """Write the embedding at the ends of the rows of patches of a picture, [n, n_embd], where libmtmd has
        left values that are not finite. Such values elsewhere are left: the weights are damaged.
        """
        embedding = self._embedding
        if embedding is None or len(embedding) != rows.shape[1]:
            return
        lost = ~np.isfinite(rows)
        ends = np.flatnonzero((lost | (rows == embedding)).all(axis=1))
        # At equal distances, and behind the last row of patches there is none.
        if len(ends) and ends[0] and (np.diff(ends, append=len(rows)) == ends[0] + 1).all():
            rows[ends] = embedding
