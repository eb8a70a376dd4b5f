"""proxy_jax/data/microworld/render.py and what it draws with: the same bytes each time, and everything that a scene says is seen."""

import dataclasses
import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
import skia

from proxy_jax.data.microworld import benchmark, contexts, outfits, render, scenes
from proxy_jax.data.microworld.looks import ACCESSORIES, CLASS_NOUNS, COLOURS, LIVE, PALETTE, PATTERNS, VARIANTS, Identity
from proxy_jax.data.microworld.scenes import Pose, Scene

SIZE = 64
UPRIGHT = Pose(0.5, 0.5, 0.37, 0.0, False)
SEEN = 30  # summed over the channels: less is not noticed


def subject(class_noun: str, **fields) -> Identity:
    return dataclasses.replace(Identity(class_noun, "blue", "yellow", "pink", "stripes", 0, "bow", 0.0, 0.0), **fields)


def scene_of(identity: Identity, *, setting: str = "studio_cream", variation: int = 0, pose: Pose = UPRIGHT, light: float = 0.0, **fields) -> Scene:
    return Scene(identity, pose, setting, variation, light, **fields)


def drawn(identity: Identity, size: int = SIZE, **fields) -> np.ndarray:
    return render.render(scene_of(identity, **fields), size).astype(int)


