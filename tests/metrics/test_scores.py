"""The scores against hand-worked numbers and plain loops over pairs."""

import json

import numpy as np
import pytest

from proxy_jax.metrics import scores
from proxy_jax.metrics.scores import Embeddings


def loop_cosine(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a)) / np.sqrt(np.dot(b, b)))


@pytest.fixture(scope="module")
def arm():
    rng = np.random.default_rng(0)
    real = Embeddings(rng.normal(size=(3, 5)), rng.normal(size=(3, 4)))
    generated = Embeddings(rng.normal(size=(6, 5)), rng.normal(size=(6, 4)))
    return real, generated, rng.normal(size=(2, 4)), ["a dog in the snow", "a red dog"]


def test_hand_worked_angles():
    """Photos at 0° and 90°; images at 0° and 45°: DINO = (1 + 0 + √½ + √½)/4. Lengths must not matter."""
    real = Embeddings(np.array([[2.0, 0], [0, 3]]), np.array([[1.0, 0], [1, 1]]))
    generated = Embeddings(np.array([[5.0, 0], [1, 1]]), np.array([[0.0, 7], [1, 0]]))
    result = scores.score(real, generated, np.array([[0.0, 2]]), ["a dog"], [0, 0])
    half = np.sqrt(0.5)
    assert result.dino == pytest.approx((1 + 0 + 2 * half) / 4)
    assert result.clip_i == pytest.approx((0 + half + 1 + half) / 4)
    assert result.clip_t == pytest.approx((1 + 0) / 2)


def test_mean_over_all_pairs(arm):
    real, generated, texts, prompts = arm
    owner = [0, 1, 0, 1, 0, 1]
    result = scores.score(real, generated, texts, prompts, owner)
    assert result.dino == pytest.approx(np.mean([loop_cosine(r, g) for r in real.dino for g in generated.dino]))
    assert result.clip_i == pytest.approx(np.mean([loop_cosine(r, g) for r in real.clip for g in generated.clip]))
    assert result.clip_t == pytest.approx(np.mean([loop_cosine(texts[p], g) for p, g in zip(owner, generated.clip, strict=True)]))
    assert result.images == 6


def test_per_prompt_means(arm):
    real, generated, texts, prompts = arm
    result = scores.score(real, generated, texts, prompts, [0, 0, 0, 1, 1, 1])
    assert [p.prompt for p in result.per_prompt] == prompts
    for number, prompt in enumerate(result.per_prompt):
        rows = slice(3 * number, 3 * number + 3)
        assert prompt.images == 3
        assert prompt.dino == pytest.approx(np.mean([loop_cosine(r, g) for r in real.dino for g in generated.dino[rows]]))
        assert prompt.clip_t == pytest.approx(np.mean([loop_cosine(texts[number], g) for g in generated.clip[rows]]))
    for name in scores.METRICS:  # equal counts: the overall mean is the mean of the prompts' means
        assert getattr(result, name) == pytest.approx(np.mean([getattr(p, name) for p in result.per_prompt]))


def test_overall_weighs_images_not_prompts(arm):
    real, generated, texts, prompts = arm
    result = scores.score(real, generated, texts, prompts, [0, 0, 0, 0, 0, 1])
    first, second = result.per_prompt
    assert result.dino == pytest.approx((5 * first.dino + second.dino) / 6)
    assert abs(result.dino - (first.dino + second.dino) / 2) > 1e-3


def test_ceiling_leaves_out_a_photo_with_itself():
    real = np.array([[1.0, 0], [0, 1], [1, 1]])
    result = scores.ceiling(Embeddings(real, real * 4))
    assert result.dino == pytest.approx((0 + 2 * np.sqrt(0.5)) / 3)
    assert result.clip_i == pytest.approx(result.dino)
    assert result.clip_t is None and result.note == "" and result.images == 3


def test_one_photo_has_no_ceiling_and_says_so():
    result = scores.ceiling(Embeddings(np.ones((1, 3)), np.ones((1, 3))))
    assert result.dino is None and result.clip_i is None
    assert "at least two photos" in result.note


def test_to_dict_is_json(arm):
    real, generated, texts, prompts = arm
    result = scores.score(real, generated, texts, prompts, [0, 1] * 3, {"context": np.arange(6.0)})
    back = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert back["dino"] == result.dino and back["note"] == ""
    assert back["per_prompt"][1] == {
        "prompt": "a red dog",
        "images": 3,
        **{name: getattr(result.per_prompt[1], name) for name in scores.METRICS},
        **{name: None for name in scores.PROBED},
        "context": (1 + 3 + 5) / 3,
    }


def test_what_a_probe_read_is_averaged_beside(arm):
    real, generated, texts, prompts = arm
    read = {"identity": np.array([1, 0.5, 0, 0.2, 0.2, 0.2]), "right_class": np.array([1, 1, 0, 1, 1, 1])}
    result = scores.score(real, generated, texts, prompts, [0, 0, 0, 1, 1, 1], read)
    assert result.identity == pytest.approx(0.35) and result.right_class == pytest.approx(5 / 6) and result.context is None
    assert [prompt.identity for prompt in result.per_prompt] == pytest.approx([0.5, 0.2])
    assert result.dino == scores.score(real, generated, texts, prompts, [0, 0, 0, 1, 1, 1]).dino
    assert scores.ceiling(real, {"identity": np.array([1, 0.6, 0.8])}).identity == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("owner", "message"),
    [([0] * 6, "without one"), ([0, 1, 2, 0, 1, 0], "prompt numbers"), ([0, 1, -1, 0, 1, 0], "prompt numbers"), ([0, 1], "6 images with 2")],
)
def test_prompts_must_fit(arm, owner, message):
    real, generated, texts, prompts = arm
    with pytest.raises(ValueError, match=message):
        scores.score(real, generated, texts, prompts, owner)


def test_bad_embeddings_are_refused():
    with pytest.raises(ValueError, match=r"\[1\] are zero or not finite"):
        scores.cosines(np.array([[1.0, 0], [0, 0]]), np.eye(2))
    with pytest.raises(ValueError, match="not finite"):
        scores.cosines(np.array([[1.0, np.nan]]), np.eye(2))
    with pytest.raises(ValueError, match="n > 0"):
        scores.normalise(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="same images"):
        Embeddings(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="one text an image"):
        scores.agreement(np.ones((2, 3)), np.ones((1, 3)))


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.7062), (5, 2.7764), (30, 2.0452)])
def test_interval_uses_the_tabulated_t(n, quantile):
    values = np.random.default_rng(n).normal(size=n)
    result = scores.interval(values)
    assert result.n == n and result.mean == pytest.approx(values.mean())
    assert result.half_width == pytest.approx(quantile * values.std(ddof=1) / np.sqrt(n), rel=1e-4)


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = [abs(i.mean) <= i.half_width for i in (scores.interval(rng.normal(size=4), level=0.8) for _ in range(2000))]
    assert np.mean(hits) == pytest.approx(0.8, abs=0.03)


def test_interval_of_one_and_none():
    assert scores.interval([0.5]) == scores.Interval(0.5, None, 1)
    with pytest.raises(ValueError, match="needs values"):
        scores.interval([])
    with pytest.raises(ValueError, match="level"):
        scores.interval([1.0, 2.0], level=1.0)
