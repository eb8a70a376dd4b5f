"""proxy_jax/data/microworld/looks.py, scenes.py and attributes.py: identities, what prompts ask for, and what captions tell."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from proxy_jax.data import prompts
from proxy_jax.data.microworld import attributes, scenes
from proxy_jax.data.microworld.looks import ACCESSORIES, CLASS_NOUNS, COLOURS, LIVE, OBJECTS, PALETTE, PATTERNS, VARIANTS, Identity, draw_identity

TEMPLATES = {live: prompts.dreambench_prompts(live) for live in (True, False)}
SUBJECT = Identity("dog", "blue", "red", "yellow", "spots", 1, "bow", 0.5, -0.5)


@pytest.fixture(scope="module")
def drawn() -> list[scenes.Scene]:
    rng = np.random.default_rng(0)
    return [scenes.draw_scene(rng) for _ in range(6000)]


def test_class_nouns_are_dreambenchs():
    assert set(CLASS_NOUNS) == {subject.class_noun for subject in prompts.SUBJECTS.values()} and len(CLASS_NOUNS) == 15
    assert set(LIVE) == set(prompts.LIVE_CLASSES) and not set(LIVE) & set(OBJECTS)


def test_colours_can_be_told_apart():
    distances = [np.abs(np.subtract(PALETTE[a], PALETTE[b])).max() for a, b in itertools.combinations(COLOURS, 2)]
    assert min(distances) > 0.1
    assert all(0 <= channel <= 1 for colour in PALETTE.values() for channel in colour)


def test_identities_are_drawn_from_everything():
    rng = np.random.default_rng(0)
    found = [draw_identity("dog", rng) for _ in range(2000)]
    for field, values in (("primary", COLOURS), ("secondary", COLOURS), ("accent", COLOURS), ("pattern", PATTERNS), ("accessory", ACCESSORIES)):
        assert {getattr(identity, field) for identity in found} == set(values)
    assert {identity.variant for identity in found} == set(range(VARIANTS))
    assert all(len({identity.primary, identity.secondary, identity.accent}) == 3 for identity in found)
    for sizes in ([identity.width for identity in found], [identity.height for identity in found]):
        assert -1 <= min(sizes) < -0.95 and 0.95 < max(sizes) <= 1
    given = [draw_identity("dog", rng, "teal") for _ in range(50)]
    assert {identity.primary for identity in given} == {"teal"}
    assert all(len({identity.primary, identity.secondary, identity.accent}) == 3 for identity in given)


def test_a_combination_is_class_colours_and_pattern():
    others = dict(class_noun="cat", primary="green", secondary="white", pattern="band")
    for field in dataclasses.fields(Identity):
        changed = {field.name: others.get(field.name, {"accent": "pink", "variant": 2, "accessory": "star"}.get(field.name, 0.1))}
        assert (dataclasses.replace(SUBJECT, **changed).combination() != SUBJECT.combination()) == (field.name in others)


def test_every_dreambench_template_asks_for_something_of_its_own():
    assert set(scenes.ASKED) == {template for templates in TEMPLATES.values() for template in templates}
    assert len(set(scenes.ASKED.values())) == len(scenes.ASKED) == 35
    for template, asked in scenes.ASKED.items():
        assert [bool(value) for value in dataclasses.astuple(asked)].count(True) == 1
        assert asked.setting in ("", *scenes.SETTINGS) and asked.setting not in scenes.EVERYDAY
        assert asked.outfit in ("", *scenes.OUTFITS[1:]) and asked.surface in ("", *scenes.SURFACES[1:]) and asked.primary in ("", *COLOURS)
        assert not asked.outfit or template not in TEMPLATES[False]  # things wear nothing
    for field, values in (("setting", (*scenes.SETTINGS, "")), ("outfit", (*scenes.OUTFITS[1:], "")), ("surface", (*scenes.SURFACES[1:], ""))):
        missing = set(values) - {getattr(asked, field) for asked in scenes.ASKED.values()}
        assert missing == (set(scenes.EVERYDAY) if field == "setting" else set())


@pytest.mark.parametrize(
    ("end", "asked"),
    [
        ("{class_noun} in the jungle", dict(setting="jungle")),
        ("with a blue house in the background", dict(setting="blue_house")),
        ("on top of a purple rug in a forest", dict(setting="purple_rug")),
        ("with the Eiffel Tower in the background", dict(setting="eiffel_tower")),
        ("floating in an ocean of milk", dict(setting="milk")),
        ("in a crowded street", dict(setting="sidewalk")),
        ("on top of a white rug", dict(setting="white_rug")),
        ("wearing a red hat", dict(outfit="red_hat")),
        ("wearing a black top hat and a monocle", dict(outfit="top_hat")),
        ("in a purple wizard outfit", dict(outfit="wizard")),
        ("a purple {token} {class_noun}", dict(primary="purple")),
        ("a cube shaped {token} {class_noun}", dict(surface="cube")),
    ],
)
def test_templates_ask_for_what_they_say(end, asked):
    (template,) = [template for template in scenes.ASKED if template.endswith(end)]
    assert scenes.ASKED[template] == scenes.Asked(**asked)


def test_the_names_of_what_is_asked_are_in_the_templates():
    for template, asked in scenes.ASKED.items():
        words = "".join(dataclasses.astuple(asked)).split("_")
        said = template.replace("autumn leaves", "autumn leaves tree")
        assert all(word in said.lower() for word in words), (template, words)


def test_unknown_templates_are_refused():
    for template in (scenes.PLAIN, prompts.PAPER_TEMPLATE):
        assert scenes.asked_by(template) == scenes.Asked()
    with pytest.raises(KeyError, match="on the moon"):
        scenes.show(SUBJECT, "a {token} {class_noun} on the moon", np.random.default_rng(0))


@pytest.mark.parametrize("template", scenes.ASKED)
def test_show_draws_what_is_asked_and_leaves_the_rest_open(template):
    asked, rng = scenes.ASKED[template], np.random.default_rng(0)
    found = [scenes.show(SUBJECT, template, rng) for _ in range(200)]
    assert {scene.setting for scene in found} == ({asked.setting} if asked.setting else set(scenes.EVERYDAY))
    assert {scene.outfit for scene in found} == {asked.outfit or "none"} and {scene.surface for scene in found} == {asked.surface or "none"}
    assert {scene.variation for scene in found} == set(range(scenes.VARIATIONS))
    assert len({scene.pose for scene in found}) == len({scene.light for scene in found}) == 200
    assert {scene.identity for scene in found} == {scenes.recoloured(SUBJECT, asked.primary) if asked.primary else SUBJECT}


def test_recolouring_keeps_three_colours():
    assert scenes.recoloured(SUBJECT, "purple") == dataclasses.replace(SUBJECT, primary="purple")
    assert scenes.recoloured(SUBJECT, "red") == dataclasses.replace(SUBJECT, primary="red", secondary="blue")
    assert scenes.recoloured(SUBJECT, "yellow") == dataclasses.replace(SUBJECT, primary="yellow", accent="blue")
    assert scenes.recoloured(SUBJECT, "blue") == SUBJECT


def captions_of(identity: Identity) -> set[str]:
    """All that may be said of a subject alone; written from DreamBench's templates, and from nothing of it but its class and body colour."""
    bodies = [prompts.without_token(template, "X") for template in TEMPLATES[identity.class_noun in LIVE]]
    bodies = [body.removeprefix("a ") for body in (*bodies, "a X", "a photo of a X")]
    named = {f"{identity.primary} {identity.class_noun}", identity.class_noun}
    said = {f"a {body}".replace("X", subject) for body in bodies if not body.startswith(("red ", "purple ")) for subject in named}
    if identity.primary in ("red", "purple"):
        said.add(f"a {identity.primary} {identity.class_noun}")
    return {caption.replace("a orange", "an orange") for caption in said}


