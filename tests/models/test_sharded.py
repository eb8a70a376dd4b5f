"""Every model computes the same on a (2, 2, 2) mesh as on one device, and of denoisers and decoders the gradient is the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cheap_xla

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    command = [sys.executable, "-m", "tests.models.sharded_models"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=cheap_xla.environment(devices=8))
    assert out.returncode == 0, out.stderr[-3000:]
    return json.loads(out.stdout.strip().splitlines()[-1])


NAMES = ["sd3", "sd35", "flux", "unet", "llamagen", "chameleon", "lumina_decoding", "t5", "vit", "clip", "vae", "vq"]
NAMES += ["unet_gradient", "flux_gradient"]  # the other gradients come with their models' outputs


@pytest.mark.parametrize("name", NAMES)
def test_sharded_equals_whole(errors, name):
    assert errors[name] < 2e-5


def test_no_model_is_left_out(errors):
    assert sorted(errors) == sorted(NAMES)
