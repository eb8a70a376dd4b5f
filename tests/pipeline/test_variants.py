"""What the smoke run leaves at its defaults: whole weights, half precision, the photos as the student's data, augmentation, averages, more arms."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from proxy_jax.data import cache
from tests.pipeline.conftest import finish, start

pytestmark = pytest.mark.slow

FULL = [f"--config.{stage}.mode=full" for stage in ("subject_tuning", "proxy_tuning")]
FULL += [f"--config.{stage}.augment=paper" for stage in ("subject_tuning", "proxy_tuning")]
FULL += [f"--config.{stage}.augment_variants=2" for stage in ("subject_tuning", "proxy_tuning")]
FULL += [f"--config.{stage}.training.ema_decay=0.9" for stage in ("subject_tuning", "proxy_tuning")]
FULL += ["--config.subject_tuning.prior.weight=0.0", "--config.proxy_tuning.source=photos", "--config.compute.dtype=bfloat16"]
FULL += ["--config.compute.remat=full", "--config.supervisor.t5=False", "--config.proxy_tuning.dropout=0.1"]
FULL += ["--config.evaluation.arms=('untuned_student', 'student', 'supervisor')", "--config.evaluation.num_prompts=2"]
FULL += ["--config.evaluation.student.top_p=0.9", "--stages=random_weights,subject_tuning,proxy_tuning,evaluation"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, subject_flags):
    workdir = tmp_path_factory.mktemp("full") / "run"
    finish(start(workdir, *subject_flags, *FULL), workdir)
    return workdir


def test_whole_weights_are_written_in_official_layouts_and_differ_from_the_base(workdir):
    base = workdir / "random_weights"
    denoiser = "transformer/diffusion_pytorch_model.safetensors"
    for ours, theirs in (
        (f"subject_tuning/weights/{denoiser}", base / "supervisor" / denoiser),
        ("proxy_tuning/weights/gpt.safetensors", base / "student/gpt.safetensors"),
    ):
        with safe_open(workdir / ours, "numpy") as tuned, safe_open(theirs, "numpy") as original:
            assert set(tuned.keys()) == set(original.keys())
            changed = [name for name in tuned.keys() if not np.array_equal(tuned.get_tensor(name), original.get_tensor(name))]
            frozen = set(tuned.keys()) - set(changed)
            assert len(changed) > 0.9 * len(frozen | set(changed))
            # What is a buffer in the official code is never trained.
            assert frozen & {"pos_embed.pos_embed", "cls_embedding.uncond_embedding"}
            assert all(np.isfinite(tuned.get_tensor(name).astype(np.float32)).all() for name in tuned.keys())


def test_the_report_has_the_arms_asked_for_and_no_proxies(workdir):
    report = json.loads((workdir / "evaluation" / "report.json").read_text())
    assert [row["arm"] for row in report["rows"]] == ["untuned_student", "student", "supervisor"]
    assert report["proxies"] == [] and "photos" in report["rows"][1]["label"]
    assert not (workdir / "proxy_generation").exists()
    fingerprints = {arm: cache.fingerprint(workdir / "evaluation" / "images" / arm) for arm in ("untuned_student", "student")}
    assert fingerprints["untuned_student"] != fingerprints["student"]
