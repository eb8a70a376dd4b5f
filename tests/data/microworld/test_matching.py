"""proxy_jax/data/microworld/matching.py: the scenes that pictures were drawn from are found again, through noise and wrong colours too."""

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from proxy_jax.data.microworld import benchmark, matching, render
from proxy_jax.data.microworld.scenes import EVERYDAY, PLAIN, SETTINGS, Pose, Scene, recoloured, show

SIZE = 48
NAMES = ("dog", "cat2", "teapot", "backpack_dog", "rc_car", "vase")


def drawn(seed: int, settings=SETTINGS) -> list[Scene]:
    """Each subject once, in a random pose and setting."""
    rng = np.random.default_rng(seed)
    return [dataclasses.replace(show(benchmark.subjects()[name], PLAIN, rng), setting=str(rng.choice(settings))) for name in NAMES]


def found_for(scenes: list[Scene], pictures: list[np.ndarray], settings=SETTINGS) -> list[Scene]:
    return [matching.nearest(picture[None], scene.identity, settings)[0] for scene, picture in zip(scenes, pictures, strict=True)]


def background(scene: Scene) -> np.ndarray:
    return render.render(dataclasses.replace(matching.backdrop(scene), light=0.0), SIZE)


def check(found: list[Scene], truth: list[Scene], light: float) -> None:
    for got, scene in zip(found, truth, strict=True):
        np.testing.assert_array_equal(background(got), background(scene))  # two variations may look the same
        assert (got.identity, got.outfit, got.surface, got.other) == (scene.identity, "none", "none", None)
        assert got.setting == scene.setting and got.pose.flip == scene.pose.flip
        for name, tolerance in (("x", 0.012), ("y", 0.015), ("scale", 0.018), ("rotation", 2.5)):
            assert abs(getattr(got.pose, name) - getattr(scene.pose, name)) < tolerance, (name, scene)
        assert abs(got.light - scene.light) < light


def test_rendered_scenes_are_found_again():
    truth = drawn(0)
    pictures = [render.render(scene, SIZE) for scene in truth]
    found = found_for(truth, pictures)
    check(found, truth, light=0.05)
    assert np.mean([matching.gap(picture, scene) for picture, scene in zip(pictures, found, strict=True)]) < 1.5
    assert found[:2] == found_for(truth[:2], pictures[:2])


def test_through_noise_and_blur():
    truth, rng = drawn(1), np.random.default_rng(0)
    blurred = [gaussian_filter(render.render(scene, SIZE).astype(float), (0.7, 0.7, 0)) for scene in truth]
    pictures = [np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8) for picture in blurred]
    check(found_for(truth, pictures), truth, light=0.3)


def test_a_picture_in_the_wrong_colour_is_compared_with_the_right_one():
    truth = drawn(2, EVERYDAY)
    wrong = [dataclasses.replace(scene, identity=recoloured(scene.identity, "red")) for scene in truth]
    found = found_for(truth, [render.render(scene, SIZE) for scene in wrong], EVERYDAY)
    check(found, truth, light=0.15)


def test_only_the_settings_given_are_searched():
    scene = dataclasses.replace(drawn(3)[0], setting="jungle")
    found = found_for([scene], [render.render(scene, SIZE)], ("snow", "lawn"))
    assert found[0].setting in ("snow", "lawn")


def test_areas_are_where_the_subject_is():
    """A larger subject has a larger area; it moves with the subject; what stands in front of a subject is not its area."""
    identity = benchmark.subjects()["teapot"]
    middle = Scene(identity, Pose(0.5, 0.5, 0.3, 0.0, False), "snow", 0, 0.3)
    small, right = (dataclasses.replace(middle, pose=Pose(*place, 0.0, False)) for place in ((0.5, 0.5, 0.15), (0.5 + 4 / 12, 0.5, 0.3)))
    areas = matching.areas([middle, small, right, matching.backdrop(middle)], SIZE, 12).reshape(4, 12, 12)
    assert areas.shape == (4, 12, 12) and areas.dtype == bool
    assert 5 < areas[1].sum() < areas[0].sum() < 100 and not areas[3].any()
    np.testing.assert_array_equal(areas[2][:, 4:], areas[0][:, :8])
    milk = matching.areas([dataclasses.replace(middle, setting="milk")], SIZE, 12).reshape(12, 12)
    assert not (milk & ~areas[0]).any() and milk.sum() < areas[0].sum()


@pytest.mark.parametrize("pictures", [np.zeros((1, 48, 48, 3), np.float32), np.zeros((48, 48, 3), np.uint8), np.zeros((1, 48, 40, 3), np.uint8)])
def test_other_arrays_are_refused(pictures):
    with pytest.raises(ValueError, match="pictures are"):
        matching.nearest(pictures, benchmark.subjects()["dog"])


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="not divided"):
        matching.areas([], SIZE, 7)
