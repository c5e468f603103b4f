"""Embeds pictures for a GGUF model with libmtmd, on a thread of its own.

llama.cpp's threads belong to the thread that calls it: with one thread for all robots there is one team of
them. They run at a lower priority than the model, so that a picture slows other replies down less.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from ros2_nanochat.backends.gguf.mmproj import Mmproj, check_mmproj, say_found, stretched_to, warn_of_unused
from ros2_nanochat.backends.gguf.mtmd import Mtmd
from ros2_nanochat.backends.image_embedder import ImageEmbedder, ImagePiece
from ros2_nanochat.config import ModelConfig
from ros2_nanochat.errors import BackendError, EncodingStopped, require
from ros2_nanochat.processor import cpus_of, physical_cores, restrict_thread
from ros2_nanochat.program import check_process

_PATIENCE = 0.02  # seconds between two looks at whether to stop
_NICENESS = 4  # above the process's own
_TRIAL, _TRIAL_OF_NARROW = 5.0, 1.0  # seconds that the encoding of one picture on trial may take
_TRIED = ((64, 64), (16, 16), (256, 64), (64, 256))  # pixels
_NARROW = (_TRIED[0], (1000, 10), (10, 1000), (5000, 50), (50, 5000))
_ODD = ((1, 1), (1, 100), (100, 1), (5000, 50), (50, 5000), (3000, 3000))
_WIDEST = 4  # times as long as wide are the pictures that a trial shows to be safe
_SMALL = 64 << 20  # bytes of weights; below that an encoding is too short to interrupt


class GGUFImages(ImageEmbedder):
    """The pictures of one opened model.

    Args:
        api: `llama_cpp.llama_cpp`.
        model: The `llama_model`.
        mmproj: The vision part.
        config: The options of the model.
        longest_piece: Returns how many rows with positions of their own go into the model at once.
    """

    def __init__(
        self, api: Any, model: Any, mmproj: Mmproj, config: ModelConfig, longest_piece: Callable[[], int]
    ):
        self._api, self._model, self._mmproj, self._config = api, model, mmproj, config
        self._longest_piece = longest_piece
        status = os.stat(mmproj.path)
        self._small = status.st_size < _SMALL
        self._side = stretched_to(mmproj.path)
        self.identity = (
            f'{os.path.basename(mmproj.path)} {status.st_size} {status.st_mtime_ns} {config.image_max_tokens}'
        )
        self._mtmd: Mtmd | None = None
        self._stop = False
        self._closed = False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._process = os.getpid()
        self._thread: threading.Thread | None = None  # started when it is first needed

    def load(self) -> None:
        self._call(self._opened)

    @property
    def markup(self) -> tuple[str, str]:
        if self._mtmd is not None:  # without waiting for a picture that is being encoded
            return self._mtmd.markup
        return ('', '') if self._mmproj.late else self._call(lambda: self._opened().markup)

    @property
    def largest_whole(self) -> int:
        """Rows of the largest piece that cannot be cut, 0 if all can."""
        return self._call(lambda: self._opened().largest_whole)

    def embed(self, pixels: np.ndarray, stopped: Callable[[], bool] | None = None) -> list[ImagePiece]:
        if self._side:
            pixels = _stretched(pixels, self._side)
        height, width = pixels.shape[:2]
        if self._mmproj.refuses_narrow and max(height, width) > _WIDEST * min(height, width):
            raise BackendError(
                f'a picture of {width}x{height} cannot be used: with this model, llama.cpp crashes on'
                f' pictures more than {_WIDEST} times as long as wide; crop it'
            )
        pieces = self._call(lambda: self._opened().pieces(pixels), stopped)
        return [part for piece in pieces for part in _cut(piece, self._longest_piece())]

    def try_pictures(self, narrow: bool = False) -> None:
        """Embed pictures of several shapes, if their pieces differ, to see whether libmtmd ends the process.

        A large encoder is stopped after a while, as on a slow CPU it can take minutes, but each picture is
        begun: what surprises llama.cpp is mostly the graph, or the first nodes of it.

        Args:
            narrow: Pictures that are more than `_WIDEST` times as long as wide.
        """
        if narrow and self._side:
            return  # they are stretched first
        mtmd = self._call(self._opened)
        for size in () if narrow else _ODD:
            with suppress(BackendError):
                self._call(lambda: mtmd.rows(*size))
        known = None
        for size in _NARROW if narrow else _TRIED:
            with suppress(BackendError):
                rows = self._call(lambda: mtmd.rows(*size))
                if rows != known:
                    known = known or rows
                    self._try(mtmd, *size, _TRIAL_OF_NARROW if narrow else _TRIAL)

    def _try(self, mtmd: Mtmd, width: int, height: int, limit: float) -> None:
        begun, until = mtmd.num_begun, time.monotonic() + limit
        pixels = np.zeros((height, width, 3), np.uint8)
        self._call(lambda: mtmd.pieces(pixels), lambda: mtmd.num_begun > begun and time.monotonic() > until)

    def close(self) -> None:
        """End what runs and free the memory. You may call this twice."""
        if self._closed:
            return
        self._closed = self._stop = True
        with self._starting:
            if self._thread is not None:
                self._jobs.put(None)
                self._thread.join()
        while not self._jobs.empty():  # whoever asked too late hears that the model is closed
            if (job := self._jobs.get()) is not None:
                job()
        if self._mtmd is not None:
            self._mtmd.close()

    # --- on the thread ---

    def _opened(self) -> Mtmd:
        if self._mtmd is None:
            self._mtmd = Mtmd(
                self._api,
                self._model,
                self._mmproj.path,
                self._config.threads or physical_cores(cpus_of(self._config.cpu_affinity)),
                bool(self._config.gpu_layers),
                self._config.image_max_tokens,
                None if self._small else lambda: self._stop,
            )
        return self._mtmd

    def _run(self) -> None:
        niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) + _NICENESS
        restrict_thread(min(niceness, 19), cpus_of(self._config.cpu_affinity))
        while (job := self._jobs.get()) is not None:
            job()

    def _call(self, action: Callable[[], Any], stopped: Callable[[], bool] | None = None) -> Any:
        """Run an action on the thread and return its result."""
        done, outcome = threading.Event(), []

        def job() -> None:
            try:
                if self._closed or (stopped is not None and stopped()):
                    raise EncodingStopped('the picture was not encoded: the turn was stopped')
                outcome.append(action())
            except BaseException as error:
                outcome.append(error)
            finally:
                done.set()

        check_process(self._process)
        with self._starting:
            if self._closed:
                raise BackendError('the model is closed')
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name='nanochat-images', daemon=True)
                self._thread.start()
            self._stop = False
            self._jobs.put(job)
        while not done.wait(None if stopped is None else _PATIENCE):
            self._stop = self._closed or stopped()  # type: ignore[misc]
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]


def open_images(
    api: Any, model: Any, found: Mmproj, config: ModelConfig, longest_piece: Callable[[], int]
) -> GGUFImages | None:
    """Open a vision part. One that is small waits for the first picture.

    Returns:
        None if a vision part that the user did not name cannot be opened; a warning says why.

    Raises:
        BackendError: The vision part that the user named cannot be opened.
    """
    images = None
    try:
        check_mmproj(found.path)
        images = GGUFImages(api, model, found, config, longest_piece)
        if not found.late:
            images.load()
            say_found(found)
        return images
    except BackendError as error:
        if images is not None:
            images.close()
        if found.asked:
            raise
        warn_of_unused(error)
        return None


def _cut(piece: ImagePiece, longest: int) -> list[ImagePiece]:
    """Cut a piece whose rows have positions or deeper layers into pieces of at most `longest` rows. All have
    the positions of the whole; what follows the picture starts behind the last.
    """
    if piece.rows is None or piece.bidirectional or (piece.positions is None and piece.deepstack is None):
        return [piece]
    count = len(piece.rows)
    parts = []
    for start in range(0, count, longest):
        end = min(start + longest, count)
        parts.append(
            ImagePiece(
                rows=piece.rows[start:end],
                positions=None if piece.positions is None else piece.positions[:, start:end],
                advance=None if piece.advance is None else piece.advance if end == count else 0,
                deepstack=None if piece.deepstack is None else piece.deepstack[:, start:end],
            )
        )
    return parts


def _stretched(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return a picture of side x side. The mean of blocks first: quicker than resizing a large frame."""
    image = require('PIL.Image', 'vision').fromarray(pixels)
    return np.asarray(image.resize((side, side), resample=3, reducing_gap=3.0))  # 3: bicubic
