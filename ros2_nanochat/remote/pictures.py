"""Pictures for servers: encoded once, and sent as data URLs with the messages."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ros2_nanochat.errors import BackendError
from ros2_nanochat.remote.message_vocabulary import PictureSpan
from ros2_nanochat.vision.encoder import Encoded
from ros2_nanochat.vision.images import image_digest, open_image

MAX_SIDE = 1536
"""Pictures are scaled down to this many pixels; models see no more."""
_PIXELS_PER_TOKEN = 28 * 28  # as in Qwen's vision models; only for an estimate of the context
_KEPT = 64


class PictureEncoder:
    """Prepares pictures for servers; has the surface of `vision.VisionEncoder`."""

    image_token = '<|nanochat_image|>'
    image_markup = ('', '')
    load_seconds = 0.0

    def __init__(self):
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, PictureSpan] = OrderedDict()
        self._counts = {'encoded': 0, 'reused': 0, 'seconds': 0.0}
        self._closed = False

    def load(self) -> None:
        """Do nothing: the encoder is on the server."""

    @staticmethod
    def open_image(image: Any, urls: bool = True) -> Image.Image:
        """See `images.open_image`."""
        return open_image(image, urls)

    def encode(self, image: Any, urls: bool = True, stopped: Callable[[], bool] | None = None) -> Encoded:
        """Return what represents a picture in a prompt; see `VisionEncoder.encode`."""
        picture = open_image(image, urls)
        digest = image_digest(picture)
        with self._lock:
            if self._closed:
                raise BackendError('the model is closed')
            if digest in self._cache:
                self._cache.move_to_end(digest)
                self._counts['reused'] += 1
                return Encoded([self._cache[digest]], digest)
        began = time.perf_counter()
        span = _span(picture, digest)
        seconds = time.perf_counter() - began
        with self._lock:
            self._counts['encoded'] += 1
            self._counts['seconds'] += seconds
            self._cache[digest] = span
            while len(self._cache) > _KEPT:
                self._cache.popitem(last=False)
        return Encoded([span], digest, seconds)

    @property
    def stats(self) -> dict:
        """See `VisionEncoder.stats`."""
        return {**self._counts, 'cached': len(self._cache), 'cache_bytes': 0}

    def close(self) -> None:
        """Free the memory."""
        with self._lock:
            self._cache.clear()
            self._closed = True


def _span(picture: Image.Image, digest: bytes) -> PictureSpan:
    if max(picture.size) > MAX_SIDE:
        picture = picture.copy()
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    # Small pictures are drawings as often as photographs, and cost little without loss.
    if picture.width * picture.height <= 256 * 256:
        picture.save(file, 'PNG')
        kind = 'png'
    else:
        picture.save(file, 'JPEG', quality=90)
        kind = 'jpeg'
    num_tokens = max(16, picture.width * picture.height // _PIXELS_PER_TOKEN)
    span = PictureSpan(np.zeros((num_tokens, 1), np.float32), digest)
    object.__setattr__(span, 'url', f'data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}')
    return span