def test_captions_tell_class_context_and_at_most_the_body_colour(drawn):
    alone = [scene for scene in drawn if scene.other is None]
    for scene in alone:
        assert scene.caption in captions_of(scene.identity), scene
    told = [scene for scene in alone if f"{scene.identity.primary} {scene.identity.class_noun}" in scene.caption]
    assert 0.25 < len(told) / len(alone) < 0.45
    for scene in drawn:
        if scene.other is not None:
            said, _, rest = scene.caption.partition(" next to ")
            assert said == f"a {scene.identity.class_noun}" and rest.startswith(f"a {scene.other.class_noun}")
            place = rest.removeprefix(f"a {scene.other.class_noun}")
            template = "a {token} {class_noun}" + place
            assert scene.setting in scenes.EVERYDAY if not place else scenes.ASKED[template].setting == scene.setting


def test_captions_are_true(drawn):
    """What a caption asks for is in the scene, read back through ASKED."""
    for scene in drawn:
        if scene.other is not None or scene.caption.startswith("a photo of"):
            continue
        noun, primary = scene.identity.class_noun, scene.identity.primary
        plain = scene.caption.replace("an orange", "a orange").replace(f"{primary} {noun}", noun, 1)
        by_caption = {prompts.without_token(template, noun): asked for template, asked in scenes.ASKED.items()}
        asked = by_caption.get(plain, scenes.Asked())
        assert (scene.setting if asked.setting else "") == asked.setting and (asked.setting or scene.setting in scenes.EVERYDAY)
        assert scene.outfit == (asked.outfit or "none") and scene.surface == (asked.surface or "none")


