"""New tokens for the subject in the CLIP text encoders (pivotal tuning) in stage 1, at tiny size."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from proxy_jax import main
from proxy_jax.stages import learners, tuning
from proxy_jax.stages.contract import StageError
from proxy_jax.supervisors.latent import EMBEDDINGS, EMBEDDINGS_FILE
from proxy_jax.training import loop
from tests.stages.tiny_runs import metrics, tiny

FILES = ("weights/pytorch_lora_weights.safetensors", f"weights/{EMBEDDINGS_FILE}", "metrics.jsonl")


def config_for(workdir):
    config = tiny(workdir)
    config.subject_tuning.embedding.update(dict(tokens=2, learning_rate=1e-2))
    config.subject_tuning.training.update(dict(steps=4, checkpoint_every=1))
    return config


@pytest.fixture(scope="module")
def tuned(runs):
    workdir = runs / "new_tokens"
    main.run(config_for(workdir), workdir, ["subject_tuning"])
    return workdir


def test_they_are_learned_in_the_first_half_of_the_steps(tuned):
    config, folder = config_for(tuned), tuned / "subject_tuning"
    learner = learners.supervisor(config, tuned)
    start, model = tuning.base_model(learner, config.subject_tuning), tuning.tuned_model(learner, config.subject_tuning, folder)
    learned = load_file(folder / "weights" / EMBEDDINGS_FILE)
    assert len(metrics(folder)) == 4 and learned.keys() == {"clip_l", "clip_g"}
    for name in learner.clips:
        np.testing.assert_array_equal(getattr(model, name).subject_embed[...], learned[EMBEDDINGS[name]])
        # Two steps of Adam at 1e-2 move each value by at most 2e-2, and some by nearly as much; their deviation is hardly corrected.
        change = np.abs(learned[EMBEDDINGS[name]] - getattr(start, name).subject_embed[...]).max()
        assert 0.015 < change < 0.025, change


def test_interrupted_it_ends_the_same(runs, tuned, monkeypatch):
    workdir = runs / "new_tokens_interrupted"
    with monkeypatch.context() as patch:

        def record(self, step, figures):
            if step == 2:
                raise KeyboardInterrupt
            original(self, step, figures)

        original = loop.Progress.record
        patch.setattr(loop.Progress, "record", record)
        with pytest.raises(KeyboardInterrupt):
            main.run(config_for(workdir), workdir, ["subject_tuning"])
    main.run(config_for(workdir), workdir, ["subject_tuning"])
    for name in FILES:
        assert (workdir / "subject_tuning" / name).read_bytes() == (tuned / "subject_tuning" / name).read_bytes(), name


def test_prompts_without_the_token_are_refused(runs):
    workdir = runs / "new_tokens_unused"
    config = config_for(workdir)
    config.subject_tuning.prompt = "a photo of a {class_noun}"
    with pytest.raises(StageError, match=r"subject_tuning\.embedding\.tokens is 2, but no prompt holds the token 'sks'; the first prompt is"):
        main.run(config, workdir, ["subject_tuning"])
