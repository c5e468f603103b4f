"""`VideoSource`, the source of pictures in NanoLLM's vision example."""

from __future__ import annotations

import glob
import itertools
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from ros2_nanochat.compat.attributes import missing, to_tensor, warn_ignored
from ros2_nanochat.compat.utils import ImageExtensions
from ros2_nanochat.errors import one_line, require
from ros2_nanochat.vision.images import open_image

_OTHERS = 'the ROS 2 node takes pictures from camera topics; speech belongs to other nodes, see docs/robot.md'
_log = logging.getLogger('ros2_nanochat.compat')


class VideoSource:
    """Pictures from image files, a video file, a camera or a stream, one at a time.

    Args:
        video_input: A folder, a pattern such as `/data/images/*.jpg`, a file, `/dev/video0`, or a URL.
        video_input_width: Width in pixels, requested from a camera.
        video_input_height: Height in pixels, requested from a camera.
        video_input_framerate: Pictures per second, requested from a camera.
        loops: How many times to repeat the files; -1: forever.
        return_tensors: What `capture` returns: `cuda` for a PIL picture, `np` for an array [h, w, 3], `pt`
            for a tensor.
        **options: Other options of NanoLLM are accepted without effect. `video_input_codec` and
            `video_input_save` log a warning.

    Attributes:
        resource: `video_input`.
        eos: True with the last picture of a file or folder; for a camera or stream, once `capture`
            has returned None.

    Raises:
        ValueError: There is nothing to open.
    """

    def __init__(
        self,
        video_input: str = '/dev/video0',
        video_input_width: int | None = None,
        video_input_height: int | None = None,
        video_input_framerate: float | None = None,
        loops: int | None = None,
        return_tensors: str = 'cuda',
        **options: Any,
    ):
        warn_ignored(
            'VideoSource()',
            [name for name in ('video_input_codec', 'video_input_save') if options.get(name)],
        )
        self.resource = video_input
        self.eos = False
        self._return_tensors = return_tensors
        self._ended = False
        self._wanted = video_input_width, video_input_height, video_input_framerate
        pattern = os.path.join(video_input, '*') if os.path.isdir(video_input) else video_input
        names = sorted(glob.glob(pattern)) or ([pattern] if os.path.isfile(pattern) else [])
        files = [name for name in names if name.lower().endswith(ImageExtensions)]
        if not files and '*' in pattern:
            raise ValueError(f'no image file is named {pattern[:200]}')
        rounds = itertools.count() if loops and loops < 0 else range(1 + (loops or 0))
        # Files are read one picture ahead, so that `eos` is true with the last one. A camera is not: what it
        # shows would be old.
        self._reads_ahead = bool(files) or os.path.isfile(video_input)
        if files:
            self._pictures = _repeated(lambda: _opened(files), rounds)
        elif self._reads_ahead:
            self._pictures = _repeated(lambda: _frames(self._open_stream()), rounds)
        else:
            self._pictures = _frames(self._open_stream())
        self._following = next(self._pictures, None) if self._reads_ahead else None
        if self._reads_ahead and self._following is None:
            raise ValueError(f'video_input={video_input[:200]!r} contains no readable picture')

    @property
    def streaming(self) -> bool:
        """Whether there are further pictures."""
        return not self.eos

    def capture(self, return_tensors: str | None = None, **_: Any) -> Any:
        """Return the next picture, None at the end. `eos` is true with the last picture of files.

        Args:
            return_tensors: See `VideoSource`.

        Raises:
            ValueError: It was called again after the end.
        """
        if self._ended:
            raise ValueError(f'video_input={self.resource[:200]!r} has ended')
        picture = following = next(self._pictures, None)
        if self._reads_ahead:
            picture, self._following = self._following, following
        self.eos = following is None
        self._ended = picture is None
        kind = return_tensors or self._return_tensors
        return picture if picture is None or kind == 'cuda' else to_tensor(np.array(picture), kind)

    def _open_stream(self) -> Any:
        cv2 = require('cv2', 'vision')
        stream = cv2.VideoCapture(self.resource)
        if not stream.isOpened():
            raise ValueError(
                f'video_input={self.resource[:200]!r} cannot be opened: '
                'a folder, *.jpg, a video file, a camera, or an address'
            )
        properties = cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS
        for name, value in zip(properties, self._wanted):
            if value:
                stream.set(name, value)
        return stream


def _repeated(pictures, rounds) -> Iterator[Image.Image]:
    """Yield the pictures of each round. Stops after a round without pictures."""
    for _ in rounds:
        empty = True
        for picture in pictures():
            empty = False
            yield picture
        if empty:
            return


def _opened(names: list[str]) -> Iterator[Image.Image]:
    """Pictures of files. Those that cannot be opened are skipped, as in NanoLLM."""
    for name in names:
        try:
            yield open_image(name)
        except ValueError as error:
            _log.warning('%s is skipped: %s', name[:200], one_line(error, 200))


def _frames(stream: Any) -> Iterator[Image.Image]:
    while True:
        there, frame = stream.read()
        if not there:
            return
        yield Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1]))


def __getattr__(name: str):
    if name[:1].isupper():
        raise missing(__name__, name, _OTHERS)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
