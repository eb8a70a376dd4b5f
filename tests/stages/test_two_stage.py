"""Sun et al.'s two stages on the student: the token's text features first, then the weights; at tiny size."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from proxy_jax import main
from proxy_jax.data import proxy_set
from proxy_jax.models import parameters
from proxy_jax.stages import contract, learners, tuning
from proxy_jax.stages.contract import StageError
from proxy_jax.training import loop
from tests.stages.tiny_runs import metrics, tiny, write_proxies

EMBED = "weights/subject_embed.safetensors"


def config_for(runs, workdir):
    config = tiny(workdir, mode="two_stage")
    config.proxies = str(runs / "other" / "dataset")
    config.proxy_tuning.embedding.update(dict(steps=3, batch_size=4, log_every=1, checkpoint_every=1, preview_every=3))
    config.proxy_tuning.training.update(dict(learning_rate=5e-6, preview_every=2))
    return config


@pytest.fixture(scope="module")
def tuned(runs):
    workdir = runs / "two_stage"
    main.run(config_for(runs, workdir), workdir, ["proxy_tuning"])
    return workdir


def test_first_the_features_then_the_weights(runs, tuned):
    folder = tuned / "proxy_tuning"
    assert len(metrics(folder / "embedding")) == 3 and len(metrics(folder)) == 2
    assert [line["learning_rate"] for line in metrics(folder / "embedding") + metrics(folder)] == pytest.approx([1e-2] * 3 + [5e-6] * 2)
    assert (folder / "embedding" / "previews" / "step_000003.png").is_file() and (folder / "previews" / "step_000002.png").is_file()
    config = config_for(runs, tuned)
    learner = learners.student(config, tuned)
    # Where it started: the mean over the prompts of what T5 makes of each piece of the token.
    text = learner.encode_prompts(["a sks toy", "a sks toy in the snow"])
    pieces = len(learner.pieces["sks"])
    start = np.stack([text["caption"][text["subject_rows"] == number].mean(0) for number in range(1, pieces + 1)])
    learned = load_file(folder / EMBED)["sks"]
    # Three steps of Adam at 1e-2 move each value by at most 3e-2, and some by nearly as much.
    assert learned.shape == start.shape and 0.02 < np.abs(learned - start).max() < 0.031
    # The weights went by 5e-6 a step.
    base, weights = load_file(learner.gpt), load_file(folder / "weights" / "gpt.safetensors")
    change = {name: np.abs(weights[name] - base[name]).max() for name in base}
    assert change.pop("cls_embedding.uncond_embedding") == 0
    assert 0 < min(change.values()) and max(change.values()) < 1.2e-5
    outputs = json.loads((folder / "DONE.json").read_text())["outputs"]
    assert outputs["trained_parameters"] == sum(value.size for value in base.values()) - base["cls_embedding.uncond_embedding"].size + learned.size


def test_the_tuned_model_uses_the_features_wherever_the_token_stands(runs, tuned):
    config = config_for(runs, tuned)
    learner = learners.student(config, tuned)
    model = tuning.tuned_model(learner, config.proxy_tuning, tuned / "proxy_tuning")
    np.testing.assert_array_equal(model.subject_embed[...], load_file(tuned / "proxy_tuning" / EMBED)["sks"])
    text = learner.encode_prompts(["a photo of sks toy on the beach", "a photo of a toy"] * 4)
    assert (text["subject_rows"][0] > 0).sum() == len(learner.pieces["sks"]) and not text["subject_rows"][1].any()
    options = {"guidance_scale": 3.0, "top_k": 50}

    def draw():
        return learner.draw(model, text, {}, 0, np.asarray([5, 6] * 4), options)

    before = draw()
    model = parameters.with_arrays(model, {"subject_embed": jnp.ones_like(model.subject_embed[...]) * 3})
    after = draw()
    assert not np.array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])


@pytest.mark.parametrize("moment", ["embedding", "weights"])
def test_interrupted_in_either_training_it_ends_the_same(runs, tuned, tmp_path, monkeypatch, moment):
    workdir = runs / f"interrupted_{moment}"
    config = config_for(runs, workdir)
    with monkeypatch.context() as patch:
        calls = []

        def record(self, step, figures):
            calls.append(step)
            if len(calls) == {"embedding": 2, "weights": 4}[moment]:
                raise KeyboardInterrupt
            original(self, step, figures)

        original = loop.Progress.record
        patch.setattr(loop.Progress, "record", record)
        with pytest.raises(KeyboardInterrupt):
            main.run(config, workdir, ["proxy_tuning"])
    main.run(config, workdir, ["proxy_tuning"])
    for name in ("weights/gpt.safetensors", EMBED, "metrics.jsonl", "embedding/metrics.jsonl"):
        assert (workdir / "proxy_tuning" / name).read_bytes() == (tuned / "proxy_tuning" / name).read_bytes(), name


def test_prompts_without_the_token_are_refused(runs, tmp_path):
    workdir = runs / "tokenless"
    config = config_for(runs, workdir)
    config.proxies = str(write_proxies(tmp_path / "set", ["a toy", "a toy in the snow"]))
    assert proxy_set.read(config.proxies).prompts() == ["a toy", "a toy in the snow"]
    with pytest.raises(StageError, match="no prompt holds the token 'sks'; the first prompt is 'a toy'"):
        main.run(config, workdir, ["proxy_tuning"])


def test_the_embeddings_training_is_checked_and_its_bookkeeping_has_no_effect(runs):
    workdir = runs / "checks"
    config = config_for(runs, workdir)
    before = contract.fields(config, "proxy_tuning")
    config.proxy_tuning.embedding.log_every = 7
    assert contract.fields(config, "proxy_tuning") == before and "embedding" in before["proxy_tuning"]
    config.proxy_tuning.embedding.accumulation = 3
    with pytest.raises(StageError, match=r"proxy_tuning\.embedding\.batch_size is 4, which is not a multiple of 3"):
        main.run(config, workdir, ["proxy_tuning"])
    config.proxy_tuning.embedding.learning_rate = 0.0
    config.subject_tuning.mode = "two_stage"
    with pytest.raises(StageError) as caught:
        main.run(config, workdir, ["proxy_tuning"])
    assert "proxy_tuning.embedding.learning_rate is 0.0" in str(caught.value)
    assert "subject_tuning.mode is 'two_stage'; it can be lora or full" in str(caught.value)
