"""Tells whether a frame shows what an earlier one showed, within about a millisecond.

The measure is block-wise frame differencing with a threshold that follows the noise, as in surveillance and
video coding: each picture is reduced to the mean colours of small blocks, a change of light over the whole
picture is taken out (its gain, found as a median), and the largest difference of a block is compared with the
noise, which is estimated robustly from all blocks (median absolute deviations, Rousseeuw and Croux 1993).
A small thing that moves changes only few blocks, so the mean difference of the picture would miss it, while
the largest difference of blocks does not.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

_BLOCKS = 48  # along the longer side
_LEAST_BLOCK = 4.0  # pixels along a side
_NOISE = 7.0  # standard deviations that noise does not reach, even among thousands of blocks
_MOST_NOISE = 20.0  # of a pixel: what differs more is a change of most of the picture
_LEAST = 4.0  # of 255: compression and rounding stay below it
_GAIN = (0.8, 1.25)  # of light: a larger change of all the picture is one that a question may be about
_MAD = 1.4826  # from a median absolute deviation to a standard deviation


@dataclass(frozen=True)
class Scene:
    """What a frame shows, coarsely.

    Attributes:
        blocks: [h, w, 3] float32: mean colours of blocks, 0 to 255.
        side: Pixels along the side of a block.
    """

    blocks: np.ndarray
    side: float

    @classmethod
    def of(cls, pixels: np.ndarray) -> Scene:
        """Return the scene of a picture [h, w, 3] uint8."""
        grid = _grid(*pixels.shape[:2])
        # Blocks are sums in the order in which the bytes lie: views of BGR and grey frames are not copied.
        step = pixels.strides[2]
        stored = pixels[..., ::-1] if step < 0 else pixels[..., :1] if step == 0 else pixels
        blocks = grid.means(np.ascontiguousarray(stored))
        if step < 0:
            blocks = blocks[..., ::-1]
        return cls(np.broadcast_to(blocks, (*blocks.shape[:2], 3)), grid.side)

    def difference(self, earlier: Scene) -> float:
        """Return how much differs from an earlier scene, in units of what counts as a change.

        Returns:
            1 or more if something changed; infinity if the pictures have different shapes.
        """
        if self.blocks.shape != earlier.blocks.shape:
            return float('inf')
        before, now = earlier.blocks, self.blocks
        difference = now - _gain(before, now) * before
        # What is left of all the picture: an offset of light, or of one colour (white balance).
        difference -= _median(difference.reshape(-1, difference.shape[2])).clip(-_LEAST, _LEAST)
        noise = min(_noise(difference), _MOST_NOISE * 2**0.5 / self.side)
        return float(np.abs(difference).max()) / max(_LEAST, _NOISE * noise)

    def same_as(self, earlier: Scene | None) -> bool:
        """Whether it shows what an earlier scene showed. False for None."""
        return earlier is not None and self.difference(earlier) < 1.0


@dataclass(frozen=True, eq=False)
class _Grid:
    """The blocks of pictures of one size.

    Attributes:
        side: Pixels along the side of a block.
        rows: Where its rows of blocks begin.
        heights: Pixels of each row of blocks.
        columns: Where its columns of blocks begin.
        widths: Pixels of each column of blocks.
    """

    side: float
    rows: np.ndarray
    heights: np.ndarray
    columns: np.ndarray
    widths: np.ndarray

    def means(self, pixels: np.ndarray) -> np.ndarray:
        """Return the means [rows, columns, c] of a picture [h, w, c] of bytes that lie in a row."""
        kind = np.uint16 if self.heights.max() * self.widths.max() * 255 < 2**16 else np.uint32
        lines = pixels.reshape(len(pixels), -1)
        sums = np.empty((len(self.rows), lines.shape[1]), kind)
        for out, start, height in zip(sums, self.rows.tolist(), self.heights.tolist()):
            np.add.reduce(lines[start : start + height], axis=0, dtype=kind, out=out)
        sums = _sums(sums.reshape(len(sums), *pixels.shape[1:]), self.columns, self.widths)
        return np.divide(sums, np.outer(self.heights, self.widths)[..., None], dtype=np.float32)


@functools.lru_cache(maxsize=32)  # sizes of cameras
def _grid(height: int, width: int) -> _Grid:
    side = max(max(height, width) / _BLOCKS, _LEAST_BLOCK)
    rows, columns = _starts(height, round(height / side)), _starts(width, round(width / side))
    return _Grid(side, rows, np.diff(rows, append=height), columns, np.diff(columns, append=width))


def _starts(length: int, count: int) -> np.ndarray:
    """Return where `count` parts of a length begin."""
    count = min(max(1, count), length)
    return np.linspace(0, length, count + 1).astype(int)[:-1]


def _sums(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the sums of parts of the second axis, whose lengths differ by one at most.

    Sums of 1, 2, 4 ... neighbours are made at all places, which is far faster than gathering the parts.
    """
    least, size, neighbours = int(lengths.min()), 1, values
    sums, ends = np.zeros((len(values), len(starts), values.shape[2]), values.dtype), starts
    while True:
        if least & size:
            sums += neighbours[:, ends]
            ends = ends + size
        if 2 * size > least:
            break
        neighbours, size = neighbours[:, :-size] + neighbours[:, size:], 2 * size
    longer = lengths > least
    sums[:, longer] += values[:, ends[longer]]
    return sums


def _median(values: np.ndarray) -> np.ndarray:
    """The median along the first axis, of an even number the higher one of the two; several times faster
    than `np.median`.
    """
    middle = len(values) // 2
    return np.partition(values, middle, axis=0)[middle]


def _noise(difference: np.ndarray) -> float:
    """The standard deviation of the noise in a difference of two pictures [h, w, 3].

    It is found from neighbours, of which a change of a large part of the picture makes few differ.
    """
    along = [np.diff(difference, axis=axis) for axis in (0, 1) if difference.shape[axis] > 1]
    found = [_MAD * float(_median(np.abs(each).ravel())) / 2**0.5 for each in along]
    return min([_MAD * float(_median(np.abs(difference).ravel())), *found])


def _gain(before: np.ndarray, now: np.ndarray) -> float:
    """The change of light between two pictures, as a factor; 1.0 if it is too large to be only light."""
    bright = before > 16.0  # darker blocks are mostly noise
    if not bright.any():
        return 1.0
    gain = float(_median(now[bright] / before[bright]))
    return gain if _GAIN[0] <= gain <= _GAIN[1] else 1.0
