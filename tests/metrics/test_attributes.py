"""Scores of what a probe read, against hand-worked shares."""

import numpy as np
import pytest

from proxy_jax.metrics import attributes, scores

TRUTH = {"primary": "teal", "secondary": "red", "pattern": "spots", "variant": "1", "accessory": "bow"}


def reading(**changes):
    """What is read in one picture: the truth on a lawn, with changes."""
    return {"class_noun": "dog", "setting": "lawn", "outfit": "none", "surface": "none"} | TRUTH | changes


def table(*pictures):
    return {name: [picture[name] for picture in pictures] for name in pictures[0]}


def test_identity_is_the_share_read_right():
    read = table(reading(), reading(secondary="blue"), reading(primary="red", secondary="blue", pattern="plain", variant="0", accessory="none"))
    np.testing.assert_allclose(attributes.identity(read, TRUTH, [{"setting": "snow"}, {"outfit": "chef"}, {"surface": "cube"}]), [1, 0.8, 0])


def test_colours_that_a_prompt_changes_do_not_count():
    """Asked for red, a teal subject with red spots becomes a red one with teal spots: pattern, variant and accessory are left."""
    read = table(reading(primary="red", secondary="teal"), reading(primary="red", secondary="teal", pattern="plain"))
    np.testing.assert_allclose(attributes.identity(read, TRUTH, [{"primary": "red"}] * 2), [1, 2 / 3])
    purple = table(reading(primary="purple"), reading(primary="purple", secondary="teal"))
    np.testing.assert_allclose(attributes.identity(purple, TRUTH, [{"primary": "purple"}] * 2), [1, 3 / 4])
    with pytest.raises(ValueError, match=r"picture 0, whose prompt asks for \{'primary': 'red'\}"):
        attributes.identity(read, {"primary": "teal"}, [{"primary": "red"}] * 2)


def test_context_is_what_the_prompt_asks_for():
    read = table(reading(setting="snow"), reading(), reading(primary="red"), reading(outfit="chef"), reading(outfit="chef"))
    asked = [{"setting": "snow"}, {"setting": "snow"}, {"primary": "red"}, {"outfit": "chef", "setting": "snow"}, {"surface": "wet"}]
    np.testing.assert_allclose(attributes.context(read, asked), [1, 0, 1, 0.5, 0])
    with pytest.raises(ValueError, match=r"the pictures \[1\] ask for nothing"):
        attributes.context(read, [asked[0], {}, *asked[2:]])


def test_the_product_is_of_each_picture_not_of_the_means():
    read = table(reading(setting="snow", **dict.fromkeys(TRUTH, "other")), reading(class_noun="cat"))
    found = attributes.of_samples(read, "dog", TRUTH, [{"setting": "snow"}] * 2)
    assert set(found) == set(scores.PROBED)
    assert found["identity"].mean() == 0.5 == found["context"].mean() and found["identity_context"].mean() == 0
    assert found["right_class"].tolist() == [1, 0]


def test_without_the_truth_there_is_no_identity():
    read = table(reading(setting="snow"))
    assert set(attributes.of_samples(read, "dog", None, [{"setting": "snow"}])) == {"context", "right_class"}
    assert set(attributes.of_photos(read, "dog", None)) == {"right_class"}
    found = attributes.of_photos(table(reading(), reading(pattern="plain")), "dog", TRUTH)
    assert found["identity"].tolist() == [1, 0.8] and found["right_class"].tolist() == [1, 1]
