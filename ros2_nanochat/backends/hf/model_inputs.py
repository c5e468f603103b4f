"""The inputs of a forward of a transformers model: ids, or embeddings if one chunk has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ros2_nanochat.backends.base import Chunk


def model_inputs(
    chunks: Sequence[Chunk], embed: Any, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the inputs of one forward over chunks of ids and embeddings.

    Args:
        chunks: The chunks.
        embed: The model's embedding layer.
        dtype: Of the embeddings.
        device: Of the inputs.
    """
    if all(chunk.embeddings is None for chunk in chunks):
        return {
            'input_ids': torch.as_tensor(
                np.concatenate([np.asarray(chunk.ids, dtype=np.int64) for chunk in chunks])
            )[None].to(device)
        }
    rows = [
        embed(torch.as_tensor(np.asarray(chunk.ids, dtype=np.int64)).to(device))
        if chunk.embeddings is None
        else torch.as_tensor(np.asarray(chunk.embeddings, dtype=np.float32)).to(device, dtype)
        for chunk in chunks
    ]
    inputs = {'inputs_embeds': torch.cat([row.to(dtype) for row in rows])[None]}
    layers = next((len(chunk.deepstack) for chunk in chunks if chunk.deepstack is not None), 0)
    if layers:
        inputs['deepstack'] = torch.cat(
            [
                row.new_zeros(layers, *row.shape)
                if chunk.deepstack is None
                else torch.as_tensor(chunk.deepstack).to(row)
                for chunk, row in zip(chunks, rows)
            ],
            dim=1,
        )
    return inputs
