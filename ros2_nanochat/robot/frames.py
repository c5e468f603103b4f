"""Chooses the image for a question: the images that came with it, or the camera's newest frame if it shows
something new.

Decodes the image and limits what one question may carry. Knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ros2_nanochat.errors import one_line
from ros2_nanochat.robot.freshness import is_too_old
from ros2_nanochat.robot.turn import Picture, Turn
from ros2_nanochat.vision.pixels import MAX_PIXELS

MAX_PICTURES = 16
"""Images that one question may carry."""

MAX_PICTURE_BYTES = 256 << 20
"""Bytes that these images may have together, as received. Their pixels are limited to `MAX_PIXELS`."""

_SAME_VIEW = 6.0  # mean difference of two thumbnails, of 255; above the noise of a camera


class NewestFrame(Protocol):
    """A source of camera frames. Can be used from any thread.

    Attributes:
        present: Whether anyone publishes images.
        expecting: Whether a first frame may arrive at any moment.
        newest: Returns the newest frame, None before the first.
        trouble: Returns why no frame arrives, '' if unknown.
    """

    @property
    def present(self) -> bool: ...
    @property
    def expecting(self) -> bool: ...
    def newest(self) -> Picture | None: ...
    def trouble(self) -> str: ...


def too_many_pictures(pictures: Sequence[Picture]) -> str:
    """Return why a question with these images is rejected without being read, '' if it is not."""
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
    """Chooses the images for one robot's questions.

    Args:
        camera: The source of frames. You may replace it at any time.

    Attributes:
        named: Returns the source of frames of a camera by name, None if there is no such camera.
        age: Age of the camera's frame when it was last used, in seconds.
    """

    def __init__(self, camera: NewestFrame | None = None):
        self.camera = camera
        self.named: Callable[[str], NewestFrame | None] = lambda name: None
        self.age: float | None = None
        self._seen: tuple[object, Picture, np.ndarray, bytes] | None = (
            None  # the message of the last camera image, the image, its thumbnail and digest
        )

    def forget(self) -> None:
        """Treat the next image as new."""
        self._seen = None

    def shown(self, message, picture: Picture, opened) -> None:
        """Record which message of the conversation shows the camera's image.

        Args:
            message: The message.
            picture: The frame.
            opened: The same, opened by the model.
        """
        self._seen = message, picture.freed(), thumbnail(np.asarray(opened)), opened.opened_digest

    def pictures(
        self, turn: Turn, history, unable: str | None, open_image: Callable[[np.ndarray], Any]
    ) -> list[tuple[Picture, Any]]:
        """Return the images for a question, decoded and opened.

        A problem with the camera's image becomes a note on the turn.

        Args:
            turn: The question.
            history: The messages so far.
            unable: Why the model cannot use images, None if it can.
            open_image: Opens an image like `NanoLLM.open_image`: returns a picture with its digest.

        Raises:
            ValueError: An image that came with the question cannot be used.
        """
        if turn.pictures:
            if unable is not None:
                raise ValueError(f'{unable}: ask without an image, or load a model that sees')
            turn.picture = turn.pictures[-1]
            return self._all(turn.pictures, open_image)
        if turn.cameras:
            return self._named(turn, unable, open_image)
        mode, camera = turn.options.image_mode, self.camera
        if mode == 'off' or camera is None or not camera.present:
            return []
        if unable is not None:
            turn.remark(f'the camera image was not used: {unable}')
            return []
        picture = self._usable(turn, camera)
        if picture is None:
            return []
        try:
            return self._if_new(turn, picture, mode, history, open_image)
        except Exception as error:  # a broken frame must not fail the question
            turn.picture = None
            turn.remark(f'the camera image was not used: {one_line(error)}')
            return []

    def _usable(self, turn: Turn, camera: NewestFrame) -> Picture | None:
        """Return the camera's newest frame; None, and a note on the turn, if none is new enough."""
        limit = turn.options.max_image_age
        picture = camera.newest()
        while _is_unusable(picture, limit) and camera.expecting and turn.stop_reason is None:
            time.sleep(0.02)  # only blocks the robot's own thread
            picture = camera.newest()
        if picture is None:
            trouble = camera.trouble()
            turn.remark('no image has come from the camera yet' + (f': {trouble}' if trouble else ''))
            return None
        self.age = picture.age
        if _is_unusable(picture, limit):
            reasons = '; '.join(filter(None, (picture.doubt, camera.trouble())))
            why = f': {reasons}' if reasons else ''
            turn.remark(
                f'the image was not used: it is {picture.age:.1f} s old (max_image_age: {limit:g}){why}'
            )
            return None
        if picture.doubt:
            turn.remark(f'the image came {picture.age:.1f} s ago, which counts as its age: {picture.doubt}')
        return picture

    def _named(self, turn: Turn, unable: str | None, open_image: Callable) -> list[tuple[Picture, Any]]:
        """Return the newest frames of the cameras that the question names."""
        if unable is not None:
            turn.remark(f'the images of {", ".join(turn.cameras)} were not used: {unable}')
            return []
        opened = []
        for name in turn.cameras:
            camera = self.named(name)
            if camera is None or not camera.present:
                turn.remark(f'nobody publishes images of the camera {name!r}')
                continue
            picture = self._usable(turn, camera)
            if picture is None:
                continue
            label = f'(camera {name})' if len(turn.cameras) > 1 else ''
            try:
                opened.append((replace(picture, label=label), open_image(picture.decode())))
                turn.picture = picture
            except Exception as error:  # a broken frame must not fail the question
                turn.remark(f'the image of the camera {name!r} was not used: {one_line(error)}')
        return opened

    @staticmethod
    def _all(pictures: Sequence[Picture], open_image: Callable) -> list[tuple[Picture, Any]]:
        if len(pictures) > 1:  # one has a reason of its own
            _check_together(sum(picture.count_pixels() for picture in pictures))
        opened, num_pixels = [], 0
        for picture in pictures:
            pixels = picture.decode()
            num_pixels += pixels.shape[0] * pixels.shape[1]
            _check_together(num_pixels)
            opened.append((picture, open_image(pixels)))
        return opened

    def _if_new(
        self, turn: Turn, picture: Picture, mode: str, history, open_image: Callable
    ) -> list[tuple[Picture, Any]]:
        """Return nothing if the conversation already shows this image."""
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
            # a still picture, or a driver that repeats a frame with new stamps
            return []
        if seen is not None and mode == 'changed' and _alike(thumbnail(np.asarray(opened)), seen[2]):
            turn.picture = seen[1]
            return []
        return [(picture, opened)]


def _check_together(num_pixels: int) -> None:
    if num_pixels > MAX_PIXELS:
        raise ValueError(
            f'the images of the question have more than {MAX_PIXELS:,} pixels together: send fewer or smaller'
            ' ones'
        )


def _is_unusable(picture: Picture | None, limit: float | None) -> bool:
    """Whether there is no frame, or only one that is too old."""
    return picture is None or is_too_old(picture.age, limit)


def _alike(thumbnail: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(thumbnail - other).mean() < _SAME_VIEW)


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Return [16, 16] float32 grey: the mean of blocks, which camera noise hardly changes."""
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
