"""Pictures of models that MLC-LLM compiled with a vision part."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ros2_nanochat.backends.image_embedder import ImageEmbedder, ImagePiece
from ros2_nanochat.errors import BackendError, one_line


class MLCImages(ImageEmbedder):
    """Embeds pictures with the `image_embed` of a model library.

    Args:
        path: The model.
        library: Its compiled library.
        embed: Returns the rows [k, d] of a picture [h, w, 3].
    """

    def __init__(self, path: str, library: str, embed: Callable[[np.ndarray], np.ndarray]):
        self.identity = path
        self._library, self._embed = library, embed

    def embed(self, pixels: np.ndarray, stopped: Callable[[], bool] | None = None) -> list[ImagePiece]:
        try:
            return [ImagePiece(rows=self._embed(pixels))]
        except (
            Exception
        ) as error:  # tvm raises its own classes; older libraries take pictures in another form
            raise BackendError(
                f'{self._library} does not take this picture of {pixels.shape[1]} x {pixels.shape[0]}'
                f' ({one_line(error, 200)}): compile it again with the newest mlc_llm'
            ) from error
