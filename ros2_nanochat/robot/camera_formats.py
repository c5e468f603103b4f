"""Camera messages to RGB pixels: sensor_msgs Image and CompressedImage as cameras and their drivers send
them.

Knows only the fields of the messages, so it needs no ROS. Where cv_bridge is installed it does the work for
the encodings it knows; the code here gives the same pixels (encodings: sensor_msgs/image_encodings.hpp; what
converts to what: cv_bridge.cpp of vision_opencv). Depth (16UC1, 32FC1) has no colours: it becomes grey from
its nearest to its farthest value.
"""

from __future__ import annotations

import io
import re

import numpy as np

from ros2_nanochat.errors import require

MAX_PIXELS = 64_000_000
_COLOR = re.compile(r'(rgb|bgr|rgba|bgra)(8|16)\Z')
_BAYER = re.compile(r'bayer_(rggb|bggr|gbrg|grbg)(8|16)\Z')
_GENERIC = re.compile(r'8UC([134])\Z')
# OpenCV names a Bayer pattern by the second row's second and third pixel, ROS by the first row's first two.
_BAYER_CODES = {
    'rggb': 'COLOR_BayerBG2RGB',
    'bggr': 'COLOR_BayerRG2RGB',
    'gbrg': 'COLOR_BayerGR2RGB',
    'grbg': 'COLOR_BayerGB2RGB',
}
_YUV_CODES = {
    'yuv422': 'COLOR_YUV2RGB_UYVY',
    'uyvy': 'COLOR_YUV2RGB_UYVY',
    'yuv422_yuy2': 'COLOR_YUV2RGB_YUY2',
    'yuyv': 'COLOR_YUV2RGB_YUY2',
}
ENCODINGS = (
    'rgb8',
    'bgr8',
    'rgba8',
    'bgra8',
    'rgb16',
    'bgr16',
    'rgba16',
    'bgra16',
    'mono8',
    'mono16',
    '8UC1',
    '8UC3',
    '8UC4',
    '16UC1',
    '32FC1',
    'yuv422',
    'uyvy',
    'yuv422_yuy2',
    'yuyv',
    'nv21',
    'nv24',
    *(f'bayer_{p}{b}' for p in _BAYER_CODES for b in (8, 16)),
)
"""Encodings of Image that `image_to_rgb` takes. 8UC3 and 8UC4 are read as bgr8 and bgra8, which is what
OpenCV makes.
"""


def image_to_rgb(message) -> np.ndarray:
    """[h, w, 3] uint8 RGB of a sensor_msgs/Image; ValueError where its fields do not fit each other or its
    encoding is unknown.
    """
    height, width = int(message.height), int(message.width)
    _check_size(width, height)
    if message.encoding not in ENCODINGS:
        raise ValueError(f'unknown image encoding {message.encoding[:40]!r}; known: {", ".join(ENCODINGS)}')
    bridged = _through_cv_bridge(message)
    if bridged is not None:
        return bridged
    return _CONVERTERS[_kind(message.encoding)](message, width, height)


def compressed_to_rgb(message) -> np.ndarray:
    """[h, w, 3] uint8 RGB of a sensor_msgs/CompressedImage (JPEG, PNG); ValueError where it cannot be
    decoded.
    """
    data = bytes(message.data)
    if not data:
        raise ValueError('the compressed image is empty')
    if 'compressedDepth' in message.format:
        raise ValueError(
            'compressedDepth is not supported: send the depth as an Image, or as "16UC1; png compressed"'
        )
    image_class = require('PIL.Image', 'vision')
    try:
        picture = image_class.open(io.BytesIO(data), formats=('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF'))
        _check_size(*picture.size)
        picture.load()
    except ValueError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on broken files
        reason = (
            'it is no JPEG or PNG' if type(error).__name__ == 'UnidentifiedImageError' else str(error)[:120]
        )
        raise ValueError(
            f'the compressed image (format {message.format[:40]!r}, {len(data)} bytes) cannot be decoded:'
            f' {reason}'
        ) from error
    if picture.mode.startswith('I') or picture.mode == 'F':
        grey = np.asarray(picture)
        return _grey_to_rgb(
            _depth_to_8_bits(grey)
            if message.format.startswith(('16UC1', '32FC1'))
            else _to_8_bits(grey.astype(np.uint16))
        )
    return np.asarray(picture.convert('RGB'))


def stamp_of(message) -> int:
    """Nanoseconds of the header's stamp; 0 where it is not set."""
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f'the image has no pixels: {width} x {height}')
    if width * height > MAX_PIXELS:
        raise ValueError(
            f'the image is too large: {width} x {height}, at most {MAX_PIXELS // 1_000_000} megapixels'
        )


def _kind(encoding: str) -> str:
    if _COLOR.match(encoding) or encoding in ('8UC3', '8UC4'):
        return 'color'
    if _BAYER.match(encoding):
        return 'bayer'
    if encoding in _YUV_CODES:
        return 'yuv'
    return {'mono8': 'grey', 'mono16': 'grey', '8UC1': 'grey', '16UC1': 'depth', '32FC1': 'depth'}.get(
        encoding, encoding
    )


def _through_cv_bridge(message) -> np.ndarray | None:
    if _kind(message.encoding) not in ('color', 'grey', 'bayer') or message.encoding.startswith('8UC'):
        return None
    try:
        from cv_bridge import CvBridge
    except ImportError:
        return None
    try:
        return CvBridge().imgmsg_to_cv2(message, 'rgb8')
    except Exception:  # our own code then says what is wrong, or does what cv_bridge does not
        return None


