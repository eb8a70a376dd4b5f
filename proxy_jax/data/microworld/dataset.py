"""Pictures of the micro-world as training data: columns of pixels, captions and the truth behind each picture."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from proxy_jax.data import cache as disk
from proxy_jax.data.microworld import benchmark, render
from proxy_jax.data.microworld.attributes import ATTRIBUTES, truths
from proxy_jax.data.microworld.looks import CLASS_NOUNS
from proxy_jax.data.microworld.scenes import Scene, draw_allowed, draw_template, show


@dataclasses.dataclass(frozen=True)
class World:
    """Pictures [n, size, size, 3] uint8 with their captions and truths (attribute -> [n] int32); paired: whether a second subject is there."""

    pictures: np.ndarray
    captions: list[str]
    truths: dict[str, np.ndarray]
    paired: np.ndarray


@functools.cache
def version(seed: int, size: int) -> dict[str, str]:
    """What changes when the renderer does: digests of a first chunk of pictures, captions and truths, which shows every class, setting and outfit."""
    scenes = render.draw_chunk(seed, 0)
    return {
        "pixels": disk.digest([hashlib.sha256(render.render(scene, size).tobytes()).hexdigest() for scene in scenes]),
        "captions": disk.digest([scene.caption for scene in scenes]),
        "truths": disk.digest({name: values.tolist() for name, values in truths(scenes).items()}),
    }


def world(seed: int, count: int, size: int, cache: Path) -> World:
    """The first `count` pictures of a seed's endless pre-training set; no held-out identity is among them. Drawn once, kept in `cache`."""

    def draw() -> dict[str, np.ndarray]:
        scenes, pictures = [], np.empty((count, size, size, 3), np.uint8)
        for some, drawn in render.pictures(seed, count, size, workers=os.cpu_count() or 1):
            pictures[len(scenes) : len(scenes) + len(some)] = drawn
            scenes += some
        found = {f"truth.{name}": values for name, values in truths(scenes).items()}
        captions = np.frombuffer("\n".join(scene.caption for scene in scenes).encode(), np.uint8)
        paired = np.array([scene.other is not None for scene in scenes])
        return {"pictures": pictures, "captions": captions, "paired": paired} | found

    columns = disk.cached(cache, {"world": version(seed, size), "seed": seed, "count": count, "size": size}, draw)
    found = {name: columns[f"truth.{name}"] for name in ATTRIBUTES}
    return World(columns["pictures"], bytes(columns["captions"]).decode().split("\n"), found, columns["paired"])


def instances(seed: int, count: int, views: int, size: int, cache: Path) -> np.ndarray:
    """`views` pictures each of `count` random subjects, in random contexts: [count, views, size, size, 3] uint8. None is held out."""

    def draw() -> dict[str, np.ndarray]:
        return {"pictures": np.stack([_views([seed, number], views, size) for number in range(count)])}

    return disk.cached(cache, {"instances": version(seed, size), "seed": seed, "count": count, "views": views, "size": size}, draw)["pictures"]


def _views(seed: Sequence[int], views: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    identity = draw_allowed(str(rng.choice(CLASS_NOUNS)), rng, benchmark.held_out())
    return np.stack([render.render(show(identity, draw_template(identity.class_noun, rng), rng), size) for _ in range(views)])


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out subjects, each once in every context that DreamBench asks for: subject by subject, template by template."""

    scenes: list[Scene]
    templates: list[str]
    subjects: np.ndarray  # [n] the subject's number in benchmark.subjects()
    pictures: np.ndarray  # [n, size, size, 3] uint8

    def truths(self) -> dict[str, np.ndarray]:
        """The true values' numbers, attribute -> [n] int32."""
        return truths(self.scenes)


def held_out(size: int) -> HeldOut:
    """30 subjects × 25 prompts, with random poses, variations and light of a seed of their own."""
    found = benchmark.contexts()
    scenes = [scene for _, _, scene in found]
    return HeldOut(
        scenes,
        [template for _, template, _ in found],
        np.array([number for number, _, _ in found]),
        np.stack([render.render(scene, size) for scene in scenes]),
    )


def photos(size: int) -> np.ndarray:
    """The photos of all held-out subjects, [subjects, photos, size, size, 3] uint8."""
    return np.stack([[render.render(scene, size) for scene in benchmark.photos(name)] for name in benchmark.subjects()])
