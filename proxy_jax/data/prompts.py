"""Prompts: the paper's template, DreamBench's evaluation prompts, and its subjects.

A template holds "{token}" (the rare word that comes to mean the subject) and "{class_noun}".
"""

import dataclasses
import string
from collections.abc import Mapping
from types import MappingProxyType

# What the proxies are drawn with (Proxy-Tuning, "a S* {category}"; reported, second hand).
PAPER_TEMPLATE = "a {token} {class_noun}"

_ANY_SUBJECT = (
    "a {token} {class_noun} in the jungle",
    "a {token} {class_noun} in the snow",
    "a {token} {class_noun} on the beach",
    "a {token} {class_noun} on a cobblestone street",
    "a {token} {class_noun} on top of pink fabric",
    "a {token} {class_noun} on top of a wooden floor",
    "a {token} {class_noun} with a city in the background",
    "a {token} {class_noun} with a mountain in the background",
    "a {token} {class_noun} with a blue house in the background",
    "a {token} {class_noun} on top of a purple rug in a forest",
)
_OBJECTS_ONLY = (
    "a {token} {class_noun} with a wheat field in the background",
    "a {token} {class_noun} with a tree and autumn leaves in the background",
    "a {token} {class_noun} with the Eiffel Tower in the background",
    "a {token} {class_noun} floating on top of water",
    "a {token} {class_noun} floating in an ocean of milk",
    "a {token} {class_noun} on top of green grass with sunflowers around it",
    "a {token} {class_noun} on top of a mirror",
    "a {token} {class_noun} on top of the sidewalk in a crowded street",
    "a {token} {class_noun} on top of a dirt road",
    "a {token} {class_noun} on top of a white rug",
)
_LIVE_ONLY = (
    "a {token} {class_noun} wearing a red hat",
    "a {token} {class_noun} wearing a santa hat",
    "a {token} {class_noun} wearing a rainbow scarf",
    "a {token} {class_noun} wearing a black top hat and a monocle",
    "a {token} {class_noun} in a chef outfit",
    "a {token} {class_noun} in a firefighter outfit",
    "a {token} {class_noun} in a police outfit",
    "a {token} {class_noun} wearing pink glasses",
    "a {token} {class_noun} wearing a yellow shirt",
    "a {token} {class_noun} in a purple wizard outfit",
)
_PROPERTIES = (
    "a red {token} {class_noun}",
    "a purple {token} {class_noun}",
    "a shiny {token} {class_noun}",
    "a wet {token} {class_noun}",
    "a cube shaped {token} {class_noun}",
)

LIVE_CLASSES = ("cat", "dog")


class PromptError(ValueError):
    """A template without the class noun, or with a field that is neither the token nor the class noun."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A DreamBench subject: what it is called in a prompt, and whether the live-subject prompts are its own."""

    class_noun: str
    live: bool


def _subjects(**class_nouns: str) -> Mapping[str, Subject]:
    return MappingProxyType({name: Subject(noun, noun in LIVE_CLASSES) for name, noun in class_nouns.items()})


# DreamBench's 30 subjects by folder name: 9 live ones and 21 objects (backpack_dog is a backpack).
SUBJECTS: Mapping[str, Subject] = _subjects(
    backpack="backpack",
    backpack_dog="backpack",
    bear_plushie="stuffed animal",
    berry_bowl="bowl",
    can="can",
    candle="candle",
    cat="cat",
    cat2="cat",
    clock="clock",
    colorful_sneaker="sneaker",
    dog="dog",
    dog2="dog",
    dog3="dog",
    dog5="dog",
    dog6="dog",
    dog7="dog",
    dog8="dog",
    duck_toy="toy",
    fancy_boot="boot",
    grey_sloth_plushie="stuffed animal",
    monster_toy="toy",
    pink_sunglasses="glasses",
    poop_emoji="toy",
    rc_car="toy",
    red_cartoon="cartoon",
    robot_toy="toy",
    shiny_sneaker="sneaker",
    teapot="teapot",
    vase="vase",
    wolf_plushie="stuffed animal",
)

# Four live subjects and five objects, as many as the paper evaluates on. The paper's nine are not known to us: this choice is ours.
PAPER9 = ("cat", "cat2", "dog", "dog6", "backpack_dog", "clock", "duck_toy", "shiny_sneaker", "teapot")


def dreambench_prompts(live: bool) -> tuple[str, ...]:
    """DreamBench's 25 evaluation templates, in their official order: for live subjects (pets) or for objects.

    Source: prompts_and_classes.txt of the DreamBooth dataset.
    """
    return _ANY_SUBJECT + (_LIVE_ONLY if live else _OBJECTS_ONLY) + _PROPERTIES


def fill(template: str, token: str, class_noun: str) -> str:
    """`template` with its fields filled and single spaces: the prompt of a model that has learned `token`.

    Raises PromptError if the template has no {class_noun} or has other fields than {token} and {class_noun}.
    """
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise PromptError(f"the template {template!r} is malformed: {error}") from error
    if "class_noun" not in fields or fields - {"token", "class_noun"}:
        raise PromptError(f"a template has {{class_noun}} and may have {{token}}, no other fields; got {template!r}")
    return " ".join(template.format(token=token, class_noun=class_noun).split())


def without_token(template: str, class_noun: str) -> str:
    """The prompt with the token left out, "a dog in the jungle": what CLIP-T compares images with, and the class (prior) prompt."""
    return fill(template, "", class_noun)
