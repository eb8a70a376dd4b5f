"""What a picture of the micro-world shows and how it is captioned: one subject or two in a setting, from a seed.

The captions are DreamBench's own evaluation prompts with the token left out, now and then with the subject's colour, and plain ones.
They never name more of an identity than its class and that colour: a subject can only be learned from its pictures.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from proxy_jax.data import prompts
from proxy_jax.data.microworld.looks import CLASS_NOUNS, LIVE, Identity, draw_identity

EVERYDAY = ("studio_cream", "studio_blue", "studio_green", "studio_pink", "lawn", "room")  # captions do not name them
VARIATIONS = 4  # of each setting
_SETTINGS_IN_ORDER = ("jungle", "snow", "beach", "cobblestone", "pink_fabric", "wooden_floor", "city", "mountain", "blue_house", "purple_rug")
_OBJECT_SETTINGS_IN_ORDER = (
    *("wheat_field", "autumn_tree", "eiffel_tower", "water", "milk", "sunflowers", "mirror", "sidewalk", "dirt_road", "white_rug"),
)
SETTINGS = (*_SETTINGS_IN_ORDER, *_OBJECT_SETTINGS_IN_ORDER, *EVERYDAY)
OUTFITS = ("none", "red_hat", "santa_hat", "rainbow_scarf", "top_hat", "chef", "firefighter", "police", "pink_glasses", "yellow_shirt", "wizard")
SURFACES = ("none", "shiny", "wet", "cube")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a prompt asks of a picture besides its subject; a field that it leaves open is empty."""

    setting: str = ""
    outfit: str = ""
    surface: str = ""
    primary: str = ""  # the body's colour

    def named(self) -> dict[str, str]:
        """What it does ask for: attribute -> value."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value}


_PROPERTIES_IN_ORDER = (Asked(primary="red"), Asked(primary="purple"), Asked(surface="shiny"), Asked(surface="wet"), Asked(surface="cube"))


def _asked_by_template() -> Mapping[str, Asked]:
    settings = [Asked(setting=name) for name in _SETTINGS_IN_ORDER]
    objects = settings + [Asked(setting=name) for name in _OBJECT_SETTINGS_IN_ORDER] + list(_PROPERTIES_IN_ORDER)
    live = settings + [Asked(outfit=name) for name in OUTFITS[1:]] + list(_PROPERTIES_IN_ORDER)
    pairs = [*zip(prompts.dreambench_prompts(False), objects, strict=True), *zip(prompts.dreambench_prompts(True), live, strict=True)]
    return MappingProxyType(dict(pairs))


ASKED: Mapping[str, Asked] = _asked_by_template()  # DreamBench template -> what it asks for
PLAIN = "a photo of a {class_noun}"


def asked_by(template: str) -> Asked:
    """What a template asks for: the plain one and the paper's ask for nothing. Raises KeyError for one that the micro-world does not know."""
    return Asked() if template in (PLAIN, prompts.PAPER_TEMPLATE) else ASKED[template]


@dataclasses.dataclass(frozen=True)
class Pose:
    """How a subject stands in a picture: place and size in units of the picture, rotation in degrees, mirrored or not."""

    x: float
    y: float
    scale: float
    rotation: float
    flip: bool


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture's whole truth. light in [-1, 1]: from dim to bright; `other` stands beside the subject."""

    identity: Identity
    pose: Pose
    setting: str
    variation: int
    light: float
    outfit: str = "none"
    surface: str = "none"
    other: Identity | None = None
    other_pose: Pose | None = None
    caption: str = ""


def draw_pose(rng: np.random.Generator) -> Pose:
    """A subject alone, near the middle."""
    return Pose(0.5 + rng.uniform(-0.05, 0.05), 0.5 + rng.uniform(-0.02, 0.03), rng.uniform(0.345, 0.4), rng.uniform(-5, 5), bool(rng.integers(2)))


