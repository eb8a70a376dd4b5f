"""The truth of a picture as attributes with a fixed list of values each: what probes are trained to read."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from proxy_jax.data.microworld.looks import ACCESSORIES, CLASS_NOUNS, COLOURS, PATTERNS, VARIANTS
from proxy_jax.data.microworld.scenes import OUTFITS, SETTINGS, SURFACES, Scene

# What can be read from a picture: attribute -> its values
ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "class_noun": CLASS_NOUNS,
        "primary": COLOURS,
        "secondary": COLOURS,
        "pattern": PATTERNS,
        "variant": tuple(str(variant) for variant in range(VARIANTS)),
        "accessory": ACCESSORIES,
        "setting": SETTINGS,
        "outfit": OUTFITS,
        "surface": SURFACES,
    }
)
IDENTITY = ("primary", "secondary", "pattern", "variant", "accessory")  # those that make a subject, beside its class


def truth(scene: Scene) -> dict[str, int]:
    """The number of each attribute's value in a scene (of the first subject, where there are two)."""
    shown = dataclasses.asdict(scene.identity) | {"setting": scene.setting, "outfit": scene.outfit, "surface": scene.surface}
    return {name: values.index(str(shown[name])) for name, values in ATTRIBUTES.items()}


def truths(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """The numbers of all scenes' values: attribute -> [n] int32."""
    rows = [truth(scene) for scene in scenes]
    return {name: np.array([row[name] for row in rows], np.int32) for name in ATTRIBUTES}
