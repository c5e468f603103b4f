"""`VideoSource`, the source of pictures in NanoLLM's vision example."""

from __future__ import annotations

import glob
import os
from typing import Any

from PIL import Image

from ros2_nanochat.compat.attributes import missing
from ros2_nanochat.compat.utils import ImageExtensions
from ros2_nanochat.errors import require
from ros2_nanochat.vision.images import open_image

_OTHERS = 'the ROS 2 node takes pictures from camera topics; speech belongs to other nodes, see docs/robot.md'


class VideoSource:
    """Pictures from image files, a video file, a camera or a stream, one at a time.

    Args:
        video_input: A folder, a pattern such as `/data/images/*.jpg`, a file, `/dev/video0`, or a URL.
        video_input_width: Width in pixels, requested from a camera.
        video_input_height: Height in pixels, requested from a camera.
        video_input_framerate: Pictures per second, requested from a camera.
        **options: Other options of NanoLLM are accepted and ignored.

    Raises:
        ValueError: There is nothing to open.
    """

    def __init__(
        self,
        video_input: str = '/dev/video0',
        video_input_width: int | None = None,
        video_input_height: int | None = None,
        video_input_framerate: float | None = None,
        **options: Any,
    ):
        self.resource = video_input
        pattern = os.path.join(video_input, '*') if os.path.isdir(video_input) else video_input
        names = sorted(glob.glob(pattern)) or ([pattern] if os.path.isfile(pattern) else [])
        self._files = [name for name in names if name.lower().endswith(ImageExtensions)]
        self._stream: Any = None
        self.eos = False
        if self._files:
            return
        if '*' in pattern:
            raise ValueError(f'no image file is named {pattern[:200]}')
        cv2 = require('cv2', 'vision')
        self._stream = cv2.VideoCapture(video_input)
        if not self._stream.isOpened():
            raise ValueError(
                f'video_input={video_input[:200]!r} cannot be opened: '
                'a folder, *.jpg, a video file, a camera, or an address'
            )
        for property_, value in (
            (cv2.CAP_PROP_FRAME_WIDTH, video_input_width),
            (cv2.CAP_PROP_FRAME_HEIGHT, video_input_height),
            (cv2.CAP_PROP_FPS, video_input_framerate),
        ):
            if value:
                self._stream.set(property_, value)

    def capture(self, **_: Any) -> Image.Image | None:
        """Return the next picture (PIL, RGB), None at the end. `eos` is true from the last image file on."""
        if self._stream is None:
            picture = open_image(self._files.pop(0)) if self._files else None
            self.eos = not self._files
            return picture
        there, frame = self._stream.read()
        self.eos = not there
        return Image.fromarray(frame[:, :, ::-1]) if there else None


def __getattr__(name: str):
    if name[:1].isupper():
        raise missing(__name__, name, _OTHERS)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
