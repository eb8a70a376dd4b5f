"""The truth behind a generated picture of a known subject: the scene whose rendering is nearest to it, and where that shows the subject.

A generator's picture has no scene. Its errors are counted from the nearest one: a few likely settings and their light are found by comparing
with empty ones, the pose by rendering. Needs skia-python (the extra "microworld").
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from proxy_jax.data.microworld.looks import Identity
from proxy_jax.data.microworld.render import render
from proxy_jax.data.microworld.scenes import SETTINGS, VARIATIONS, Pose, Scene

AWAY = Pose(-9.0, -9.0, 0.1, 0.0, False)  # beyond the picture's edge
SEEN = 12  # summed over the channels: a smaller difference does not show
CANDIDATES = 6  # backgrounds that are compared again once the pose is known
CLIPPED = 60.0  # of 255: a pixel that is further from a background's says only that something else is there
# What is searched: name -> (least, most, first step). A little more than scenes.draw_pose draws.
RANGES = {"x": (0.42, 0.58, 0.03), "y": (0.45, 0.56, 0.03), "scale": (0.31, 0.44, 0.03), "rotation": (-8.0, 8.0, 4.0), "light": (-1.0, 1.0, 0.2)}
COARSE = [
    Pose(x, y, scale, rotation, flip) for x, y, scale, rotation, flip in itertools.product((0.47, 0.53), (0.505,), (0.37,), (-3, 3), (False, True))
]


def backdrop(scene: Scene) -> Scene:
    """The scene without its subject."""
    return dataclasses.replace(scene, pose=AWAY)


def areas(scenes: Sequence[Scene], size: int, grid: int, share: float = 0.5) -> np.ndarray:
    """Which cells of a grid over the picture show the subject (or its shadow), [n, grid · grid] bool, row by row as tokens are.

    A cell counts if the subject changes at least `share` of its pixels. Raises ValueError if the grid does not divide the size.
    """
    if size % grid:
        raise ValueError(f"a picture of {size} pixels is not divided by a grid of {grid} cells")
    cell = size // grid
    shown = []
    for scene in scenes:
        difference = np.abs(render(scene, size).astype(int) - render(backdrop(scene), size)).sum(-1) > SEEN
        shown.append(difference.reshape(grid, cell, grid, cell).mean((1, 3)).reshape(-1) >= share)
    return np.array(shown, bool).reshape(len(scenes), grid * grid)


def nearest(pictures: np.ndarray, identity: Identity, settings: Sequence[str] = SETTINGS) -> list[Scene]:
    """For each picture [n, size, size, 3] uint8 the scene of the identity, alone and without outfit or surface, whose rendering differs least.

    The difference is the mean absolute one over pixels and channels. The search is a descent from a few poses (about 200 renderings a
    picture): the scene found is a near one, the same each time, not proven the nearest. settings: where to look.
    Raises ValueError on pictures of another kind or shape.
    """
    if pictures.ndim != 4 or pictures.shape[1] != pictures.shape[2] or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
        raise ValueError(f"pictures are [n, size, size, 3] uint8, not {pictures.shape} {pictures.dtype}")
    return [_nearest(picture.astype(np.float32), identity, tuple(settings)) for picture in pictures]


def gap(picture: np.ndarray, scene: Scene) -> float:
    """The mean absolute difference of a picture [size, size, 3] and a scene's rendering, of 255: what `nearest` makes small."""
    return float(np.abs(render(scene, len(picture)) - picture.astype(np.float32)).mean())


def _nearest(picture: np.ndarray, identity: Identity, settings: tuple[str, ...]) -> Scene:
    cost = functools.cache(functools.partial(gap, picture))
    ranked = [Scene(identity, COARSE[0], *place) for place in _places(picture, settings)]
    # The mirrored subject is another optimum: both ways go down two steps before they are compared.
    starts = [min((_posed(ranked[0], pose) for pose in COARSE if pose.flip == flip), key=cost) for flip in (False, True)]
    best = min((_descend(scene, cost, levels=2) for scene in starts), key=cost)
    while True:
        best = _descend(best, cost, levels=4)
        # Now that the subject is known, so is what it hides; the light is compared as fitted there and as fitted here.
        elsewhere = [dataclasses.replace(best, setting=place.setting, variation=place.variation) for place in ranked]
        elsewhere += [_posed(place, best.pose) for place in ranked]
        if (better := min([best, *elsewhere], key=cost)) == best:
            return best
        best = better


def _posed(scene: Scene, pose: Pose) -> Scene:
    return dataclasses.replace(scene, pose=pose)


def _descend(scene: Scene, cost: Callable[[Scene], float], levels: int) -> Scene:
    """Coordinate descent, each coordinate's step halved `levels - 1` times."""
    for level in range(levels):
        while (better := min([scene, *_neighbours(scene, level)], key=cost)) != scene:
            scene = better
    return scene


def _neighbours(scene: Scene, level: int) -> Iterator[Scene]:
    for name, (least, most, step) in RANGES.items():
        holder = scene if name == "light" else scene.pose
        for sign in (-1, 1):
            value = min(max(getattr(holder, name) + sign * step / 2**level, least), most)
            moved = dataclasses.replace(holder, **{name: value})
            yield moved if name == "light" else _posed(scene, moved)


def _places(picture: np.ndarray, settings: tuple[str, ...]) -> list[tuple[str, int, float]]:
    """The likeliest (setting, variation, light), best first, as if there were no subject: clipped, its pixels tell little.

    Light lays a colour over the picture, its strength from 0 to that of light 1 (render.render): fitted by least squares, in either colour.
    """
    names = [(setting, variation) for setting in settings for variation in range(VARIATIONS)]
    found = []
    for light in (-1.0, 1.0):
        dull, lit = (_backdrops(settings, light * strength, len(picture)) for strength in (0, 1))
        change = lit - dull
        strength = np.clip((change * (picture - dull)).sum((1, 2, 3)) / (change**2).sum((1, 2, 3)), 0, 1)
        costs = np.minimum(np.abs(dull + strength[:, None, None, None] * change - picture), CLIPPED).mean((1, 2, 3))
        found += [(cost, (*name, float(light * s))) for name, s, cost in zip(names, strength, costs, strict=True)]
    return [place for _, place in sorted(found)[:CANDIDATES]]


@functools.lru_cache(maxsize=8)
def _backdrops(settings: tuple[str, ...], light: float, size: int) -> np.ndarray:
    """All settings' variations without a subject [settings · VARIATIONS, size, size, 3]."""
    empty = Scene(_ANYONE, AWAY, "", 0, light)
    scenes = [dataclasses.replace(empty, setting=setting, variation=variation) for setting in settings for variation in range(VARIATIONS)]
    return np.stack([render(scene, size) for scene in scenes]).astype(np.float32)


_ANYONE = Identity("can", "red", "blue", "white", "plain", 0, "none", 0.0, 0.0)  # backdrops show nobody
