"""proxy_jax/data/microworld/benchmark.py: the 30 held-out subjects, and that pre-training never sees one."""

import collections
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import proxy_jax
from proxy_jax.data import prompts
from proxy_jax.data.microworld import benchmark, render, scenes
from proxy_jax.data.microworld.looks import LIVE, Identity


def test_the_subjects_are_dreambenchs():
    subjects = benchmark.subjects()
    assert list(subjects) == list(prompts.SUBJECTS) and len(subjects) == 30
    assert all(identity.class_noun == prompts.SUBJECTS[name].class_noun for name, identity in subjects.items())
    live = [name for name, identity in subjects.items() if identity.class_noun in LIVE]
    assert len(live) == 9 and live == [name for name, subject in prompts.SUBJECTS.items() if subject.live]


def test_identities_are_distinct():
    subjects = benchmark.subjects()
    assert len(benchmark.held_out()) == 30  # combinations
    for first, second in itertools.combinations(subjects.values(), 2):
        if first.class_noun == second.class_noun:
            assert first.primary != second.primary
    assert not {identity.primary for identity in subjects.values()} & {"red", "purple"}  # or two prompts would ask for nothing
    assert benchmark.ASKED_COLOURS == {"red", "purple"}
    for field, least in (("pattern", 5), ("variant", 3), ("accessory", 3), ("primary", 8)):
        assert len({getattr(identity, field) for identity in subjects.values()}) >= least


@pytest.mark.parametrize("name", prompts.SUBJECTS)
def test_photos_show_the_subject_alone_in_differing_everyday_settings(name):
    photos = benchmark.photos(name)
    assert len(photos) == benchmark.PHOTOS == 5
    assert len({photo.setting for photo in photos}) == 5 and {photo.setting for photo in photos} <= set(scenes.EVERYDAY)
    assert {photo.identity for photo in photos} == {benchmark.subjects()[name]}
    assert all(photo.other is None and photo.outfit == photo.surface == "none" for photo in photos)
    assert len({photo.pose for photo in photos}) == 5 and photos == benchmark.photos(name)


@pytest.mark.parametrize("name", prompts.SUBJECTS)
def test_the_shipped_photos_are_these(name):
    """Of the subjects as the code draws them; pixels may round differently with another version of skia."""
    folder = Path(proxy_jax.__file__).parent / "checkpoints" / "micro" / "dreambench" / name
    assert Identity(**json.loads((folder / "truth.json").read_text())) == benchmark.subjects()[name]
    files = sorted(folder.glob("*.png"))
    assert len(files) == benchmark.PHOTOS
    for file, scene in zip(files, benchmark.photos(name), strict=True):
        shipped = np.asarray(Image.open(file)).astype(int)
        assert np.abs(shipped - render.render(scene, len(shipped))).mean() < 1


def test_an_unknown_subject_is_refused():
    with pytest.raises(KeyError, match="dog4"):
        benchmark.photos("dog4")


def test_contexts_are_every_subject_by_its_25_prompts():
    found = benchmark.contexts()
    assert len(found) == 750 and found == benchmark.contexts()
    rows = iter(found)
    for number, (name, subject) in enumerate(prompts.SUBJECTS.items()):
        for template in prompts.dreambench_prompts(subject.live):
            own, own_template, scene = next(rows)
            asked, identity = scenes.ASKED[template], benchmark.subjects()[name]
            assert (own, own_template) == (number, template)
            assert scene.identity == (scenes.recoloured(identity, asked.primary) if asked.primary else identity)
            assert asked.setting in ("", scene.setting) and scene.outfit == (asked.outfit or "none")


def shown(found: list[scenes.Scene]) -> collections.Counter:
    identities = itertools.chain.from_iterable((scene.identity, scene.other) for scene in found)
    return collections.Counter(identity.combination() for identity in identities if identity is not None)


def test_pretraining_never_shows_a_held_out_identity(monkeypatch):
    """In the stream that is trained on. Without the rejection the same seed shows held-out combinations often."""
    held_out, chunks = benchmark.held_out(), 50
    guarded = shown([scene for number in range(chunks) for scene in render.draw_chunk(0, number)])
    monkeypatch.setattr(render, "held_out", frozenset)
    unguarded = shown([scene for number in range(chunks) for scene in render.draw_chunk(0, number)])
    hits = sum(unguarded[combination] for combination in held_out)
    assert hits > 15, hits
    assert not held_out & set(guarded)
    assert len(guarded) > 3000


def test_neither_of_two_subjects_is_held_out():
    rng, held_out = np.random.default_rng(7), benchmark.held_out()
    pairs = [scenes._draw_pair(rng, held_out) for _ in range(8_000)]
    assert not held_out & set(shown(pairs))
    assert held_out & set(shown([scenes._draw_pair(rng, frozenset()) for _ in range(8_000)]))


def test_neighbours_of_a_held_out_subject_are_shown():
    """Only the whole combination is held out: each subject's class, colours and pattern are seen, apart."""
    rng, held_out = np.random.default_rng(1), benchmark.held_out()
    found = shown([scenes.draw_scene(rng, held_out) for _ in range(25_000)])
    for class_noun, primary, secondary, pattern in held_out:
        assert any(key[:2] == (class_noun, primary) for key in found)
        assert any(key[0] == class_noun and key[2] == secondary for key in found)
        assert any(key[0] == class_noun and key[3] == pattern for key in found)


def test_draw_allowed_draws_what_is_left():
    """With almost all cans held out but those with a band, almost all drawn have one: a sixth would by chance."""
    rng = np.random.default_rng(0)
    combinations = {scenes.draw_allowed("can", rng, frozenset()).combination() for _ in range(6000)}
    held_out = frozenset(combination for combination in combinations if combination[3] != "band")
    drawn = [scenes.draw_allowed("can", rng, held_out) for _ in range(300)]
    assert not held_out & {identity.combination() for identity in drawn}
    assert sum(identity.pattern == "band" for identity in drawn) > 200


def test_the_subjects_are_the_same_in_another_process():
    """Also that no module of the benchmark imports skia, which only drawing needs."""
    code = (
        "import sys; from proxy_jax.data.microworld import attributes, benchmark, looks, scenes, vocabulary; "
        "assert 'skia' not in sys.modules; print(dict(benchmark.subjects()), benchmark.photos('cat'), benchmark.contexts()[-1])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == f"{dict(benchmark.subjects())} {benchmark.photos('cat')} {benchmark.contexts()[-1]}"
