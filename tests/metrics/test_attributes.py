"""Scores of what a probe read, against hand-worked shares."""

import dataclasses

import numpy as np
import pytest

from proxy_jax.data.microworld import benchmark
from proxy_jax.data.microworld.looks import draw_identity
from proxy_jax.metrics import attributes, scores

TRUTH = {"primary": "teal", "secondary": "red", "pattern": "spots", "variant": "1", "accessory": "bow"}


def reading(**changes):
    """What is read in one picture: the truth on a lawn, with changes."""
    return {"class_noun": "dog", "setting": "lawn", "outfit": "none", "surface": "none"} | TRUTH | changes


def table(*pictures):
    return {name: [picture[name] for picture in pictures] for name in pictures[0]}


def test_identity_is_the_share_read_right():
    read = table(reading(), reading(secondary="blue"), reading(primary="red", secondary="blue", pattern="plain", variant="0", accessory="none"))
    np.testing.assert_allclose(attributes.identity(read, "dog", TRUTH, [{"setting": "snow"}, {"outfit": "chef"}, {"surface": "cube"}]), [1, 0.8, 0])


def test_another_class_in_the_subjects_colours_is_not_the_subject():
    read = table(reading(class_noun="vase"), reading(secondary="blue"))
    np.testing.assert_allclose(attributes.identity(read, "dog", TRUTH, [{}] * 2), [0, 0.8])


def test_chance_is_a_fifth():
    """What `identity` says of it: a random subject of the class."""
    rng, shares = np.random.default_rng(0), []
    for truth in benchmark.subjects().values():
        others = [dataclasses.asdict(draw_identity(truth.class_noun, rng)) for _ in range(200)]
        read = {name: [str(other[name]) for other in others] for name in ("class_noun", *TRUTH)}
        own = {name: str(getattr(truth, name)) for name in TRUTH}
        shares.append(attributes.identity(read, truth.class_noun, own, [{}] * len(others)).mean())
    assert np.mean(shares) == pytest.approx(0.2, abs=0.01)


def test_colours_that_a_prompt_changes_do_not_count():
    """Asked for red, a teal subject with red spots becomes a red one with teal spots: pattern, variant and accessory are left."""
    read = table(reading(primary="red", secondary="teal"), reading(primary="red", secondary="teal", pattern="plain"))
    np.testing.assert_allclose(attributes.identity(read, "dog", TRUTH, [{"primary": "red"}] * 2), [1, 2 / 3])
    purple = table(reading(primary="purple"), reading(primary="purple", secondary="teal"))
    np.testing.assert_allclose(attributes.identity(purple, "dog", TRUTH, [{"primary": "purple"}] * 2), [1, 3 / 4])
    with pytest.raises(ValueError, match=r"picture 0, whose prompt asks for \{'primary': 'red'\}"):
        attributes.identity(read, "dog", {"primary": "teal"}, [{"primary": "red"}] * 2)


def test_context_is_what_the_prompt_asks_for():
    read = table(reading(setting="snow"), reading(), reading(primary="red"), reading(outfit="chef"), reading(outfit="chef"))
    asked = [{"setting": "snow"}, {"setting": "snow"}, {"primary": "red"}, {"outfit": "chef", "setting": "snow"}, {"surface": "wet"}]
    np.testing.assert_allclose(attributes.context(read, asked), [1, 0, 1, 0.5, 0])
    with pytest.raises(ValueError, match=r"the pictures \[1\] ask for nothing"):
        attributes.context(read, [asked[0], {}, *asked[2:]])


def test_the_product_is_of_each_picture_not_of_the_means():
    pictures = reading(setting="snow", **dict.fromkeys(TRUTH, "other")), reading(), reading(class_noun="cat", setting="snow")
    found = attributes.of_samples(table(*pictures), "dog", TRUTH, [{"setting": "snow"}] * 3)
    assert set(found) == set(scores.PROBED)
    assert found["identity"].tolist() == [0, 1, 0] and found["context"].tolist() == [1, 0, 1] and found["identity_context"].mean() == 0
    assert found["right_class"].tolist() == [1, 1, 0]


def test_without_the_truth_there_is_no_identity():
    read = table(reading(setting="snow"))
    assert set(attributes.of_samples(read, "dog", None, [{"setting": "snow"}])) == {"context", "right_class"}
    assert set(attributes.of_photos(read, "dog", None)) == {"right_class"}
    found = attributes.of_photos(table(reading(), reading(pattern="plain")), "dog", TRUTH)
    assert found["identity"].tolist() == [1, 0.8] and found["right_class"].tolist() == [1, 1]
