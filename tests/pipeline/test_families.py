"""The four stages with each further family of supervisors, by the variants of the smoke run (SD3.5: tests/pipeline/test_lumina_mgpt.py)."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from tests.pipeline.conftest import finish, start

pytestmark = pytest.mark.slow

# family -> the number of modules that its LoRA adapts: of SDXL eight in each of two layers of four transformers, and four in each of two
# layers of two text encoders; of FLUX.1 twelve in each of two double blocks and three in each of two single ones
FAMILIES = {"sdxl": 4 * 2 * 8 + 2 * 2 * 4, "flux": 2 * 12 + 2 * 3}
FLAGS = {
    "sdxl": [r"--config.subject_tuning.lora.text_encoders=blocks\.(q|k|v|o)", "--config.subject_tuning.embedding.tokens=2"],
    # as it would be on a small card
    "flux": ["--config.subject_tuning.lora.base=int8", "--config.proxy_tuning.lora.base=int8", "--config.supervisor.vae_tile=16"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_four_stages(family, tmp_path, subject_flags):
    workdir = tmp_path / "run"
    log = finish(start(workdir, *subject_flags, *FLAGS[family], config=f"configs/smoke.py:{family}"), workdir)
    mebibytes = r"(\d+\.\d\d) MiB"
    held = re.findall(rf"memory a device: frozen weights {mebibytes}, trained weights {mebibytes}, optimizer {mebibytes}", log)
    assert len(held) == 2 and all(float(frozen) > float(trained) > 0 for frozen, trained, _ in held)  # of both trainings
    assert len(re.findall(rf"compiled the step in .* s; activations and gradients {mebibytes} a device", log)) == 2
    report = json.loads((workdir / "evaluation" / "report.json").read_text())
    assert [row["arm"] for row in report["rows"]] == ["supervisor", "student"] and all(row["scores"]["images"] == 8 for row in report["rows"])
    with safe_open(workdir / "subject_tuning" / "weights" / "pytorch_lora_weights.safetensors", "numpy") as adapters:
        names = list(adapters.keys())
        unused = "text_encoder.text_model.encoder.layers.1."  # SDXL takes that encoder's penultimate states
        trained = [name for name in names if not name.startswith(unused)]
        assert len(names) == 2 * FAMILIES[family] and all(np.abs(adapters.get_tensor(name)).max() > 0 for name in trained)
    losses = [json.loads(line)["loss"] for line in (workdir / "subject_tuning" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 8 and np.isfinite(losses).all()
    drawn = [np.asarray(Image.open(path)) for path in sorted((workdir / "proxy_generation" / "images").iterdir())]
    assert len({picture.tobytes() for picture in drawn}) == 16 and all(picture.std() > 5 for picture in drawn)
