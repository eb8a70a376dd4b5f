"""proxy_jax/data/microworld/dataset.py: pictures with their captions and truths, drawn once and kept."""

import numpy as np
import pytest

from proxy_jax.data import prompts
from proxy_jax.data.microworld import attributes, benchmark, dataset, render, scenes

SIZE, COUNT = 16, render.CHUNK + 20


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def world(cache) -> dataset.World:
    return dataset.world(3, COUNT, SIZE, cache)


def test_pictures_captions_and_truths_belong_together(world):
    expected = [*render.draw_chunk(3, 0), *render.draw_chunk(3, 1)[:20]]
    assert world.captions == [scene.caption for scene in expected]
    assert world.pictures.shape == (COUNT, SIZE, SIZE, 3) and world.pictures.dtype == np.uint8
    for row in (0, 1, 100, render.CHUNK - 1, render.CHUNK, COUNT - 1):
        np.testing.assert_array_equal(world.pictures[row], render.render(expected[row], SIZE))
    for name, values in attributes.truths(expected).items():
        np.testing.assert_array_equal(world.truths[name], values)
    assert list(world.truths) == list(attributes.ATTRIBUTES)
    assert world.paired.dtype == bool and world.paired.tolist() == [" next to " in caption for caption in world.captions]


def test_a_world_is_drawn_once(world, cache, monkeypatch):
    def no_drawing(*_, **__):
        raise AssertionError("drawn again")

    monkeypatch.setattr(render, "pictures", no_drawing)
    again = dataset.world(3, COUNT, SIZE, cache)
    np.testing.assert_array_equal(again.pictures, world.pictures)
    assert again.captions == world.captions and all((again.truths[name] == values).all() for name, values in world.truths.items())
    for other in (dict(seed=4), dict(count=COUNT - 1), dict(size=24)):
        with pytest.raises(AssertionError, match="drawn again"):
            dataset.world(*(dict(seed=3, count=COUNT, size=SIZE) | other).values(), cache)


def test_another_renderer_draws_again(world, cache, monkeypatch):
    """The cache knows by its pixels that the renderer has changed, not by a number that someone must raise."""
    original, blank = render.render, np.zeros((render.CHUNK, SIZE, SIZE, 3), np.uint8)
    monkeypatch.setattr(render, "render", lambda scene, size: original(scene, size) ^ 1)
    monkeypatch.setattr(render, "pictures", lambda *_, **__: iter([(render.draw_chunk(3, 0), blank), (render.draw_chunk(3, 1)[:20], blank[:20])]))
    dataset.version.cache_clear()  # a process has one renderer, a test can have two
    try:
        assert world.pictures.any() and not dataset.world(3, COUNT, SIZE, cache).pictures.any()
    finally:
        dataset.version.cache_clear()


def test_an_interrupted_drawing_leaves_nothing_and_is_done_again(world, tmp_path, monkeypatch):
    original = render.pictures

    def interrupted(*arguments, **options):
        yield next(original(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(render, "pictures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dataset.world(3, COUNT, SIZE, tmp_path)
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(render, "pictures", original)
    np.testing.assert_array_equal(dataset.world(3, COUNT, SIZE, tmp_path).pictures, world.pictures)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    np.testing.assert_array_equal(dataset.world(3, COUNT, SIZE, tmp_path).pictures, world.pictures)


def test_fewer_pictures_are_the_first_of_more(world, tmp_path):
    np.testing.assert_array_equal(dataset.world(3, 30, SIZE, tmp_path).pictures, world.pictures[:30])


@pytest.fixture
def shown(monkeypatch) -> list[scenes.Scene]:
    """The scenes that are drawn from here on; their pictures are blank."""
    found = []
    monkeypatch.setattr(render, "render", lambda scene, size: found.append(scene) or np.zeros((size, size, 3), np.uint8))
    return found


def test_instances_are_views_of_subjects_that_are_not_held_out(shown, monkeypatch, tmp_path):
    monkeypatch.setattr(dataset, "version", lambda seed, size: {})
    pictures = dataset.instances(0, 3000, 2, 4, tmp_path)
    assert pictures.shape == (3000, 2, 4, 4, 3) and len(shown) == 6000
    held_out = benchmark.held_out()
    assert all(first.identity == second.identity for first, second in zip(shown[::2], shown[1::2], strict=True))
    assert not held_out & {scene.identity.combination() for scene in shown}
    assert len({scene.identity for scene in shown}) == 3000
    assert np.mean([a.setting != b.setting for a, b in zip(shown[::2], shown[1::2], strict=True)]) > 0.8
    shown.clear()
    monkeypatch.setattr(benchmark, "held_out", frozenset)
    for seed in range(5, 8):
        dataset.instances(seed, 3000, 1, 4, tmp_path)
    assert held_out & {scene.identity.combination() for scene in shown}  # so they would be, were they not rejected


def test_instances_are_kept_and_differ_by_seed(tmp_path, monkeypatch):
    first = dataset.instances(0, 6, 3, SIZE, tmp_path)
    assert first.shape == (6, 3, SIZE, SIZE, 3) and len({view.tobytes() for own in first for view in own}) == 18
    assert not (dataset.instances(1, 6, 3, SIZE, tmp_path) == first).all((1, 2, 3, 4)).any()
    np.testing.assert_array_equal(dataset.instances(0, 4, 3, SIZE, tmp_path), first[:4])
    monkeypatch.setattr(dataset, "_views", lambda *_: pytest.fail("drawn again"))
    np.testing.assert_array_equal(dataset.instances(0, 6, 3, SIZE, tmp_path), first)


def test_held_out_pictures_are_the_benchmarks():
    found = dataset.held_out(SIZE)
    assert found.pictures.shape == (750, SIZE, SIZE, 3) and len(found.scenes) == len(found.templates) == len(found.subjects) == 750
    names, truths = list(benchmark.subjects()), found.truths()
    for row in range(0, 750, 37):
        subject = prompts.SUBJECTS[names[found.subjects[row]]]
        assert found.templates[row] == prompts.dreambench_prompts(subject.live)[row % 25]
        assert attributes.ATTRIBUTES["class_noun"][truths["class_noun"][row]] == subject.class_noun
        asked = scenes.ASKED[found.templates[row]]
        for name in ("setting", "outfit", "surface", "primary"):
            assert getattr(asked, name) in ("", attributes.ATTRIBUTES[name][truths[name][row]])
        np.testing.assert_array_equal(found.pictures[row], render.render(found.scenes[row], SIZE))
    assert np.bincount(found.subjects).tolist() == [25] * 30


def test_photos_are_the_benchmarks():
    found = dataset.photos(SIZE)
    assert found.shape == (30, benchmark.PHOTOS, SIZE, SIZE, 3)
    for number, name in enumerate(benchmark.subjects()):
        np.testing.assert_array_equal(found[number, 3], render.render(benchmark.photos(name)[3], SIZE))
