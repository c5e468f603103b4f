"""Converts camera messages (sensor_msgs Image and CompressedImage) to RGB pixels.

Uses only the fields of the messages, so it needs no ROS. If cv_bridge is installed, it converts the encodings
that it supports; the code here returns the same pixels. Source of the encodings:
sensor_msgs/image_encodings.hpp; of the conversions: cv_bridge.cpp of vision_opencv. Depth (16UC1, 32FC1) has
no colours: it becomes grey from its nearest to its farthest value.
"""

from __future__ import annotations

import functools
import importlib
import re

import numpy as np

from ros2_nanochat.errors import require, shorten
from ros2_nanochat.vision import pixels

_COLOR = re.compile(r'(rgb|bgr|rgba|bgra)(8|16)\Z')
_BAYER = re.compile(r'bayer_(rggb|bggr|gbrg|grbg)(8|16)\Z')
_WORD = re.compile(r'\w+')
_MATRIX = re.compile(r'(8|16|32|64)[USF]C\d+\Z', re.IGNORECASE)
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
_MATRIX_COLORS = {'8UC3': 'bgr8', '8UC4': 'bgra8', '16UC3': 'bgr16', '16UC4': 'bgra16'}
_DEPTHS = {'16UC1': np.uint16, '32FC1': np.float32, '64FC1': np.float64}
_WITH_ALPHA = ('rgba8', 'bgra8', '8UC4', 'rgba16', 'bgra16', '16UC4')
_FLOATS = {'32FC3': np.float32, '32FC4': np.float32, '64FC3': np.float64, '64FC4': np.float64}
_GREYS = {'mono8': np.uint8, '8UC1': np.uint8, 'mono16': np.uint16}
ENCODINGS = (
    *(order + bits for bits in ('8', '16') for order in ('rgb', 'bgr', 'rgba', 'bgra')),
    *_GREYS,
    *_MATRIX_COLORS,
    *_DEPTHS,
    *_FLOATS,
    *_YUV_CODES,
    *('nv12', 'nv21', 'nv24'),
    *(f'bayer_{pattern}{bits}' for pattern in _BAYER_CODES for bits in (8, 16)),
)
"""Encodings of Image that `image_to_rgb` accepts, in upper or lower case. Matrices with three or four
channels are read as BGR and BGRA, as OpenCV makes them.
"""

_CANONICAL = {encoding.lower(): encoding for encoding in ENCODINGS}


def image_to_rgb(message) -> np.ndarray:
    """Convert a sensor_msgs/Image.

    Returns:
        RGB pixels, [h, w, 3] uint8; a view of the message's bytes where they hold them in another order.

    Raises:
        ValueError: The encoding is unknown, or the fields contradict each other.
        MissingDependency: The encoding needs OpenCV, which is not installed.
    """
    height, width = int(message.height), int(message.width)
    pixels.check_size(width, height)
    encoding = _CANONICAL.get(message.encoding.lower())
    if encoding is None:
        kind = 'unsupported' if _MATRIX.match(message.encoding) else 'unknown'
        raise ValueError(
            f'{kind} image encoding {shorten(message.encoding, 40)!r}; supported: {", ".join(ENCODINGS)}'
        )
    bridged = _through_cv_bridge(message)
    if bridged is not None:
        return bridged
    return _CONVERTERS[_kind(encoding)](message, encoding, width, height)


