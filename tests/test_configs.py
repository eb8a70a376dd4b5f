"""The configs for one's own subject: one for every pair of a supervisor and a student, valid as they stand and on the mesh their docstrings name."""

import itertools
import re
import runpy
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh

from proxy_jax import main, sharding
from proxy_jax.stages import validation

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FAMILY = {"sdxl": "sdxl", "sd3": "sd3", "sd35": "sd3", "flux": "flux"}  # supervisor in a file's name -> its family


@pytest.mark.parametrize(("supervisor", "student"), [*itertools.product(FAMILY, ("llamagen", "lumina_mgpt"))])
def test_every_pair_has_a_config(supervisor, student):
    path = CONFIGS / f"{supervisor}_{student}.py"
    module = runpy.run_path(str(path))
    config, text = module["get_config"](), module["__doc__"]
    assert (config.supervisor.family, config.student.family) == (FAMILY[supervisor], student)
    assert f"--config configs/{path.name} " in text and config.supervisor.checkpoint in text and "Hardware" in text
    config.subject.update(photos="photos", class_noun="dog")
    validation.validate(config, config.stages, tuple(main.STAGES))
    sizes = dict.fromkeys(sharding.AXES, 1) | {axis: int(size) for axis, size in re.findall(r"--config\.mesh\.(\w+)=(\d+)", text)}
    validation.validate_batches(config, config.stages, AbstractMesh(tuple(sizes.values()), tuple(sizes)))
