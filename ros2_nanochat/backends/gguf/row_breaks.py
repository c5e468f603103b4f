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
            count = (tensor.end - tensor.start) // 4  # float32, as llama.cpp's converter writes one row
            self._embedding = np.fromfile(path, np.float32, count, offset=tensor.start)

    def fill(self, rows: np.ndarray) -> None:
        """Write the embedding where the rows [n, n_embd] of a picture are not finite.

        Rows whose first one is not finite are left: it is a patch, so the weights are damaged.
        """
        embedding = self._embedding
        if embedding is not None and len(embedding) == rows.shape[1] and np.isfinite(rows[0]).all():
            np.copyto(rows, embedding, where=~np.isfinite(rows))
