"""What a subject of the micro-world is: its identity, and which identities are held out of pre-training.

An identity is what a person would recognise the subject by: colours, pattern, parts, accessory, proportions. Pose, place and
light belong to a picture (see scenes.py), never to the identity.
"""

import dataclasses
from types import MappingProxyType

import numpy as np

Colour = tuple[float, float, float]  # red, green, blue in [0, 1]

PALETTE: MappingProxyType[str, Colour] = MappingProxyType(
    {
        name: (red / 255, green / 255, blue / 255)
        for name, (red, green, blue) in dict(
            red=(214, 52, 48),
            orange=(243, 140, 36),
            yellow=(248, 212, 66),
            green=(84, 172, 78),
            teal=(44, 178, 178),
            blue=(58, 104, 216),
            purple=(146, 78, 196),
            pink=(244, 138, 184),
            brown=(140, 90, 54),
            grey=(140, 146, 156),
            white=(246, 243, 236),
            black=(50, 48, 58),
        ).items()
    }
)
COLOURS = tuple(PALETTE)
PATTERNS = ("plain", "stripes", "spots", "patches", "checks", "band")
VARIANTS = 3  # of a class's parts: its ears, handle, sole, ...
ACCESSORIES = ("none", "bow", "star")

LIVE = ("dog", "cat")
OBJECTS = ("backpack", "stuffed animal", "bowl", "can", "candle", "clock", "sneaker", "boot", "toy", "glasses", "cartoon", "teapot", "vase")
CLASS_NOUNS = LIVE + OBJECTS


@dataclasses.dataclass(frozen=True)
class Identity:
    """A subject. Colours are names of PALETTE, all three different; width and height are proportions in [-1, 1], 0 the usual."""

    class_noun: str
    primary: str  # of the body
    secondary: str  # of the pattern and of the smaller parts
    accent: str  # of the accessory
    pattern: str
    variant: int
    accessory: str
    width: float
    height: float

    def combination(self) -> tuple[str, str, str, str]:
        """What is held out as a whole: no identity of pre-training shares it with a held-out subject."""
        return self.class_noun, self.primary, self.secondary, self.pattern


def draw_identity(class_noun: str, rng: np.random.Generator, primary: str | None = None) -> Identity:
    """A random identity of a class, of the given primary colour if one is given."""
    colours = [str(name) for name in rng.permutation(COLOURS)]
    if primary is not None:
        colours = [primary, *(name for name in colours if name != primary)]
    width, height = (round(float(value), 3) for value in rng.uniform(-1, 1, 2))
    pattern, variant, accessory = str(rng.choice(PATTERNS)), int(rng.integers(VARIANTS)), str(rng.choice(ACCESSORIES))
    return Identity(class_noun, *colours[:3], pattern, variant, accessory, width, height)
