"""The four stages with SD3.5 and Lumina-mGPT, by their variant of the smoke run; then the student's whole weights and a learned token."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from tests.pipeline.conftest import finish, start

pytestmark = pytest.mark.slow

CONFIG = "configs/smoke.py:sd35,lumina_mgpt"
TWO_STAGE = ["mode=two_stage", "training.steps=2", "embedding.steps=2", "embedding.batch_size=8", "dropout=0.1"]


def tensors(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def test_four_stages_and_two_stage_tuning(tmp_path, subject_flags):
    workdir = tmp_path / "run"
    finish(start(workdir, *subject_flags, config=CONFIG), workdir)
    report = json.loads((workdir / "evaluation" / "report.json").read_text())
    assert [row["arm"] for row in report["rows"]] == ["supervisor", "student"] and all(row["scores"]["images"] == 8 for row in report["rows"])
    # Eight modules in each of the first two blocks, none of the second attention (diffusers); seven in the last, where the text ends: nothing
    # comes of its queries.
    adapters = tensors(workdir / "subject_tuning" / "weights" / "pytorch_lora_weights.safetensors")
    assert len(adapters) == 2 * (8 + 8 + 7)
    assert [name for name, value in adapters.items() if not value.any()] == ["transformer.transformer_blocks.2.attn.add_q_proj.lora_B.weight"]
    assert json.loads((workdir / "subject_tuning" / "config.json").read_text())["proxy_generation"]["guidance_scale"] == 4.5
    tuned, base = workdir / "proxy_tuning", workdir / "random_weights" / "student" / "gpt"
    adapters = tensors(tuned / "weights" / "adapter_model.safetensors")
    assert len(adapters) == 2 * 3 * 7 and all(np.abs(value).max() > 0 for value in adapters.values())
    losses = [json.loads(line)["loss"] for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 8 and np.isfinite(losses).all()
    drawn = [np.asarray(Image.open(path)) for path in sorted((workdir / "evaluation" / "images" / "student").rglob("*.png"))]
    assert len({picture.tobytes() for picture in drawn}) == 8 and all(picture.std() > 5 for picture in drawn)

    flags = [f"--config.proxy_tuning.{flag}" for flag in TWO_STAGE]
    finish(start(workdir, *subject_flags, *flags, "--stages=proxy_tuning", config=CONFIG), workdir)
    before, after = tensors(base / "model.safetensors"), tensors(tuned / "weights" / "model.safetensors")
    assert before.keys() == after.keys() and all(not np.array_equal(before[name], after[name]) for name in before)
    assert json.loads((tuned / "weights" / "config.json").read_text()) == json.loads((base / "config.json").read_text())
    assert tensors(tuned / "weights" / "subject_embed.safetensors")["sks"].shape == (4, 64)
