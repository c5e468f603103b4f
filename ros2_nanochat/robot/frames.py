"""Which image goes with a question: those that came with it, or the camera's newest where it shows something
new. Decodes it, bounds what one question may carry, and knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.turn import Picture, Turn
from ros2_nanochat.vision.pixels import MAX_PIXELS

MAX_PICTURES = 16
"""Images that one question may carry."""

MAX_PICTURE_BYTES = 256 << 20
"""Bytes that they may have together, as they came. Together they may also have `MAX_PIXELS` pixels."""

_SAME_VIEW = 6.0  # mean difference of two small grey pictures, of 255; camera noise stays well under it


class NewestFrame(Protocol):
    """Where frames come from; any thread. present: whether somebody sends images. expecting: whether a first
    one may come any moment. trouble: why none comes, '' if that is not known.
    """

    @property
    def present(self) -> bool: ...
    @property
    def expecting(self) -> bool: ...
    def newest(self) -> Picture | None: ...
    def trouble(self) -> str: ...


def too_many_pictures(pictures: Sequence[Picture]) -> str:
    """Why a question with these images is not even read; '' if it may."""
    if len(pictures) > MAX_PICTURES:
        return (
            f'the question carries {len(pictures)} images, and at most {MAX_PICTURES} are taken: send fewer'
        )
    size = sum(picture.num_bytes for picture in pictures)
    if size > MAX_PICTURE_BYTES:
        return (
            f'the images of the question have {size:,} bytes, and at most {MAX_PICTURE_BYTES:,} are taken:'
            ' send fewer, smaller or compressed ones'
        )
    return ''


class CameraFrames:
    """One robot's. camera: may be exchanged at any time. age: of the camera's frame when it was last looked
    at, in seconds.
    """

    def __init__(self, camera: NewestFrame | None = None):
        self.camera = camera
        self.age: float | None = None
        self._seen: tuple[object, Picture, np.ndarray, bytes] | None = (
            None  # the message of the last camera image, the image, its thumbnail and digest
        )

    def forget(self) -> None:
        """Take the next image as new."""
        self._seen = None

    def shown(self, message, picture: Picture, opened) -> None:
        """Tell which message of the conversation shows the camera's image."""
        self._seen = message, picture.freed(), thumbnail(np.asarray(opened)), opened.opened_digest

    def pictures(
        self, turn: Turn, history, unable: str | None, open_image: Callable[[np.ndarray], Any]
    ) -> list[tuple[Picture, Any]]:
        """The images that go with a question, decoded and opened. ValueError if one that came with it cannot
        be used; what is wrong with the camera's is a note on the turn.

        Args:
            turn: the question.
            history: messages so far.
            unable: why the model cannot use images, None if it can.
            open_image: as `NanoLLM.open_image`: gives a picture with its digest.
        """
        if turn.pictures:
            if unable is not None:
                raise ValueError(f'{unable}: ask without an image, or load a model that sees')
            turn.picture = turn.pictures[-1]
            return self._all(turn.pictures, open_image)
        mode, camera = turn.options.image_mode, self.camera
        if mode == 'off' or camera is None or not camera.present:
            return []
        if unable is not None:
            turn.remark(f'the camera image was not used: {unable}')
            return []
        limit = turn.options.max_image_age
        picture = camera.newest()
        while _is_unusable(picture, limit) and camera.expecting and turn.stop_reason is None:
            time.sleep(0.02)  # of the robot's own thread
            picture = camera.newest()
        if picture is None:
            trouble = camera.trouble()
            turn.remark('no image has come from the camera yet' + (f': {trouble}' if trouble else ''))
            return []
        self.age = picture.age
        if _is_unusable(picture, limit):
            doubt = f': {picture.doubt}' if picture.doubt else ''
            turn.remark(
                f'the image was not used: it is {picture.age:.1f} s old (max_image_age: {limit:g}){doubt}'
            )
            return []
        if picture.doubt:
            turn.remark(f'the image came {picture.age:.1f} s ago, which counts as its age: {picture.doubt}')
        try:
            return self._if_new(turn, picture, mode, history, open_image)
        except Exception as error:  # what comes from a camera may be wrong in any way; the question goes on
            turn.picture = None
            turn.remark(f'the camera image was not used: {one_line(error)}')
            return []

    @staticmethod
    def _all(pictures: Sequence[Picture], open_image: Callable) -> list[tuple[Picture, Any]]:
        opened, num_pixels = [], 0
        for picture in pictures:
            pixels = picture.decode()
            num_pixels += pixels.shape[0] * pixels.shape[1]
            if num_pixels > MAX_PIXELS:
                raise ValueError(
                    f'the images of the question have more than {MAX_PIXELS:,} pixels together: send fewer'
                    ' or smaller ones'
                )
            opened.append((picture, open_image(pixels)))
        return opened

    def _if_new(
        self, turn: Turn, picture: Picture, mode: str, history, open_image: Callable
    ) -> list[tuple[Picture, Any]]:
        """Nothing where the conversation already shows this image: the question is then about that one."""
        seen = (
            self._seen
            if self._seen is not None and any(message is self._seen[0] for message in history)
            else None
        )
        turn.picture = picture
        if seen is not None and picture.number and picture.number == seen[1].number:
            return []
        opened = open_image(picture.decode())
        if seen is not None and opened.opened_digest == seen[3]:
            # a camera that shows a still picture, or a driver that repeats a frame under new stamps
            return []
        if seen is not None and mode == 'changed' and _alike(thumbnail(np.asarray(opened)), seen[2]):
            turn.picture = seen[1]
            return []
        return [(picture, opened)]


def _is_unusable(picture: Picture | None, limit: float | None) -> bool:
    """Whether there is none, or one that is too old."""
    return picture is None or (limit is not None and picture.age is not None and picture.age > limit)


def _alike(thumbnail: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(thumbnail - other).mean() < _SAME_VIEW)


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """[16, 16] float32 grey: the mean of blocks, which camera noise hardly moves."""
    small = (
        pixels[:: max(1, pixels.shape[0] // 128), :: max(1, pixels.shape[1] // 128)]
        .astype(np.float32)
        .mean(axis=2)
    )
    rows = np.minimum(np.linspace(0, small.shape[0], 17).astype(int)[:-1], small.shape[0] - 1)
    columns = np.minimum(np.linspace(0, small.shape[1], 17).astype(int)[:-1], small.shape[1] - 1)
    sums = np.add.reduceat(np.add.reduceat(small, rows, axis=0), columns, axis=1)
    counts = np.add.reduceat(np.add.reduceat(np.ones_like(small), rows, axis=0), columns, axis=1)
    return sums / counts