def compressed_to_rgb(message) -> np.ndarray:
    """Convert a sensor_msgs/CompressedImage.

    The text before `;` in `format` is the encoding before compression: a grey PNG or JPEG may hold a Bayer
    mosaic or depth. A truncated JPEG is accepted; the missing part is grey.

    Returns:
        RGB pixels, [h, w, 3] uint8.

    Raises:
        ValueError: It cannot be decoded.
    """
    name = f'the compressed image (format {shorten(message.format, 40)!r}, {len(message.data)} bytes)'
    form = message.format.lower()
    if 'compresseddepth' in form:
        raise ValueError(
            f'{name} is not supported: send the depth as an Image, or as "16UC1; png compressed"'
        )
    picture = pixels.decode(bytes(message.data), name, cut=True)
    before, _, target = form.partition('compressed')
    encoding = next(
        (word for word in _WORD.findall(before) if word in _CANONICAL or word.startswith('bayer_')), ''
    )
    if encoding.startswith('bayer_') and (mosaic := _mosaic(picture, target.strip())) is not None:
        if encoding not in _CANONICAL:
            raise ValueError(f'{name} has an unknown Bayer encoding; supported are those of 8 and 16 bits')
        return _demosaic(mosaic, encoding)
    encoding = _CANONICAL.get(encoding, '')
    if encoding in _DEPTHS and pixels.is_deep(picture):
        return _grey_to_rgb(_depth_to_8_bits(pixels.deep_pixels(picture)))
    if encoding in _WITH_ALPHA and picture.mode == 'RGBA':
        picture = picture.convert('RGB')  # alpha of a camera means nothing: Image drops it, too
    return np.asarray(pixels.upright_rgb(picture))


def _mosaic(picture, target: str) -> np.ndarray | None:
    """Return the Bayer mosaic that a picture holds; None if its sender converted it to `target`."""
    if target.startswith('mono'):
        return None
    if pixels.is_deep(picture):
        return pixels.deep_pixels(picture)
    if picture.mode in ('L', 'LA'):
        return np.asarray(picture.convert('L'))
    if target and not target.startswith('bayer'):
        return None
    colors = np.asarray(picture.convert('RGB'))  # WebP, for example, has no grey
    return colors[..., 0].copy() if (colors == colors[..., :1]).all() else None


def stamp_of(message) -> int:
    """Return the header's stamp in nanoseconds, 0 if it is not set."""
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def _kind(encoding: str) -> str:
    if _COLOR.match(encoding) or encoding in _MATRIX_COLORS:
        return 'color'
    if _BAYER.match(encoding):
        return 'bayer'
    for kind, encodings in (('yuv', _YUV_CODES), ('grey', _GREYS), ('depth', _DEPTHS), ('float', _FLOATS)):
        if encoding in encodings:
            return kind
    return encoding if encoding == 'nv24' else 'nv12'


def _through_cv_bridge(message) -> np.ndarray | None:
    if _kind(message.encoding.lower()) not in ('color', 'grey', 'bayer') or message.encoding[:1].isdigit():
        return None
    try:
        return None if (bridge := _cv_bridge()) is None else bridge.imgmsg_to_cv2(message, 'rgb8')
    except Exception:  # our own code handles it, or reports what is wrong
        return None


@functools.cache  # Python searches anew for a package that is missing: not for each frame
def _cv_bridge():
    try:
        return importlib.import_module('cv_bridge').CvBridge()
    except Exception:  # built for another NumPy, it fails with other errors than ImportError
        return None


def _rows(message, width: int, height: int, channels: int, dtype=np.uint8) -> np.ndarray:
    """Return [h, w, channels] in the machine's byte order, without the padding of the rows."""
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


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.broadcast_to(grey.reshape(grey.shape[0], grey.shape[1], 1), (*grey.shape[:2], 3))


def _depth_to_8_bits(depth: np.ndarray) -> np.ndarray:
    """Map depth to 1 (nearest) to 255 (farthest). 0 and values that are not finite (no measurement) stay
    black.
    """
    depth = depth.reshape(depth.shape[0], depth.shape[1]).astype(np.float64)
    valid = np.isfinite(depth) & (depth > 0)
    grey = np.zeros(depth.shape, np.uint8)
    if valid.any():
        near, far = depth[valid].min(), depth[valid].max()
        grey[valid] = np.rint(1 + 254 * (depth[valid] - near) / max(far - near, 1e-9))
    return grey


