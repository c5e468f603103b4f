"""Turns pictures into what goes into a prompt: each is encoded once and remembered by its pixels, whoever
shows it.

Knows that an encoder gives parts of a prompt, not how: `llava` runs a vision tower and projector of its own,
`onepiece` those of a model that the hf backend holds, `backend_encoder` asks the backend. `open` finds which
it is. Neither torch nor transformers is imported before the first picture is encoded or `load` is called.
"""

from __future__ import annotations

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ros2_nanochat.errors import BackendError
from ros2_nanochat.files import read_json
from ros2_nanochat.prompt import EmbeddingSpan
from ros2_nanochat.vision.images import image_digest, open_image

CACHE_IMAGES = 64
CACHE_BYTES = 256 << 20
"""How much of the latest pictures is remembered, in pictures and in bytes of embeddings."""

TINY = Path(__file__).with_name('tiny')
"""The eyes that come with the package, for the embedded default model."""


class Encoded(list):
    """Parts of a prompt that stand for one picture, in order: spans of embeddings, and markup of the model
    around them as text, to be tokenized with its special tokens in one run with what stands beside it. Such
    parts are shared: leave them as they are.

    seconds: what it took; 0.0 where the picture was remembered. digest: of its pixels.
    """

    def __init__(self, parts, digest: bytes, seconds: float = 0.0):
        super().__init__(parts)
        self.digest = digest
        self.seconds = seconds

    @property
    def num_tokens(self) -> int:
        """Rows of embeddings."""
        return sum(len(part) for part in self if isinstance(part, EmbeddingSpan))


class VisionEncoder(ABC):
    """What encodes pictures for one language model. `encode` may be called from any thread.

    image_token: text of the token that chat templates of this model write for a picture, None where that is
        not known.
    load_seconds: what getting ready took, None before.
    """

    image_token: str | None = None
    load_seconds: float | None = None

    def __init__(self):
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, list] = OrderedDict()
        self._bytes = 0
        self._closed = False
        self._counts = {'encoded': 0, 'reused': 0, 'seconds': 0.0}

    def load(self) -> None:
        """Get ready now rather than at the first picture. `BackendError` or `MissingDependency` says what is
        wrong.
        """
        with self._lock:
            self._get_ready()

    @staticmethod
    def open_image(image: Any, urls: bool = True) -> Image.Image:
        """See `images.open_image`."""
        return open_image(image, urls)

    def encode(self, image: Any, urls: bool = True) -> Encoded:
        """Encode a picture, or remember it. image, urls: as `images.open_image` takes them. ValueError where
        it is none.
        """
        picture = open_image(image, urls)
        digest = image_digest(picture)
        with self._lock:  # a second caller with the same picture waits for the first, and then finds it
            if digest in self._cache:
                self._cache.move_to_end(digest)
                self._counts['reused'] += 1
                return Encoded(self._cache[digest], digest)
            self._get_ready()
            begin = time.perf_counter()
            parts = self._encode(picture, digest)
            seconds = time.perf_counter() - begin
            self._counts['encoded'] += 1
            self._counts['seconds'] += seconds
            self._remember(digest, parts)
        return Encoded(parts, digest, seconds)

    @property
    def stats(self) -> dict:
        """encoded, reused: pictures. seconds: spent on encoding. cached, cache_bytes: what is remembered."""
        # Without the lock, which loading and encoding hold for seconds: diagnostics go on meanwhile.
        return {**self._counts, 'cached': len(self._cache), 'cache_bytes': self._bytes}

    def close(self) -> None:
        """Give the memory back. May be called twice."""
        with self._lock:
            self._cache.clear()
            self._bytes = 0
            self._closed = True
            self._unload()

    def _get_ready(self) -> None:
        if self._closed:
            raise BackendError('the model is closed')
        if self.load_seconds is None:
            began = time.perf_counter()
            self._load()
            self.load_seconds = time.perf_counter() - began

    def _remember(self, digest: bytes, parts: list) -> None:
        self._cache[digest] = parts
        self._bytes += _size(parts)
        while len(self._cache) > CACHE_IMAGES or (self._bytes > CACHE_BYTES and len(self._cache) > 1):
            self._bytes -= _size(self._cache.popitem(last=False)[1])

    def _span(self, rows, digest: bytes, part: int = 0, **options) -> EmbeddingSpan:
        """A span of rows [k, d], a torch tensor or an array, named by the picture, this encoder and which
        part of the picture it is.
        """
        array = np.ascontiguousarray(rows if isinstance(rows, np.ndarray) else to_array(rows))
        name = hashlib.blake2b(digest + self.fingerprint + part.to_bytes(4, 'big'), digest_size=16).digest()
        return EmbeddingSpan(array, name, **options)

    fingerprint: bytes = b''
    """Tells encoders apart, so that what one has made is never taken for what another would."""

    @abstractmethod
    def _load(self) -> None: ...

    @abstractmethod
    def _encode(self, picture: Image.Image, digest: bytes) -> list: ...

    @abstractmethod
    def _unload(self) -> None: ...


def to_array(rows) -> np.ndarray:
    """A torch tensor as float32 in host memory."""
    return rows.detach().float().cpu().numpy()


def _size(parts: list) -> int:
    return sum(part.nbytes for part in parts if isinstance(part, EmbeddingSpan))


def read_config(folder: str | Path) -> dict:
    """config.json of a checkpoint, {} where there is none. `BackendError` where it is not a JSON object."""
    return read_json(str(folder), 'config.json')
