"""The truth of a picture as attributes with a fixed list of values each: what probes are trained to read."""

import dataclasses

from proxy_jax.data.microworld.looks import ACCESSORIES, CLASS_NOUNS, COLOURS, PATTERNS, VARIANTS
from proxy_jax.data.microworld.scenes import OUTFITS, SETTINGS, SURFACES, Scene

# What can be read from a picture: attribute -> its values
ATTRIBUTES: dict[str, tuple[str, ...]] = {
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
IDENTITY = ("primary", "secondary", "pattern", "variant", "accessory")  # those that make a subject, beside its class


def truth(scene: Scene) -> dict[str, int]:
    """The number of each attribute's value in a scene (of the first subject, where there are two)."""
    shown = dataclasses.asdict(scene.identity) | {"setting": scene.setting, "outfit": scene.outfit, "surface": scene.surface}
    return {name: values.index(str(shown[name])) for name, values in ATTRIBUTES.items()}
