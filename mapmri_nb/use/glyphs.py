"""A painter of glyphs r(v): all of a slice at once, as pixels. A ray goes through each pixel of a
glyph's tile, and what it meets first is shaded. numpy and scipy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LIGHT = np.array([-0.4, 0.5, 0.77])  # from the upper left, in front
STEPS = 41  # along a ray
CHUNK = 64  # glyphs painted together: bounds memory


def nodes(n: int) -> Array:
    """Directions (3 n n, 3) on the three faces x = 1, y = 1, z = 1 of a cube, n along an edge."""
    line = np.linspace(-1, 1, n)
    u, v = (a.ravel() for a in np.meshgrid(line, line, indexing="ij"))
    points = np.concatenate([np.roll(np.stack([np.ones_like(u), u, v], 1), k, 1) for k in range(3)])
    return np.asarray(points / np.linalg.norm(points, axis=1, keepdims=True))


def corners(points: Array, n: int) -> tuple[NDArray[np.int64], Array]:
    """Nodes (m, 4) around points (m, 3), and bilinear weights; a point and its opposite agree."""
    face = np.abs(points).argmax(1)
    turned = np.take_along_axis(points, (face[:, None] + np.arange(3)) % 3, 1)
    middle = turned[:, :1] == 0  # the centre itself
    place = (turned[:, 1:] / np.where(middle, 1.0, turned[:, :1]) + 1) * (n - 1) / 2
    low = np.clip(place.astype(np.int64), 0, n - 2)
    (a, b), (i, j) = (place - low).T, low.T
    first = face * n * n + i * n + j
    index = np.stack([first, first + 1, first + n, first + n + 1], 1)
    return index, np.stack([(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b], 1)


def paint(radius: Array, n: int, pixels: int, colour: Any) -> NDArray[np.uint8]:
    """Tiles (V, pixels, pixels, 4) of the surfaces `radius` (V, 3 n n) <= 1 over `nodes(n)`, whose
    axes are the screen's: right, up, toward the viewer; rows from the bottom up.

    `colour` gets unit directions (m, 3) on the screen and radii (m,), and gives RGB (m, 3).
    """
    from scipy.sparse import csr_matrix

    line = (np.arange(pixels) + 0.5) / pixels * 2 - 1
    y, x = (a.ravel() for a in np.meshgrid(line, line, indexing="ij"))
    inside = np.flatnonzero(x**2 + y**2 < 1)
    z = np.linspace(1, -1, STEPS)
    grid = np.stack(np.broadcast_arrays(x[inside, None], y[inside, None], z), -1)
    index, weight = corners(grid.reshape(-1, 3), n)
    start = np.arange(0, index.size + 1, 4)
    at = csr_matrix((weight.ravel(), index.ravel(), start), (len(index), 3 * n * n), np.float32)
    length = np.linalg.norm(grid, axis=-1).astype(np.float32)[..., None]
    tiles = np.zeros((len(radius), pixels * pixels, 4), np.uint8)
    for first in range(0, len(radius), CHUNK):
        some = np.ascontiguousarray(radius[first : first + CHUNK].T, np.float32)
        gap = (at @ some).reshape(*length.shape[:2], -1) - length  # (pixel, step, glyph)
        step = (gap > 0).argmax(1)
        pixel, glyph = np.nonzero(step > 0)  # step 0 lies outside of every glyph
        if not len(pixel):
            continue
        k = step[pixel, glyph]
        before, after = gap[pixel, k - 1, glyph], gap[pixel, k, glyph]
        depth = z[k - 1] + (z[k] - z[k - 1]) * before / (before - after)
        hit = np.stack([x[inside[pixel]], y[inside[pixel]], depth], 1)

        def beyond(points: Array, rows: Any = glyph, field: Any = some) -> Array:
            """How far points lie outside of their glyphs."""
            around, share = corners(points, n)
            return np.asarray(
                np.linalg.norm(points, axis=1) - (field[around, rows[:, None]] * share).sum(1)
            )

        normal = np.stack([beyond(hit + d) - beyond(hit - d) for d in 0.04 * np.eye(3)], 1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12
        far = np.linalg.norm(hit, axis=1)
        shade = 0.4 + 0.6 * np.clip(normal @ LIGHT, 0, 1)
        rgb = np.clip(colour(hit / (far[:, None] + 1e-12), far) * shade[:, None], 0, 1)
        where = tiles[first : first + CHUNK]
        where[glyph, inside[pixel], :3] = np.round(255 * rgb)
        where[glyph, inside[pixel], 3] = 255
    return tiles.reshape(-1, pixels, pixels, 4)


def lay(tiles: NDArray[np.uint8], places: Array, columns: float, rows: float) -> NDArray[np.uint8]:
    """One picture (h, w, 4), rows from the bottom up, `columns` by `rows` tiles wide and high, of
    tiles around `places` (V, 2), in tiles from the lower left corner; a later tile lies over an
    earlier one.
    """
    pixels = tiles.shape[1]
    margin = pixels  # for what sticks out
    size = (round(rows * pixels) + 2 * margin, round(columns * pixels) + 2 * margin, 4)
    out = np.zeros(size, np.uint8)
    for tile, (across, up) in zip(tiles, places, strict=True):
        i = round(up * pixels - pixels / 2) + margin
        j = round(across * pixels - pixels / 2) + margin
        spot = out[i : i + pixels, j : j + pixels]
        spot[tile[..., 3] > 0] = tile[tile[..., 3] > 0]
    return out[margin:-margin, margin:-margin]
