"""Draws pictures of one simple object, for the training, the tests and the demo camera of the tiny vision
model.

Knows nothing of models; needs only PIL and NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLORS = {
    'red': (230, 20, 20),
    'green': (20, 180, 40),
    'blue': (30, 50, 230),
    'yellow': (245, 225, 30),
    'white': (250, 250, 250),
    'black': (10, 10, 10),
}
"""RGB values of the colours, before variation."""

_SHADES = {
    'red': ((190, 255), (0, 60), (0, 60)),
    'green': ((0, 80), (120, 255), (0, 80)),
    'blue': ((0, 80), (0, 110), (170, 255)),
    'yellow': ((220, 255), (200, 255), (0, 90)),
    'white': ((235, 255),) * 3,
    'black': ((0, 30),) * 3,
}
SHAPES = ('circle', 'square', 'triangle')
PLACES = ('left', 'right', 'top', 'bottom', 'center')
LABELS = (tuple(COLORS), SHAPES, PLACES)
STANDING_QUESTIONS = {
    'color': ('What color is the object?', 'The object is {}.', ('red', 'green', 'blue', 'yellow')),
    'shape': ('What shape is the object?', 'The object is a {}.', ('circle', 'square', 'triangle')),
    'place': (
        'Where is the object?',
        'The object is {}.',
        ('on the left', 'on the right', 'at the top', 'at the bottom'),
    ),
}
"""Of each question: what is asked, the sentence of its answers, and the words in it that are watched for."""

_CONTRAST = 120
"""Least distance in RGB between the object and any of its background."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        color: A key of `COLORS`.
        shape: One of `SHAPES`.
        place: One of `PLACES`.
        size: Diameter as a fraction of the picture's shorter side.
        x: Centre of the object as a fraction of the width.
        y: Centre of the object as a fraction of the height.
    """

    color: str
    shape: str
    place: str
    size: float
    x: float
    y: float

    def __str__(self) -> str:
        where = (
            'in the center'
            if self.place == 'center'
            else f'at the {self.place}'
            if self.place in ('top', 'bottom')
            else f'on the {self.place}'
        )
        return f'a {self.color} {self.shape} {where}'


def random_scene(
    rng: np.random.Generator, width: int, height: int, size: tuple[float, float] = (0.25, 0.4), **wanted: str
) -> Scene:
    """Return a random scene.

    Args:
        rng: The random generator.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        size: Smallest and largest diameter, as fractions of the shorter side.
        **wanted: `color`, `shape` or `place` that the scene must have.
    """
    color, shape, place = (
        wanted.get(name) or labels[rng.integers(len(labels))]
        for name, labels in zip(('color', 'shape', 'place'), LABELS)
    )
    diameter = rng.uniform(*size)
    half_x, half_y = (0.5 * diameter * min(width, height) / side for side in (width, height))
    if place == 'center':
        x, y = 0.5 + rng.uniform(-0.08, 0.08, 2)
    else:
        half = half_x if place in ('left', 'right') else half_y
        off = rng.uniform(min(0.2, 0.5 - half), max(0.2, 0.5 - half))
        aside = rng.uniform(-0.6, 0.6) * off
        sign = -1 if place in ('left', 'top') else 1
        x, y = (
            (0.5 + sign * off, 0.5 + aside) if place in ('left', 'right') else (0.5 + aside, 0.5 + sign * off)
        )
    x, y = np.clip(x, half_x, 1 - half_x), np.clip(y, half_y, 1 - half_y)
    return Scene(color, shape, place, diameter, float(x), float(y))


def random_background(
    rng: np.random.Generator, width: int, height: int, color: tuple[int, ...]
) -> np.ndarray:
    """Return a plain or slightly uneven background [height, width, 3] uint8 that contrasts with `color`."""
    kind = rng.integers(4)
    yy, xx = (
        np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        if height > 1 and width > 1
        else np.zeros((2, height, width), np.float32)
    )
    for _ in range(100):
        base = np.full(3, rng.uniform(0, 255)) if kind < 2 else rng.uniform(0, 255, 3)
        if kind == 2:
            base = 0.75 * base.mean() + 0.25 * base
        unevenness = rng.uniform(0, 25, 3) if rng.random() < 0.5 else np.zeros(3)
        angle = rng.uniform(0, 2 * np.pi)
        if np.linalg.norm(base - color) - np.linalg.norm(unevenness) >= _CONTRAST:
            break
    else:
        base, unevenness = np.full(3, 128.0), np.zeros(3)
    slope = np.cos(angle) * xx + np.sin(angle) * yy
    if rng.random() < 0.3:
        slope = 1 - (xx**2 + yy**2)
    picture = base.astype(np.float32) + slope[..., None].clip(-1, 1) * unevenness.astype(np.float32)
    if rng.random() < 0.4:
        picture += rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(1, 6))
    return picture.clip(0, 255).astype(np.uint8)


def outline(scene: Scene, width: int, height: int, tilt: float = 0.0) -> list[tuple[float, float]]:
    """Return the corners of the object in pixels; for a circle, those of its bounding box.

    Args:
        scene: The scene.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        tilt: Rotation in radians.
    """
    radius = 0.5 * scene.size * min(width, height)
    x, y = scene.x * width, scene.y * height
    if scene.shape == 'circle':
        return [(x - radius, y - radius), (x + radius, y + radius)]
    corners: list[tuple[float, float]]
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)] if scene.shape == 'square' else [(0, -1), (1, 1), (-1, 1)]
    if scene.shape == 'square' and tilt:
        corners = [(0.9 * a, 0.9 * b) for a, b in corners]
    cos, sin = np.cos(tilt), np.sin(tilt)
    return [(x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos)) for a, b in corners]


def draw(
    scene: Scene,
    width: int,
    height: int,
    rng: np.random.Generator | None = None,
    background: tuple[int, int, int] = (128, 128, 128),
) -> Image.Image:
    """Draw a scene.

    Args:
        scene: The scene.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
        rng: Varies shade, tilt and background. None draws without variation.
        background: RGB of the background without `rng`.
    """
    color: tuple[int, ...] = COLORS[scene.color]
    tilt, smooth = 0.0, 1
    if rng is None:
        picture = Image.new('RGB', (width, height), background)
    else:
        color = (
            tuple(int(rng.integers(low, high + 1)) for low, high in _SHADES[scene.color])
            if rng.random() < 0.6
            else color
        )
        if scene.color in ('white', 'black'):
            color = (color[0], color[0], color[0])
        tilt = float(rng.uniform(-0.2, 0.2)) if rng.random() < 0.4 else 0.0
        smooth = int(rng.integers(1, 4))
        picture = Image.fromarray(random_background(rng, width, height, color))
    mask = Image.new('L', (width * smooth, height * smooth))
    corners = [(a * smooth, b * smooth) for a, b in outline(scene, width, height, tilt)]
    if scene.shape == 'circle':
        ImageDraw.Draw(mask).ellipse([*corners[0], *corners[1]], fill=255)
    else:
        ImageDraw.Draw(mask).polygon(corners, fill=255)
    picture.paste(color, mask=mask.resize((width, height), Image.Resampling.BOX) if smooth > 1 else mask)
    return picture


def random_picture(
    rng: np.random.Generator, width: int | None = None, height: int | None = None, **wanted
) -> tuple[Image.Image, Scene]:
    """Draw a random scene.

    Args:
        rng: The random generator.
        width: Width in pixels; None chooses a random size of 48 to 400 pixels a side, with a ratio of at most
            2.
        height: Height in pixels, or None.
        **wanted: See `random_scene`.
    """
    if width is None or height is None:
        width = int(rng.integers(48, 401))
        height = width if rng.random() < 0.3 else int(np.clip(width * 2 ** rng.uniform(-1, 1), 48, 400))
    scene = random_scene(rng, width, height, **wanted)
    return draw(scene, width, height, rng), scene
