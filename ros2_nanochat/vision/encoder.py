"""Turns pictures into parts of a prompt.

Each picture is encoded once and cached by its pixels, for all conversations.

Knows that an encoder returns parts of a prompt, not how: `llava` runs a vision tower and a projector of its
own, `onepiece` uses those of a model that the hf backend holds, and `backend_encoder` asks the backend.
`open` finds the right one. Neither torch nor transformers is imported before the first picture is encoded or
`load` is called.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ros2_nanochat.errors import BackendError, EncodingStopped
from ros2_nanochat.files import read_json
from ros2_nanochat.prompt import EmbeddingSpan
from ros2_nanochat.vision.images import image_digest, open_image

CACHE_IMAGES = 64
CACHE_BYTES = 256 << 20
"""Limits of the cache: pictures, and bytes of embeddings."""

_PATIENCE = 0.05  # seconds between two looks at whether to stop

TINY = Path(__file__).with_name('tiny')
"""The vision encoder that comes with the package, for the embedded default model."""


class Encoded(list):
    """Parts of a prompt that represent one picture, in order.

    A part is a span of embeddings, or markup of the model, as a tuple of ids or as text. The text is
    tokenized with its special tokens, together with the text next to it. Parts are shared between
    conversations: do not change them.

    Args:
        parts: The parts.
        digest: Digest of the pixels.
        seconds: Time spent on encoding, 0.0 if the picture was cached.
    """

    def __init__(self, parts, digest: bytes, seconds: float = 0.0):
        super().__init__(parts)
        self.digest = digest
        self.seconds = seconds

    @property
    def num_tokens(self) -> int:
        """Rows of embeddings, each of which takes the place of a token."""
        return sum(len(part) for part in self if isinstance(part, EmbeddingSpan))


class VisionEncoder(ABC):
    """Encodes pictures for one language model. `encode` may be called from any thread.

    Attributes:
        image_token: Text of the token that chat templates of this model write for a picture, None if unknown.
        image_markup: Markup before and after a picture that its parts contain, as text.
        load_seconds: Time spent on loading, None before that.
    """

    image_token: str | None = None
    image_markup: tuple[str, str] = ('', '')
    load_seconds: float | None = None

    def __init__(self):
        self._lock = threading.Lock()
        self._cache_lock = threading.Lock()
        self._cache: OrderedDict[bytes, list] = OrderedDict()
        self._bytes = 0
        self._closed = False
        self._counts = {'encoded': 0, 'reused': 0, 'seconds': 0.0}

    def load(self) -> None:
        """Load the encoder now instead of at the first picture.

        Raises:
            BackendError: It cannot be loaded.
            MissingDependency: A Python package is missing.
        """
        with self._lock:
            self._get_ready()

    @staticmethod
    def open_image(image: Any, urls: bool = True) -> Image.Image:
        """See `images.open_image`."""
        return open_image(image, urls)

    def encode(self, image: Any, urls: bool = True, stopped: Callable[[], bool] | None = None) -> Encoded:
        """Encode a picture, or return it from the cache.

        Args:
            image: See `images.open_image`.
            urls: See `images.open_image`.
            stopped: Asked now and then whether to stop. Encoders that cannot stop do not ask.

        Raises:
            ValueError: It is not a picture.
            EncodingStopped: `stopped()` became true.
            BackendError: The encoder cannot be loaded, or the model is closed.
        """
        picture = open_image(image, urls)
        digest = image_digest(picture)
        if (known := self._cached(digest)) is not None:  # without waiting for another picture
            return known
        with self._turn(stopped):  # a second caller with the same picture waits for the first and finds it
            if (known := self._cached(digest)) is not None:
                return known
            self._get_ready()
            begin = time.perf_counter()
            parts = self._encode(picture, digest, stopped)
            seconds = time.perf_counter() - begin
            self._counts['encoded'] += 1
            self._counts['seconds'] += seconds
            self._remember(digest, parts)
        return Encoded(parts, digest, seconds)

    @contextlib.contextmanager
    def _turn(self, stopped: Callable[[], bool] | None):
        """Hold the lock; waiting for it can be stopped."""
        while not self._lock.acquire(timeout=_PATIENCE if stopped else -1):
            if stopped is not None and stopped():
                raise EncodingStopped('the picture was not encoded: the turn was stopped')
        try:
            yield
        finally:
            self._lock.release()

    @property
    def stats(self) -> dict:
        """Counters: pictures `encoded` and `reused`, `seconds` of encoding, `cached` pictures and
        `cache_bytes`.
        """
        # Without the lock: loading and encoding hold it for seconds, and diagnostics must not wait.
        return {**self._counts, 'cached': len(self._cache), 'cache_bytes': self._bytes}

    def close(self) -> None:
        """Free the memory. You may call this twice."""
        with self._lock, self._cache_lock:
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

    def _cached(self, digest: bytes) -> Encoded | None:
        with self._cache_lock:
            if digest not in self._cache:
                return None
            self._cache.move_to_end(digest)
            self._counts['reused'] += 1
            return Encoded(self._cache[digest], digest)

    def _remember(self, digest: bytes, parts: list) -> None:
        with self._cache_lock:
            self._cache[digest] = parts
            self._bytes += _size(parts)
            while len(self._cache) > CACHE_IMAGES or (self._bytes > CACHE_BYTES and len(self._cache) > 1):
                self._bytes -= _size(self._cache.popitem(last=False)[1])

    def _span(self, rows, digest: bytes, part: int = 0, **options) -> EmbeddingSpan:
        """Return a span of rows [k, d], a torch tensor or an array.

        Its name is made of the picture, this encoder, and the number of the part in the picture.
        """
        array = np.ascontiguousarray(rows if isinstance(rows, np.ndarray) else to_array(rows))
        name = hashlib.blake2b(digest + self.fingerprint + part.to_bytes(4, 'big'), digest_size=16).digest()
        return EmbeddingSpan(array, name, **options)

    fingerprint: bytes = b''
    """Identifies the encoder, so that the embeddings of two encoders are never confused."""

    @abstractmethod
    def _load(self) -> None: ...

    @abstractmethod
    def _encode(self, picture: Image.Image, digest: bytes, stopped: Callable[[], bool] | None) -> list: ...

    @abstractmethod
    def _unload(self) -> None: ...


def to_array(rows) -> np.ndarray:
    """Return a torch tensor as float32 in host memory."""
    return rows.detach().float().cpu().numpy()


def _size(parts: list) -> int:
    return sum(part.nbytes for part in parts if isinstance(part, EmbeddingSpan))


def read_config(folder: str | Path) -> dict:
    """Return config.json of a checkpoint, {} if there is none.

    Raises:
        BackendError: It is not a JSON object.
    """
    return read_json(str(folder), 'config.json')
