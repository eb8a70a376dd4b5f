"""What SDXL's supervisor reads of a checkpoint and tells the model of a crop; the rest: tests/pipeline/test_diffusers_parity.py."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from proxy_jax.data import images
from proxy_jax.models.layers import Compute
from proxy_jax.stages import random_weights
from proxy_jax.stages.tuning import cropped
from proxy_jax.supervisors.sdxl import SDXLSupervisor
from proxy_jax.weights import hub


def supervisor(folder, resolution=32):
    return SDXLSupervisor(folder=folder, resolution=resolution, sampler="euler", snr_gamma=0.0, compute=Compute())


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_time_ids_say_where_each_square_was_cut(tmp_path):
    """The square is what the resized picture shows from there on; sizes are those before the resize."""
    learner, pictures = supervisor(tmp_path), [picture(100, 64), picture(40, 90), picture(32, 32)]
    cut, prompts, crops = cropped(learner, pictures, ["a", "b", "c"], ConfigDict(dict(augment="none")), seed=0)
    ids = learner.crop_columns(crops)["time_ids"]
    assert prompts == ["a", "b", "c"] and ids.dtype == np.float32
    assert ids.tolist() == [[64, 100, 0, 9, 32, 32], [90, 40, 20, 0, 32, 32], [32, 32, 0, 0, 32, 32]]
    for square, original, size, (_, _, top, left, *_) in zip(cut, pictures, ((50, 32), (32, 72), (32, 32)), ids.astype(int), strict=True):
        resized = np.asarray(original.resize(size, Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(square, resized[top : top + 32, left : left + 32])


def test_augmented_pictures_have_their_own_sizes_and_prompts(tmp_path):
    stage = ConfigDict(dict(augment="paper", augment_variants=2))
    cut, prompts, crops = cropped(supervisor(tmp_path), [picture(100, 64), picture(40, 90)], ["a", "b"], stage, seed=3)
    assert prompts == ["a", "a", "b", "b"] and np.shape(cut) == (4, 32, 32, 3)
    rng = np.random.default_rng(3)
    variants = [images.augment(original, rng) for original in (picture(100, 64), picture(40, 90)) for _ in range(2)]
    assert crops[:, :2].tolist() == [[variant.height, variant.width] for variant in variants]
    assert len({square.tobytes() for square in cut}) == 4


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(timestep_spacing="linspace"), "the scheduler's timestep_spacing is 'linspace'; it can be 'leading' or 'trailing'"),
        (dict(beta_schedule="squaredcos_cap_v2"), "the scheduler's beta_schedule is 'squaredcos_cap_v2'"),
    ],
)
def test_refuses_another_scheduler(change, text, tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(random_weights.SDXL_SCHEDULER | change))
    with pytest.raises(hub.CheckpointError, match=r"scheduler_config\.json") as caught:
        supervisor(tmp_path).settings()
    assert text in str(caught.value)


def test_settings_are_those_of_the_published_scheduler(tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(random_weights.SDXL_SCHEDULER))
    for content, zeros in (({}, True), ({"force_zeros_for_empty_prompt": False}, False)):
        (tmp_path / "model_index.json").write_text(json.dumps(content))
        settings = supervisor(tmp_path).settings()
        assert settings["zeros_for_empty_prompt"] is zeros and json.loads(json.dumps(settings)) == settings
    schedule = settings["schedule"]
    assert (schedule["steps_offset"], schedule["timestep_spacing"], schedule["set_alpha_to_one"]) == (1, "leading", False)