def _color(message, encoding: str, width: int, height: int) -> np.ndarray:
    order = _MATRIX_COLORS.get(encoding, encoding)
    bits = np.uint16 if order.endswith('16') else np.uint8
    order = order.rstrip('0123456789')
    rows = _rows(message, width, height, len(order), bits)[..., :3]
    found = pixels.to_8_bits(rows if order.startswith('rgb') else rows[..., ::-1])
    return found if len(order) == 3 else np.ascontiguousarray(found)


def _float(message, encoding: str, width: int, height: int) -> np.ndarray:
    rows = _rows(message, width, height, int(encoding[-1]), _FLOATS[encoding])[..., :3]
    return np.ascontiguousarray(pixels.to_8_bits(rows[..., ::-1]))


def _grey(message, encoding: str, width: int, height: int) -> np.ndarray:
    return _grey_to_rgb(pixels.to_8_bits(_rows(message, width, height, 1, _GREYS[encoding])))


def _depth(message, encoding: str, width: int, height: int) -> np.ndarray:
    return _grey_to_rgb(_depth_to_8_bits(_rows(message, width, height, 1, _DEPTHS[encoding])))


def _bayer(message, encoding: str, width: int, height: int) -> np.ndarray:
    bits = np.uint16 if encoding.endswith('16') else np.uint8
    return _demosaic(_rows(message, width, height, 1, bits)[..., 0], encoding)


def _demosaic(mosaic: np.ndarray, encoding: str) -> np.ndarray:
    if min(mosaic.shape) < 2:
        raise ValueError(
            f'a Bayer image has at least 2 x 2 pixels, not {mosaic.shape[1]} x {mosaic.shape[0]}'
        )
    cv2 = require('cv2', 'vision')
    return pixels.to_8_bits(cv2.cvtColor(mosaic, getattr(cv2, _BAYER_CODES[encoding[6:10]])))


def _yuv(message, encoding: str, width: int, height: int) -> np.ndarray:
    if width % 2:
        raise ValueError(f'{encoding} needs an even width, not {width}')
    cv2 = require('cv2', 'vision')
    return cv2.cvtColor(_rows(message, width, height, 2), getattr(cv2, _YUV_CODES[encoding]))


def _planes(
    message, width: int, height: int, chroma_rows: int, chroma_step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the brightness plane [h, w] and the colour plane [chroma_rows, chroma_step].

    `step` of the message is that of the brightness plane.
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


def _nv12(message, encoding: str, width: int, height: int) -> np.ndarray:
    if width % 2 or height % 2:
        raise ValueError(f'{encoding} needs an even width and height, not {width} x {height}')
    cv2 = require('cv2', 'vision')
    return cv2.cvtColor(
        np.concatenate(_planes(message, width, height, height // 2, width)),
        cv2.COLOR_YUV2RGB_NV12 if encoding == 'nv12' else cv2.COLOR_YUV2RGB_NV21,
    )


def _nv24(message, encoding: str, width: int, height: int) -> np.ndarray:
    cv2 = require('cv2', 'vision')
    brightness, colors = _planes(message, width, height, height, 2 * width)
    u_and_v = colors.reshape(height, width, 2)
    # OpenCV has no NV24, in which each pixel has its own colours: double the width, read it as YUY2, and take
    # every second pixel.
    packed = np.empty((height, 2 * width, 2), np.uint8)
    packed[..., 0] = np.repeat(brightness, 2, axis=1)
    packed[:, 0::2, 1] = u_and_v[..., 0]
    packed[:, 1::2, 1] = u_and_v[..., 1]
    return np.ascontiguousarray(cv2.cvtColor(packed, cv2.COLOR_YUV2RGB_YUY2)[:, ::2])


_CONVERTERS = dict(
    color=_color, float=_float, grey=_grey, depth=_depth, bayer=_bayer, yuv=_yuv, nv12=_nv12, nv24=_nv24
)
