"""Drawn scenes with known truth for standing questions: a still ground with texture, small things that come,
go, move and change colour, and what a camera adds to that: noise, flicker of light, compression.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def ground(rng: np.random.Generator, width: int = 640, height: int = 480) -> np.ndarray:
    """A room: soft light, and boxes of all colours. [h, w, 3] float32."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    picture = (60 + 100 * y + 40 * x)[..., None] * np.float32([1.0, 0.95, 0.9])
    for _ in range(25):
        w, h = rng.integers(8, width // 4), rng.integers(8, height // 4)
        left, top = rng.integers(0, width - w), rng.integers(0, height - h)
        picture[top : top + h, left : left + w] = rng.uniform(20, 235, 3)
    return picture


def with_thing(
    picture: np.ndarray, left: int, top: int, size: int, color: tuple[float, float, float]
) -> np.ndarray:
    """The picture with a square thing in it."""
    changed = picture.copy()
    changed[top : top + size, left : left + size] = color
    return changed


def contrast(picture: np.ndarray, left: int, top: int, size: int, color) -> float:
    """How much a thing differs from what is behind it, 0 to 255, in its most different colour."""
    behind = picture[top : top + size, left : left + size].mean(axis=(0, 1))
    return float(np.abs(behind - np.asarray(color)).max())


def seen(
    picture: np.ndarray,
    rng: np.random.Generator,
    noise: float = 4.0,
    light: float = 1.0,
    shot: bool = False,
    quality: int | None = None,
    flicker: float = 0.0,
    shake: int = 0,
) -> np.ndarray:
    """The picture as a camera gives it, [h, w, 3] uint8.

    Args:
        picture: What is there.
        rng: The noise.
        noise: Standard deviation of the noise at half brightness.
        light: Factor of all light.
        shot: The noise grows with the root of brightness, as that of photons does.
        quality: Of JPEG; None for none.
        flicker: By how much more or less light there may be at this moment, as a factor.
        shake: By how many pixels the camera may be off its place at this moment.
    """
    if shake:
        left, top = rng.integers(0, 2 * shake + 1, 2)
        wider = np.pad(picture, ((shake, shake), (shake, shake), (0, 0)), 'edge')
        picture = wider[top : top + len(picture), left : left + picture.shape[1]]
    lit = picture * np.float32(light * rng.uniform(1 - flicker, 1 + flicker))
    deviation = noise * np.sqrt(lit.clip(0) / 128) if shot else noise
    pixels = (lit + rng.standard_normal(lit.shape, np.float32) * deviation).clip(0, 255).astype(np.uint8)
    if quality is None:
        return pixels
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', quality=quality)
    return np.asarray(Image.open(io.BytesIO(file.getvalue())))