def seen(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where two pictures differ visibly, [h, w] bool."""
    return np.abs(first - second).sum(-1) > SEEN


def like(picture: np.ndarray, colour: tuple[float, float, float], tolerance: float = 0.25) -> np.ndarray:
    """Where a picture has the hue of a colour, lit or in shade, [h, w] bool: the direction from grey, and how far."""
    pixels, wanted = picture / 255, np.array(colour)
    pixels, wanted = pixels - pixels.mean(-1, keepdims=True), wanted - wanted.mean()
    return np.linalg.norm(pixels - wanted, axis=-1) < tolerance


def alone(scene: Scene, size: int = SIZE) -> np.ndarray:
    """How opaque the subject of a scene is, drawn on nothing, [3 size, 3 size] with the picture in the middle."""
    surface = skia.Surface(3 * size, 3 * size)
    canvas = surface.getCanvas()
    canvas.clear(skia.ColorTRANSPARENT)
    canvas.translate(size, size)
    canvas.scale(size, size)
    render._subject(canvas, scene.identity, scene.pose, scene)
    return surface.toarray()[..., 3] / 255


# --- determinism ---


def digest(found: list[Scene], sizes=(48, 64)) -> str:
    result = hashlib.sha256()
    for scene in found:
        result.update(scene.caption.encode())
        for size in sizes:
            result.update(render.render(scene, size).tobytes())
    return result.hexdigest()


def test_a_seed_gives_the_same_bytes_in_another_process():
    code = (
        "import hashlib; from proxy_jax.data.microworld import render; result = hashlib.sha256()\n"
        "for scene in render.draw_chunk(5, 2)[:100]:\n"
        "    result.update(scene.caption.encode())\n"
        "    for size in (48, 64): result.update(render.render(scene, size).tobytes())\n"
        "print(result.hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "1"})
    assert other.stdout.strip() == digest(render.draw_chunk(5, 2)[:100])


def test_the_order_of_drawing_does_not_matter():
    found = render.draw_chunk(5, 0)[:60]
    forwards = [render.render(scene, SIZE) for scene in found]
    render._setting.cache_clear()
    backwards = [render.render(scene, SIZE) for scene in reversed(found)][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert render.draw_chunk(5, 0)[:60] == found  # rendering draws no random numbers


def test_seeds_and_chunks_differ():
    captions = {(seed, number): [scene.caption for scene in render.draw_chunk(seed, number)] for seed in (0, 1) for number in (0, 1)}
    assert all(len(own) == render.CHUNK for own in captions.values())
    for first, second in itertools.combinations(captions.values(), 2):
        assert np.mean([a == b for a, b in zip(first, second, strict=True)]) < 0.05
    pictures = {render.render(scene, 48).tobytes() for seed in (0, 1) for number in (0, 1) for scene in render.draw_chunk(seed, number)[:100]}
    assert len(pictures) == 400


def test_workers_do_not_change_the_stream():
    """Over a chunk's end, and cut within one: as drawn one by one, with one process or three."""
    count = render.CHUNK + 90
    expected = [*render.draw_chunk(4, 0), *render.draw_chunk(4, 1)][:count]
    for workers in (1, 3):
        parts = list(render.pictures(4, count, 16, workers=workers))
        assert [len(own) for own, _ in parts] == [render.CHUNK, 90]
        assert [scene for own, _ in parts for scene in own] == expected
        pictures = np.concatenate([part for _, part in parts])
        for row in (0, 1, 300, render.CHUNK, count - 1):
            np.testing.assert_array_equal(pictures[row], render.render(expected[row], 16))


# --- sizes ---


@pytest.mark.parametrize("size", [16, 48, 64, 96, 97])
def test_any_size(size):
    picture = render.render(render.draw_chunk(0, 0)[0], size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8 and picture.flags.c_contiguous


def test_sizes_show_the_same():
    """The picture at 96 pixels, halved, is the one at 48 but for how edges are smoothed; another picture is far from it."""
    found = render.draw_chunk(3, 0)[:120]
    halved = np.stack([render.render(scene, 96).reshape(48, 2, 48, 2, 3).mean((1, 3)) for scene in found])
    small = np.stack([render.render(scene, 48) for scene in found]).astype(float)
    gaps = np.abs(halved - small).mean((1, 2, 3))
    assert gaps.max() < 5, gaps.max()
    assert np.abs(halved - small[::-1]).mean((1, 2, 3)).min() > 10


# --- subjects ---


def test_drawings_exist_for_every_name():
    assert set(render.SUBJECTS) == set(CLASS_NOUNS)
    assert set(contexts.SETTINGS) == set(scenes.SETTINGS)
    assert set(outfits.OUTFITS) == set(scenes.OUTFITS) - {"none"}
    assert set(outfits.SURFACES) == set(scenes.SURFACES) - {"none", "cube"}


@pytest.mark.parametrize("class_noun", CLASS_NOUNS)
def test_subjects_are_within_the_picture(class_noun):
    """In the usual pose whole; in any random one but for a corner."""
    rng = np.random.default_rng(0)
    for variant, pattern, accessory in itertools.product(range(VARIANTS), PATTERNS, ACCESSORIES):
        identity = subject(class_noun, variant=variant, pattern=pattern, accessory=accessory)
        opaque = alone(scene_of(identity)) > 0.1
        inside = opaque[SIZE : 2 * SIZE, SIZE : 2 * SIZE]
        assert opaque.sum() == inside.sum() and 0.15 < inside.mean() < 0.75
        assert inside[2:-2, 2:-2].sum() == inside.sum()  # a margin is left
    for _ in range(60):
        identity = dataclasses.replace(subject(class_noun), variant=int(rng.integers(VARIANTS)), width=rng.uniform(-1, 1), height=rng.uniform(-1, 1))
        outfit = str(rng.choice(scenes.OUTFITS)) if class_noun in LIVE else "none"
        opaque = alone(scene_of(identity, pose=scenes.draw_pose(rng), outfit=outfit, surface=str(rng.choice(scenes.SURFACES)))) > 0.1
        assert opaque[SIZE : 2 * SIZE, SIZE : 2 * SIZE].sum() > 0.97 * opaque.sum()


def test_every_class_variant_and_pattern_is_a_drawing_of_its_own():
    looks = list(itertools.product(CLASS_NOUNS, range(VARIANTS), PATTERNS))
    pictures = np.stack([drawn(subject(noun, variant=v, pattern=p, accessory="none"), 48) for noun, v, p in looks])
    for row, picture in enumerate(pictures[:-1]):
        differences = (np.abs(pictures[row + 1 :] - picture).sum(-1) > SEEN).sum((1, 2))
        assert differences.min() >= 40, (looks[row], looks[row + 1 + differences.argmin()])


@pytest.mark.parametrize("class_noun", CLASS_NOUNS)
def test_every_attribute_of_an_identity_is_seen(class_noun):
    values = {
        **dict(primary=COLOURS, secondary=COLOURS, accent=COLOURS, pattern=PATTERNS),
        **dict(variant=range(VARIANTS), accessory=ACCESSORIES, width=(-1.0, 1.0), height=(-1.0, 1.0)),
    }
    for variant in range(VARIANTS):
        own = subject(class_noun, variant=variant)
        picture = drawn(own)
        for field, options in values.items():
            pictures = [picture] + [drawn(dataclasses.replace(own, **{field: value})) for value in options if value != getattr(own, field)]
            for first, second in itertools.combinations(pictures, 2):
                assert seen(first, second).sum() >= 20, (field, variant)


@pytest.mark.parametrize("class_noun", CLASS_NOUNS)
def test_colours_are_where_they_belong(class_noun):
    """A body of one colour shows it, the pattern's and the accessory's colour show too; without an accessory its colour does not matter."""
    for variant in range(VARIANTS):
        own = subject(class_noun, variant=variant, primary="green", secondary="purple", accent="orange", pattern="spots", accessory="star")
        picture, box = drawn(own, setting="studio_cream"), np.s_[4:-4, 4:-4]
        for name, least in (("green", 120), ("purple", 60), ("orange", 15)):
            assert like(picture, PALETTE[name])[box].sum() >= least, (variant, name)
        bare = dataclasses.replace(own, accessory="none")
        np.testing.assert_array_equal(drawn(bare), drawn(dataclasses.replace(bare, accent="red")))
        plain = dataclasses.replace(own, pattern="plain")
        assert like(drawn(plain), PALETTE["green"])[box].sum() > like(picture, PALETTE["green"])[box].sum()


def test_proportions_stretch_the_subject():
    for class_noun in CLASS_NOUNS:
        wide = [np.ptp(np.nonzero((alone(scene_of(subject(class_noun, width=w))) > 0.9).any(0))) for w in (-1.0, 0.0, 1.0)]
        tall = [np.ptp(np.nonzero((alone(scene_of(subject(class_noun, height=h))) > 0.9).any(1))) for h in (-1.0, 0.0, 1.0)]
        for narrow, usual, broad in (wide, tall):
            assert narrow < usual < broad and 1.15 < broad / narrow < 1.4, class_noun


def test_pose_light_and_flip_are_seen():
    own = subject("teapot")
    picture = drawn(own)
    for changed in (dict(x=0.46), dict(y=0.47), dict(scale=0.34), dict(rotation=5.0), dict(flip=True)):
        assert seen(picture, drawn(own, pose=dataclasses.replace(UPRIGHT, **changed))).sum() > 100, changed
    means = [drawn(own, light=light).mean() for light in (-1.0, -0.3, 0.0, 0.3, 1.0)]
    assert means == sorted(means) and means[-1] - means[0] > 20
    mirrored = drawn(own, pose=dataclasses.replace(UPRIGHT, flip=True))
    spout = seen(picture, drawn(subject("teapot", secondary="red")))  # the small parts: spout on one side, handle on the other
    assert seen(mirrored, drawn(subject("teapot", secondary="red"), pose=dataclasses.replace(UPRIGHT, flip=True)))[:, ::-1][spout].mean() > 0.9


def test_both_subjects_of_a_pair_are_drawn():
    pairs = [scene for scene in render.draw_chunk(0, 0) if scene.other is not None][:12]
    for scene in pairs:
        picture = render.render(scene, SIZE).astype(int)
        without = render.render(dataclasses.replace(scene, other=None, other_pose=None), SIZE).astype(int)
        changed = seen(picture, without)
        assert changed[:, SIZE // 2 :].sum() > 150 and changed[:, : SIZE // 2 - 4].sum() < 10


# --- what prompts ask for ---

BOX = np.s_[7:-7, 8:-8]  # of 48 pixels; a subject is inside it


def outside(picture: np.ndarray) -> np.ndarray:
    """The pixels [n, 3] of a 48-pixel picture that no subject hides."""
    mask = np.ones(picture.shape[:2], bool)
    mask[BOX] = False
    return picture[mask]


def test_settings_differ_in_every_variation_around_the_subject():
    names = list(itertools.product(scenes.SETTINGS, range(scenes.VARIATIONS)))
    around = np.stack([outside(drawn(subject("can"), 48, setting=setting, variation=variation)) for setting, variation in names])
    for (name, pixels), (other, its_pixels) in itertools.combinations(zip(names, around, strict=True), 2):
        if name[0] != other[0]:
            assert seen(pixels, its_pixels).mean() > 0.5, (name, other)


def test_variations_of_a_setting_differ():
    for setting in scenes.SETTINGS:
        pictures = {drawn(subject("can"), setting=setting, variation=variation).tobytes() for variation in range(scenes.VARIATIONS)}
        assert len(pictures) == (2 if setting == "white_rug" else 4), setting  # the rug is its own mirror image


@pytest.mark.parametrize("setting", [name for name, drawing in contexts.SETTINGS.items() if drawing.front is not None])
def test_fronts_are_before_the_subject(setting, monkeypatch):
    picture = drawn(subject("can", pattern="plain"), setting=setting)
    monkeypatch.setattr(render, "SETTINGS", {setting: contexts.Setting(contexts.SETTINGS[setting].back)})
    assert seen(picture, drawn(subject("can", pattern="plain"), setting=setting))[-20:].sum() > 30


@pytest.mark.parametrize(
    ("setting", "colour", "where", "least"),
    [
        ("snow", (1.0, 1.0, 1.0), np.s_[-10:, :], 0.8),
        ("beach", (0.95, 0.85, 0.6), np.s_[-10:, :], 0.7),
        ("pink_fabric", (0.95, 0.5, 0.72), np.s_[:, :10], 0.6),
        ("blue_house", (0.2, 0.45, 0.85), np.s_[24:44, 1:6], 0.3),
        ("purple_rug", (0.5, 0.25, 0.75), np.s_[-14:-3, :], 0.3),
        ("water", (0.15, 0.5, 0.8), np.s_[-8:, :], 0.3),
        ("milk", (1.0, 0.97, 0.9), np.s_[-8:, :], 0.7),
        ("jungle", (0.25, 0.6, 0.3), np.s_[:, :10], 0.4),
        ("sunflowers", (1.0, 0.8, 0.12), np.s_[:, :14], 0.08),
        ("white_rug", (0.98, 0.97, 0.95), np.s_[50:58, 6:-6], 0.5),
    ],
)
def test_settings_have_the_colours_of_their_names(setting, colour, where, least):
    for variation in range(scenes.VARIATIONS):
        picture = drawn(subject("can"), setting=setting, variation=variation)
        picture = picture if variation % 2 == 0 else picture[:, ::-1]
        near = np.abs(picture / 255 - colour).max(-1) < 0.25
        assert near[where].mean() > least, (variation, near[where].mean())


def asked_pixels(class_noun: str, variant: int, **fields) -> tuple[np.ndarray, np.ndarray]:
    """The picture with what is asked, and where it differs from the one without."""
    own = subject(class_noun, variant=variant, primary="grey", secondary="teal", accent="brown")
    picture = drawn(own, **fields)
    return picture, seen(picture, drawn(own))


HEAD, BROW, BODY = np.s_[:24, :], np.s_[:18, :], np.s_[36:, :]
RED, BLACK, WHITE, GOLD, YELLOW = (0.84, 0.14, 0.14), (0.13, 0.12, 0.16), (0.97, 0.97, 0.97), (0.98, 0.8, 0.2), (1.0, 0.84, 0.12)


@pytest.mark.parametrize("class_noun", LIVE)
@pytest.mark.parametrize(
    ("outfit", "colour", "where", "least"),
    [
        ("red_hat", RED, BROW, 60),
        ("santa_hat", RED, BROW, 40),
        ("santa_hat", WHITE, HEAD, 40),
        ("top_hat", BLACK, BROW, 60),
        ("top_hat", GOLD, np.s_[14:40, :], 3),  # the monocle's rim
        ("chef", WHITE, BROW, 60),
        ("chef", WHITE, BODY, 40),
        ("firefighter", RED, BROW, 60),
        ("firefighter", (0.96, 0.92, 0.2), BODY, 15),
        ("police", (0.13, 0.19, 0.43), BROW, 50),
        ("police", (0.13, 0.19, 0.43), BODY, 40),
        ("wizard", (0.44, 0.2, 0.72), BROW, 30),
        ("wizard", (0.44, 0.2, 0.72), BODY, 60),
        ("yellow_shirt", YELLOW, BODY, 100),
        ("pink_glasses", (1.0, 0.2, 0.58), np.s_[18:36, :], 40),
    ],
)
def test_outfits_add_their_colours_where_they_are_worn(class_noun, outfit, colour, where, least):
    for variant in range(VARIANTS):
        picture, changed = asked_pixels(class_noun, variant, outfit=outfit)
        near = (np.abs(picture / 255 - colour).max(-1) < 0.22) & changed
        assert near[where].sum() >= least, (variant, near[where].sum())


@pytest.mark.parametrize("class_noun", LIVE)
def test_the_rainbow_scarf_is_a_rainbow_round_the_neck(class_noun):
    for variant in range(VARIANTS):
        picture, changed = asked_pixels(class_noun, variant, outfit="rainbow_scarf")
        for name in ("red", "orange", "yellow", "green", "blue", "purple"):
            near = (np.abs(picture / 255 - PALETTE[name]).max(-1) < 0.2) & changed
            assert near[34:60].sum() >= 8, name
        assert not changed[:30].any()


@pytest.mark.parametrize("class_noun", LIVE)
def test_hats_are_on_the_head_and_clothes_below_it(class_noun):
    for outfit in ("red_hat", "santa_hat"):
        _, changed = asked_pixels(class_noun, 0, outfit=outfit)
        assert changed[:30].sum() > 200 and not changed[32:].any()
    _, changed = asked_pixels(class_noun, 0, outfit="yellow_shirt")
    assert not changed[:36].any()


def test_outfits_differ_from_each_other():
    for class_noun, variant in itertools.product(LIVE, range(VARIANTS)):
        pictures = [drawn(subject(class_noun, variant=variant), outfit=outfit) for outfit in scenes.OUTFITS]
        assert min(seen(a, b).sum() for a, b in itertools.combinations(pictures, 2)) > 100


def test_things_wear_nothing():
    for class_noun in CLASS_NOUNS:
        same = np.array_equal(drawn(subject(class_noun), outfit="red_hat"), drawn(subject(class_noun)))
        assert same == (class_noun not in LIVE)


@pytest.mark.parametrize("class_noun", CLASS_NOUNS)
def test_surfaces_are_seen(class_noun):
    for variant in range(VARIANTS):
        for surface, white, blue in (("shiny", True, False), ("wet", False, True)):
            picture, changed = asked_pixels(class_noun, variant, surface=surface)
            assert changed.sum() > 200
            glints, puddle = (picture.min(-1) > 225) & changed, (picture[..., 2] > picture[..., 0] + 30) & changed
            assert (glints.sum() > 60) == white and (puddle[53:].sum() > 100) == blue, (variant, surface)
        picture, changed = asked_pixels(class_noun, variant, surface="cube")
        assert changed.sum() > 800
        front = picture[16:56, 12:16]  # left of the disc: the cube's front, in the body's colour and pattern
        assert np.ptp(front.reshape(-1, 3), axis=0).max() > 60


@pytest.mark.parametrize("class_noun", CLASS_NOUNS)
@pytest.mark.parametrize("colour", sorted(benchmark.ASKED_COLOURS))
def test_asking_for_a_colour_recolours_the_body(class_noun, colour):
    template = f"a {colour} {{token}} {{class_noun}}"
    for variant in range(VARIANTS):
        own = subject(class_noun, variant=variant, primary="grey", secondary="teal", accent="brown", pattern="band")
        scene = dataclasses.replace(scenes.show(own, template, np.random.default_rng(0)), pose=UPRIGHT, setting="studio_green", light=0.0)
        picture, before = render.render(scene, SIZE).astype(int), drawn(own, setting="studio_green", variation=scene.variation)
        there = like(picture, PALETTE[colour]) & seen(picture, before)
        assert there.sum() > 100 and not like(before, PALETTE[colour])[there].any(), (variant, there.sum())


@pytest.mark.parametrize("name", ["backpack", "cat", "dog"])
def test_prompts_of_a_subject_look_different(name):
    """All 25 pictures of a held-out subject, pairwise, in one pose and on one everyday setting."""
    number, pictures = list(benchmark.subjects()).index(name), []
    for own, _, scene in benchmark.contexts():
        if own == number:
            place = dict(setting="lawn", variation=0) if scene.setting in scenes.EVERYDAY else {}
            pictures.append(render.render(dataclasses.replace(scene, pose=UPRIGHT, light=0.0, **place), SIZE).astype(int))
    assert len(pictures) == 25
    assert min(seen(a, b).sum() for a, b in itertools.combinations(pictures, 2)) > 150


def test_unknown_names_are_refused():
    for wrong in (dict(setting="moon"), dict(outfit="cape")):
        with pytest.raises(KeyError, match=next(iter(wrong.values()))):
            drawn(subject("dog"), **wrong)
    with pytest.raises(KeyError, match="horse"):
        drawn(subject("horse"))