def _beside(rng: np.random.Generator, side: int) -> Pose:
    """One of two subjects, on the left (-1) or the right (1)."""
    x, y = 0.5 + side * rng.uniform(0.225, 0.245), 0.6 + rng.uniform(-0.01, 0.02)
    return Pose(x, y, rng.uniform(0.23, 0.255), rng.uniform(-4, 4), bool(rng.integers(2)))


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _place(setting: str) -> str:
    """ " on the beach": what a caption says of a setting; nothing of an everyday one."""
    for template, asked in ASKED.items():
        if asked.setting == setting:
            return template.removeprefix("a {token} {class_noun}")
    return ""


def show(identity: Identity, template: str, rng: np.random.Generator) -> Scene:
    """The subject as a template (see asked_by) asks for it, all that it leaves open drawn at random; no caption."""
    asked = asked_by(template)
    return Scene(
        recoloured(identity, asked.primary) if asked.primary else identity,
        draw_pose(rng),
        asked.setting or str(rng.choice(EVERYDAY)),
        int(rng.integers(VARIATIONS)),
        float(rng.uniform(-1, 1)),
        outfit=asked.outfit or "none",
        surface=asked.surface or "none",
    )


def recoloured(identity: Identity, primary: str) -> Identity:
    """The identity with another body colour; a smaller part that had that colour takes the old one."""
    swap = {identity.primary: primary, primary: identity.primary}
    names = ("primary", "secondary", "accent")
    return dataclasses.replace(identity, **{name: swap.get(getattr(identity, name), getattr(identity, name)) for name in names})


SHARE_OF_PAIRS, SHARE_OF_PLAIN, SHARE_OF_COLOURS = 0.06, 0.14, 0.3


def draw_scene(rng: np.random.Generator, held_out: frozenset[tuple] = frozenset()) -> Scene:
    """A random scene with its caption, without the identities whose combination is in `held_out`."""
    kind = rng.random()
    if kind < SHARE_OF_PAIRS:
        return _draw_pair(rng, held_out)
    class_noun = str(rng.choice(CLASS_NOUNS))
    plain = kind < SHARE_OF_PAIRS + SHARE_OF_PLAIN
    template = PLAIN if plain else str(rng.choice(prompts.dreambench_prompts(class_noun in LIVE)))
    asked = asked_by(template)
    identity = draw_allowed(class_noun, rng, held_out, asked.primary or None)
    scene = show(identity, template, rng)
    names_colour = not asked.primary and rng.random() < SHARE_OF_COLOURS
    subject = _article(f"{identity.primary} {class_noun}" if names_colour or asked.primary else class_noun)
    if plain:
        return dataclasses.replace(scene, caption=str(rng.choice(("a photo of ", ""))) + subject)
    if asked.primary:
        return dataclasses.replace(scene, caption=subject)
    body = prompts.without_token(template, class_noun)
    if names_colour:
        body = body.replace(class_noun, f"{identity.primary} {class_noun}", 1)
        body = f"an{body[1:]}" if body.startswith("a orange") else body
    return dataclasses.replace(scene, caption=body)


def draw_template(class_noun: str, rng: np.random.Generator) -> str:
    """A template of a class that leaves the body its colour: a subject of another colour is another subject."""
    templates = [template for template in prompts.dreambench_prompts(class_noun in LIVE) if not ASKED[template].primary]
    return str(rng.choice([*templates, PLAIN]))


def draw_allowed(class_noun: str, rng: np.random.Generator, held_out: frozenset[tuple], primary: str | None = None) -> Identity:
    """A random identity of a class whose combination is not held out."""
    while True:
        identity = draw_identity(class_noun, rng, primary)
        if identity.combination() not in held_out:
            return identity


def _draw_pair(rng: np.random.Generator, held_out: frozenset[tuple]) -> Scene:
    left, right = (draw_allowed(str(noun), rng, held_out) for noun in rng.choice(CLASS_NOUNS, 2, replace=False))
    setting = str(rng.choice((*_SETTINGS_IN_ORDER[:6], *EVERYDAY)))  # those whose names are short
    caption = f"{_article(left.class_noun)} next to {_article(right.class_noun)}{_place(setting)}"
    poses = _beside(rng, -1), _beside(rng, 1)
    return Scene(left, poses[0], setting, int(rng.integers(VARIATIONS)), float(rng.uniform(-1, 1)), other=right, other_pose=poses[1], caption=caption)
