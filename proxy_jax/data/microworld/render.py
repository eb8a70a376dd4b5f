"""From a scene to pixels, and many of them at once. Needs skia-python (the extra "microworld")."""

import functools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import skia

from proxy_jax.data.microworld import outfits
from proxy_jax.data.microworld.animals import ANIMALS
from proxy_jax.data.microworld.benchmark import held_out
from proxy_jax.data.microworld.contexts import SETTINGS
from proxy_jax.data.microworld.drawing import ellipse, paint
from proxy_jax.data.microworld.looks import Identity
from proxy_jax.data.microworld.objects import OBJECTS
from proxy_jax.data.microworld.scenes import Pose, Scene, draw_scene

SUBJECTS = ANIMALS | OBJECTS
CHUNK = 512  # scenes drawn from one seed


def render(scene: Scene, size: int) -> np.ndarray:
    """The picture [size, size, 3] uint8 of a scene; the same bytes each time. Raises KeyError for a setting or outfit that does not exist."""
    surface = skia.Surface(size, size)
    canvas = surface.getCanvas()
    setting = SETTINGS[scene.setting]
    canvas.drawImage(_setting(scene.setting, scene.variation, size), 0, 0)
    canvas.scale(size, size)
    for identity, pose in ((scene.identity, scene.pose), (scene.other, scene.other_pose)):
        if identity is not None:
            _subject(canvas, identity, pose, scene)
    if setting.front is not None:
        setting.front(canvas, scene.variation)
    tone = (1.0, 0.98, 0.92) if scene.light > 0 else (0.02, 0.02, 0.1)
    canvas.drawPaint(paint(tone, 0.14 * abs(scene.light)))
    return np.ascontiguousarray(surface.toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3])


@functools.lru_cache(maxsize=1024)
def _setting(name: str, variation: int, size: int) -> skia.Image:
    surface = skia.Surface(size, size)
    canvas = surface.getCanvas()
    canvas.scale(size, size)
    SETTINGS[name].back(canvas, variation)
    return surface.makeImageSnapshot()


def _subject(canvas: skia.Canvas, identity: Identity, pose: Pose, scene: Scene) -> None:
    canvas.save()
    canvas.translate(pose.x, pose.y)
    canvas.drawPath(ellipse(0, 0.93 * pose.scale, 0.85 * pose.scale, 0.13 * pose.scale), paint((0.05, 0.04, 0.1), 0.28))
    canvas.scale(pose.scale, pose.scale)
    canvas.rotate(pose.rotation)
    if pose.flip:
        canvas.scale(-1, 1)
    if scene.surface == "cube":
        outfits.cube(canvas, identity)
        canvas.translate(-0.1, 0.2)
        canvas.scale(0.55, 0.55)
    anchors = SUBJECTS[identity.class_noun](canvas, identity)
    if scene.outfit != "none" and anchors is not None:  # a thing wears nothing
        outfits.OUTFITS[scene.outfit](canvas, anchors)
    if scene.surface in outfits.SURFACES:
        outfits.SURFACES[scene.surface](canvas)
    canvas.restore()


def draw_chunk(seed: int, number: int) -> list[Scene]:
    """The scenes number · CHUNK and following of the endless pre-training set of a seed; no held-out identity is among them."""
    rng, left_out = np.random.default_rng([seed, number]), held_out()
    return [draw_scene(rng, left_out) for _ in range(CHUNK)]


def _chunk(seed: int, size: int, number: int) -> tuple[list[Scene], np.ndarray]:
    scenes = draw_chunk(seed, number)
    return scenes, np.stack([render(scene, size) for scene in scenes])


def pictures(seed: int, count: int, size: int, *, workers: int) -> Iterator[tuple[list[Scene], np.ndarray]]:
    """The first `count` scenes of a seed's pre-training set with their pictures [n, size, size, 3] uint8, in chunks, drawn by `workers` processes."""
    chunks = range(-(-count // CHUNK))
    # Spawned: a fork of a process that runs XLA can hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for number, (scenes, drawn) in zip(chunks, pool.map(functools.partial(_chunk, seed, size), chunks), strict=True):
            left = count - number * CHUNK
            yield scenes[:left], drawn[:left]
