"""The arguments of a model library's `image_embed`, in addition to the picture. Source:
cpp/support/vlm_utils.cc and python/mlc_llm/model of mlc-llm.
"""

from __future__ import annotations

import math

from ros2_nanochat.errors import BackendError

_TILE, _MOST_TILES = 336, 4  # pixels of a tile's side, tiles of a picture, as mlc-llm runs Phi-3-vision


def image_sizes(model_type: str | None, height: int, width: int) -> tuple[int, ...]:
    """Return the numbers that go between picture and weights.

    Args:
        model_type: `model_type` of the model.
        height, width: Of the picture, in pixels.

    Returns:
        Nothing for LLaVA; for Phi-3-vision the resized height and width, and the number of tiles down and
        across.

    Raises:
        BackendError: The model type is unknown.
    """
    if model_type == 'llava':
        return ()
    if model_type != 'phi3_v':
        raise BackendError(
            f'how a model of type {model_type!r} sees is not known here; LLaVA and Phi-3-vision are'
        )
    ratio, scale = width / height, 1
    while scale * math.ceil(scale / ratio) <= _MOST_TILES:
        scale += 1
    across = max(1, scale - 1)
    resized_width = across * _TILE
    resized_height = max(1, int(resized_width / ratio))
    return resized_height, resized_width, math.ceil(resized_height / _TILE), across