def _rows(message, width: int, height: int, channels: int, dtype=np.uint8) -> np.ndarray:
    """[h, w, channels] in the machine's byte order, without the padding of the rows."""
    dtype = np.dtype(dtype)
    used, step = width * channels * dtype.itemsize, int(message.step)
    if step < used:
        raise ValueError(
            f'the image does not fit itself: step {step} is less than the {used} bytes of a row of {width}'
            f' pixels in {message.encoding}'
        )
    data = np.frombuffer(message.data, np.uint8)
    if len(data) < step * height:
        raise ValueError(
            f'the image does not fit itself: {len(data)} bytes, and {height} rows of {step} are'
            f' {step * height}'
        )
    rows = np.ascontiguousarray(data[: step * height].reshape(height, step)[:, :used])
    if dtype.itemsize > 1:
        rows = rows.view(dtype.newbyteorder('>' if message.is_bigendian else '<')).astype(dtype)
    return rows.reshape(height, width, channels)


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    return np.rint(pixels / 257.0).astype(np.uint8) if pixels.dtype == np.uint16 else pixels


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.reshape(grey.shape[0], grey.shape[1], 1), 3, axis=2)


def _depth_to_8_bits(depth: np.ndarray) -> np.ndarray:
    """0 and what is not finite (nothing measured) stays black; the rest goes from 1 (nearest) to 255
    (farthest).
    """
    depth = depth.reshape(depth.shape[0], depth.shape[1]).astype(np.float64)
    valid = np.isfinite(depth) & (depth > 0)
    grey = np.zeros(depth.shape, np.uint8)
    if valid.any():
        near, far = depth[valid].min(), depth[valid].max()
        grey[valid] = np.rint(1 + 254 * (depth[valid] - near) / max(far - near, 1e-9))
    return grey


def _color(message, width: int, height: int) -> np.ndarray:
    name = {'8UC3': 'bgr8', '8UC4': 'bgra8'}.get(message.encoding, message.encoding)
    order, bits = _COLOR.match(name).groups()
    pixels = _rows(message, width, height, len(order), np.uint8 if bits == '8' else np.uint16)[..., :3]
    return np.ascontiguousarray(_to_8_bits(pixels if order.startswith('rgb') else pixels[..., ::-1]))


def _grey(message, width: int, height: int) -> np.ndarray:
    return _grey_to_rgb(
        _to_8_bits(_rows(message, width, height, 1, np.uint16 if message.encoding == 'mono16' else np.uint8))
    )


def _depth(message, width: int, height: int) -> np.ndarray:
    return _grey_to_rgb(
        _depth_to_8_bits(
            _rows(message, width, height, 1, np.uint16 if message.encoding == '16UC1' else np.float32)
        )
    )


def _bayer(message, width: int, height: int) -> np.ndarray:
    pattern, bits = _BAYER.match(message.encoding).groups()
    if width < 2 or height < 2:
        raise ValueError(f'a Bayer image has at least 2 x 2 pixels, not {width} x {height}')
    cv2 = require('cv2', 'vision')
    mosaic = _rows(message, width, height, 1, np.uint8 if bits == '8' else np.uint16)
    return _to_8_bits(cv2.cvtColor(mosaic[..., 0], getattr(cv2, _BAYER_CODES[pattern])))


def _yuv(message, width: int, height: int) -> np.ndarray:
    if width % 2:
        raise ValueError(f'{message.encoding} needs an even width, not {width}')
    cv2 = require('cv2', 'vision')
    return cv2.cvtColor(_rows(message, width, height, 2), getattr(cv2, _YUV_CODES[message.encoding]))


def _planes(
    message, width: int, height: int, chroma_rows: int, chroma_step: int
) -> tuple[np.ndarray, np.ndarray]:
    """The plane of brightness [h, w], and that of colours [chroma_rows, used]; a camera says the step of the
    first.
    """
    step = int(message.step) or width
    if step < width:
        raise ValueError(
            f'the image does not fit itself: step {step} is less than its width of {width} in'
            f' {message.encoding}'
        )
    scale = chroma_step // width
    needed = step * height + step * scale * chroma_rows
    data = np.frombuffer(message.data, np.uint8)
    if len(data) < needed:
        raise ValueError(
            f'the image does not fit itself: {len(data)} bytes, and {width} x {height} in {message.encoding}'
            f' with a step of {step} are {needed}'
        )
    brightness = data[: step * height].reshape(height, step)[:, :width]
    return brightness, data[step * height : needed].reshape(chroma_rows, step * scale)[:, :chroma_step]


def _nv21(message, width: int, height: int) -> np.ndarray:
    if width % 2 or height % 2:
        raise ValueError(f'nv21 needs an even width and height, not {width} x {height}')
    cv2 = require('cv2', 'vision')
    return cv2.cvtColor(
        np.concatenate(_planes(message, width, height, height // 2, width)), cv2.COLOR_YUV2RGB_NV21
    )


def _nv24(message, width: int, height: int) -> np.ndarray:
    cv2 = require('cv2', 'vision')
    brightness, colors = _planes(message, width, height, height, 2 * width)
    u_and_v = colors.reshape(height, width, 2)
    # Each pixel has colours of its own here: doubled in width, it is YUY2 whose every second pixel is the
    # wanted one.
    packed = np.empty((height, 2 * width, 2), np.uint8)
    packed[..., 0] = np.repeat(brightness, 2, axis=1)
    packed[:, 0::2, 1] = u_and_v[..., 0]
    packed[:, 1::2, 1] = u_and_v[..., 1]
    return np.ascontiguousarray(cv2.cvtColor(packed, cv2.COLOR_YUV2RGB_YUY2)[:, ::2])


_CONVERTERS = {
    'color': _color,
    'grey': _grey,
    'depth': _depth,
    'bayer': _bayer,
    'yuv': _yuv,
    'nv21': _nv21,
    'nv24': _nv24,
}
