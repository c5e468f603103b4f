"""Calls of libmtmd, the part of llama.cpp that embeds pictures: an mmproj file beside a loaded model, pixels
in, pieces of a prompt out.

Not thread-safe: `images` makes all calls on one thread. Reference: llama.cpp, tools/mtmd/mtmd.h.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ros2_nanochat.backends.gguf.mmproj import cannot_open
from ros2_nanochat.backends.gguf.process import LogLines
from ros2_nanochat.backends.gguf.row_breaks import RowBreaks
from ros2_nanochat.backends.image_embedder import ImagePiece
from ros2_nanochat.errors import BackendError, EncodingStopped, require

_MOST_NODES = 64  # of the graph that are computed between two looks at whether to stop
_LOOK_EVERY = 0.02  # seconds, if the nodes are small enough
_PROBE, _SMALL_PROBE = 64, 16  # pixels of a side
_LARGE = 4096
_FAR = 1000
_TOO_FEW = 'is less than image_min_pixels'
_REASONS = {
    'no image tokens produced': 'it is too small or too narrow for this model',
    'out of range': 'it is too narrow for this model',
}


class Mtmd:
    """One mmproj file that libmtmd has opened for a model.

    Args:
        api: `llama_cpp.llama_cpp`.
        model: The `llama_model`.
        path: The mmproj file.
        threads: CPU threads.
        use_gpu: Whether it runs on a GPU.
        max_tokens: Maximum number of tokens of a picture, if the model takes any size; None for its own.
        stopping: Asked while a picture is encoded whether to stop. None: an encoding is not interrupted.

    Raises:
        BackendError: It cannot be opened, or does not fit the model.
    """

    def __init__(
        self,
        api: Any,
        model: Any,
        path: str,
        threads: int,
        use_gpu: bool,
        max_tokens: int | None,
        stopping: Callable[[], bool] | None,
    ):
        self._lib = lib = require('llama_cpp.mtmd_cpp', 'gguf')
        self._api, self._stopping = api, stopping
        self._context = None
        self._vocab = api.llama_model_get_vocab(model)
        self._widths = api.llama_model_n_embd(model), api.llama_model_n_embd_inp(model)
        params = lib.mtmd_context_params_default()
        params.use_gpu, params.n_threads, params.print_timings = use_gpu, threads, False
        if max_tokens:
            params.image_max_tokens = max_tokens
        if stopping is not None:
            self._seen, self._nodes, self._looked = 0, 1, 0.0
            self._watch = type(params.cb_eval)(self._evaluated)  # kept as long as libmtmd may call it
            params.cb_eval = self._watch
        self._log = LogLines(api, lib.mtmd_helper_log_set)
        # kept, because the engine may run while a small one is opened late
        self._opening_log = log = LogLines(api, api.llama_log_set, lib.mtmd_helper_log_set)
        with log:
            self._context = lib.mtmd_init_from_file(os.fsencode(path), model, params)
            # fewer than the model's own minimum
            if not self._context and max_tokens and _TOO_FEW in log.reason():
                params.image_min_tokens = max_tokens
                self._context = lib.mtmd_init_from_file(os.fsencode(path), model, params)
        if not self._context:
            raise BackendError(cannot_open(path, log))
        self.num_begun = 0
        """Pieces whose encoding was begun."""
        try:
            self._find_facts(path)
        except BaseException:
            self.close()
            raise

    def _find_facts(self, path: str) -> None:
        lib = self._lib
        if not lib.mtmd_support_vision(self._context):
            raise BackendError(f'vision={path!r} holds no vision encoder: name the mmproj of a vision model')
        self._marker = lib.mtmd_get_marker(self._context)
        self._several_axes = lib.mtmd_decode_use_mrope(self._context)
        self._row_breaks = RowBreaks(path)
        try:
            self.markup = self._find_markup()
            """Markup before and after a picture, as text."""
            self._check_place()
        except BackendError as error:
            raise BackendError(f'vision={path!r} cannot be used: {error}') from None
        self.largest_whole = self._find_largest_whole()
        """Rows of the largest piece that cannot be cut, 0 if all can."""

    def _evaluated(self, tensor: Any, asks: bool, data: Any) -> bool:
        """Called by ggml for each node: whether to look behind it, and then whether to go on."""
        if asks:
            self._seen += 1
            return self._seen >= self._nodes
        now = time.perf_counter()
        paced = round(self._nodes * _LOOK_EVERY / max(now - self._looked, 1e-6))
        self._nodes = max(1, min(paced, 2 * self._nodes, _MOST_NODES))
        self._seen, self._looked = 0, now
        return not self._stopping()  # type: ignore[misc]

    # --- pictures ---

    def pieces(self, pixels: np.ndarray) -> list[ImagePiece]:
        """Return what represents a picture [h, w, 3] uint8 (RGB) in a prompt.

        Raises:
            BackendError: libmtmd does not take it.
            EncodingStopped: `stopping` returned true.
        """
        pixels = np.ascontiguousarray(pixels, np.uint8)
        height, width = pixels.shape[:2]
        with self._chunks(width, height, pixels) as chunks:
            return [self._piece(chunk, width, height) for chunk in chunks]

    def _piece(self, chunk: Any, width: int, height: int) -> ImagePiece:
        lib = self._lib
        if lib.mtmd_input_chunk_get_type(chunk) == lib.MTMD_INPUT_CHUNK_TYPE_TEXT:
            return ImagePiece(ids=self._ids(chunk))
        if self._stopped:
            raise EncodingStopped('the picture was not encoded: the turn was stopped')
        self._seen, self._nodes, self._looked = 0, 1, time.perf_counter()
        self.num_begun += 1
        with self._log:
            code = lib.mtmd_encode_chunk(self._context, chunk)
        if self._stopped:
            raise EncodingStopped('the picture was not encoded: the turn was stopped')
        if code:
            raise BackendError(f'a picture of {width}x{height} cannot be encoded: {self._log.reason()}')
        count = lib.mtmd_input_chunk_get_n_tokens(chunk)
        rows = np.ctypeslib.as_array(lib.mtmd_get_output_embd(self._context), (count, self._widths[1])).copy()
        self._row_breaks.fill(rows)
        if not np.isfinite(rows).all():
            raise BackendError(
                f'a picture of {width}x{height} cannot be used: the vision part returns values that are not'
                ' finite, so its file is damaged; download it again'
            )
        own, whole = self._widths
        deeper = (
            rows[:, own:].reshape(count, -1, own).swapaxes(0, 1) if whole % own == 0 < whole - own else None
        )
        positions = self._positions(chunk, count)
        return ImagePiece(
            rows=rows if deeper is None else np.ascontiguousarray(rows[:, :own]),
            positions=positions,
            advance=None if positions is None else lib.mtmd_input_chunk_get_n_pos(chunk),
            bidirectional=lib.mtmd_decode_use_non_causal(self._context, chunk),
            deepstack=None if deeper is None else np.ascontiguousarray(deeper),
        )

    @property
    def _stopped(self) -> bool:
        return self._stopping is not None and self._stopping()

    def _positions(self, chunk: Any, count: int) -> np.ndarray | None:
        """Positions [3, n] (time, height, width) relative to the start of the picture; None if it counts on
        by one, as text does: on all axes, or on the only one.
        """
        lib = self._lib
        if not self._several_axes:
            return None
        image = lib.mtmd_input_chunk_get_tokens_image(chunk)
        near, far = ((lib.mtmd_decoder_pos * count)() for _ in range(2))
        lib.mtmd_helper_image_get_decoder_pos(image, 0, near)
        lib.mtmd_helper_image_get_decoder_pos(image, _FAR, far)
        first, second = (
            np.frombuffer(each, np.uint32).reshape(count, 4).astype(np.int64) for each in (near, far)
        )
        if (second == _FAR + np.arange(count)[:, None]).all():
            return None
        first, second = (each[:, [0, 2, 1]] for each in (first, second))
        if (second - first != _FAR).any() or np.ptp(first[:, 0]):
            raise BackendError('it counts positions in a way that is not supported; use another model')
        return first.T

    def _ids(self, chunk: Any) -> tuple[int, ...]:
        count = ctypes.c_size_t()
        tokens = self._lib.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
        return tuple(token for token in tokens[: count.value] if token >= 0)  # -1: not in the vocabulary

    @contextmanager
    def _chunks(
        self, width: int, height: int, pixels: np.ndarray | None, before: bytes = b'', again: bool = False
    ) -> Iterator[list]:
        """The chunks of a picture; without pixels they only have their sizes. before: text that precedes it;
        again: the picture precedes it as well.
        """
        lib = self._lib
        data = None if pixels is None else pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap, chunks = lib.mtmd_bitmap_init(width, height, data), lib.mtmd_input_chunks_init()
        try:
            written = self._marker * again + before + self._marker
            text = lib.mtmd_input_text(written, len(written), False, True)
            bitmaps = (lib.mtmd_bitmap_p_ctypes * (1 + again))(*[bitmap] * (1 + again))
            with self._log:
                code = lib.mtmd_tokenize(self._context, chunks, ctypes.byref(text), bitmaps, 1 + again)
            if code:
                reason = self._log.reason()
                plain = next((plain for part, plain in _REASONS.items() if part in reason), reason)
                raise BackendError(f'a picture of {width}x{height} cannot be used: {plain}')
            yield [lib.mtmd_input_chunks_get(chunks, i) for i in range(lib.mtmd_input_chunks_size(chunks))]
        finally:
            lib.mtmd_input_chunks_free(chunks)
            lib.mtmd_bitmap_free(bitmap)

    # --- facts ---

    def _find_markup(self) -> tuple[str, str]:
        with suppress(BackendError):  # in one piece, if the model also cuts pictures into tiles
            return self._ends(_SMALL_PROBE)
        return self._ends(_PROBE)

    def _ends(self, side: int) -> tuple[str, str]:
        with self._chunks(side, side, np.zeros((side, side, 3), np.uint8)) as chunks:
            kinds = [self._lib.mtmd_input_chunk_get_type(chunk) for chunk in chunks]
            ends = [
                self._text(self._ids(chunks[i])) if kinds[i] == self._lib.MTMD_INPUT_CHUNK_TYPE_TEXT else ''
                for i in (0, -1)
            ]
        return ends[0], ends[1]

    def _check_place(self) -> None:
        """Check that a picture is the same wherever it stands: it is encoded once for all prompts."""
        pixels, seen = np.zeros((_PROBE, _PROBE, 3), np.uint8), []
        for before, again in ((b'', False), (b'a', False), (b'a b', False), (b'a b c', False), (b'a', True)):
            with self._chunks(_PROBE, _PROBE, pixels, before, again) as chunks:
                images = self._images(chunks)
                last = images[-(len(images) // (1 + again)) :]
                places = [self._positions(chunk, count) for chunk, count in last]
                seen.append([(n, None if at is None else at.tobytes()) for at, (_, n) in zip(places, last)])
        if any(each != seen[0] for each in seen):
            raise BackendError(
                'what this model makes of a picture depends on where it stands in the prompt, which is not'
                ' supported; use another model'
            )

    def _images(self, chunks: list) -> list[tuple[Any, int]]:
        """The chunks that are embeddings, and how many rows they have."""
        lib = self._lib
        return [
            (chunk, lib.mtmd_input_chunk_get_n_tokens(chunk))
            for chunk in chunks
            if lib.mtmd_input_chunk_get_type(chunk) != lib.MTMD_INPUT_CHUNK_TYPE_TEXT
        ]

    def _text(self, ids: tuple[int, ...]) -> str:
        buffer = ctypes.create_string_buffer(512)
        data = b''
        for token_id in ids:
            size = self._api.llama_token_to_piece(self._vocab, token_id, buffer, len(buffer), 0, True)
            data += buffer.raw[: max(0, size)]
        return data.decode('utf-8', 'replace')

    def _find_largest_whole(self) -> int:
        lib = self._lib
        if not lib.mtmd_decode_use_non_causal(self._context, None):
            return 0
        with self._chunks(_LARGE, _LARGE, None) as chunks:
            return max(count for _, count in self._images(chunks))

    def rows(self, width: int, height: int) -> set[int]:
        """Return how many rows the pieces of a picture have, without encoding it."""
        with self._chunks(width, height, np.zeros((height, width, 3), np.uint8)) as chunks:
            return {count for _, count in self._images(chunks)}

    def close(self) -> None:
        """Free the memory. You may call this twice."""
        if self._context:
            self._lib.mtmd_free(self._context)
            self._context = None