def test_captions_are_short(drawn):
    assert max(len(scene.caption.split()) for scene in drawn) <= 14
    assert all("\n" not in scene.caption and scene.caption == " ".join(scene.caption.split()) for scene in drawn)


def test_everything_is_drawn_often_enough_to_be_learned(drawn):
    counts = Counter(scene.identity.class_noun for scene in drawn)
    assert set(counts) == set(CLASS_NOUNS) and min(counts.values()) > 300
    assert {scene.setting for scene in drawn} == set(scenes.SETTINGS)
    assert {scene.outfit for scene in drawn} == set(scenes.OUTFITS) and {scene.surface for scene in drawn} == set(scenes.SURFACES)
    assert 0.04 < np.mean([scene.other is not None for scene in drawn]) < 0.08
    assert all(scene.outfit == "none" or scene.identity.class_noun in LIVE for scene in drawn)
    asked = {scene.caption for scene in drawn if scene.other is None}
    for live, nouns in ((True, LIVE), (False, OBJECTS)):
        for template in TEMPLATES[live]:
            assert any(prompts.without_token(template, noun) in asked for noun in nouns), template


def test_two_subjects_stand_side_by_side(drawn):
    pairs = [scene for scene in drawn if scene.other is not None]
    for scene in pairs:
        assert scene.identity.class_noun != scene.other.class_noun
        assert scene.other_pose.x - scene.pose.x > 0.4 and max(scene.pose.scale, scene.other_pose.scale) < 0.26
        assert scene.outfit == scene.surface == "none"


def test_templates_for_views_keep_the_colour():
    rng = np.random.default_rng(0)
    for noun in ("cat", "vase"):
        found = {scenes.draw_template(noun, rng) for _ in range(600)}
        templates = {template for template in TEMPLATES[noun in LIVE] if not template.startswith(("a red", "a purple"))}
        assert found == templates | {scenes.PLAIN} and len(found) == 24


def test_truth_numbers_every_attribute(drawn):
    found = attributes.truths(drawn)
    assert set(found) == set(attributes.ATTRIBUTES) and all(values.dtype == np.int32 for values in found.values())
    for row in (0, 17, 4000):
        scene = drawn[row]
        for name, values in attributes.ATTRIBUTES.items():
            source = scene if name in ("setting", "outfit", "surface") else scene.identity
            assert values[found[name][row]] == str(getattr(source, name))
    for name, values in attributes.ATTRIBUTES.items():
        assert len(set(values)) == len(values) and set(found[name].tolist()) == set(range(len(values)))
    assert set(attributes.IDENTITY) < set(attributes.ATTRIBUTES) and "class_noun" not in attributes.IDENTITY
