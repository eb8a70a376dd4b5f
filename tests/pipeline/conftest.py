"""Running the command line in processes of its own, without torch, TensorFlow or diffusers in reach."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests import cheap_xla

ROOT = Path(__file__).resolve().parents[2]
# What the run time must not need is made invisible, as if it were not installed.
BLOCKED = """
import runpy, sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
hidden = {'torch', 'tensorflow', 'diffusers', 'peft'}
PathFinder.find_spec = lambda name, path=None, target=None: None if name.split('.')[0] in hidden else find(name, path, target)
"""
COMMAND = BLOCKED + "runpy.run_module('proxy_jax.main', run_name='__main__')"


def start(workdir: Path, *arguments: str, devices: int = 1, config: str = "configs/smoke.py") -> subprocess.Popen:
    """Starts the smoke run (or its variant `config`) in `workdir` on so many virtual CPU devices; its output goes to workdir.log."""
    environment = cheap_xla.environment(devices) | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", COMMAND, f"--config={config}", f"--workdir={workdir}", *arguments]
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def finish(process: subprocess.Popen, workdir: Path) -> str:
    """Waits for a run to succeed; returns what all runs in `workdir` have printed."""
    code = process.wait(timeout=500)
    text = workdir.with_suffix(".log").read_text()
    assert code == 0, text[-4000:]
    return text


@pytest.fixture(scope="session")
def subject_flags(tmp_path_factory) -> tuple[str, ...]:
    """The subject of the smoke runs: DreamBench's dog where it lies beside the checkout, else three made-up photos."""
    dog = ROOT.parent / "shared" / "dreambench" / "dog"
    if dog.is_dir():
        return (f"--config.subject.photos={dog}",)
    folder = tmp_path_factory.mktemp("photos")
    for number, size in enumerate([(90, 70), (64, 64), (50, 120)]):
        noise = np.random.default_rng(number).integers(0, 80, (size[1], size[0], 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        ImageDraw.Draw(image).ellipse((10, 10, 45, 45), fill=(220, 140, 60))
        image.save(folder / f"{number}.png")
    return (f"--config.subject.photos={folder}",)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, subject_flags) -> Path:
    """The workdir of an uninterrupted smoke run."""
    workdir = tmp_path_factory.mktemp("smoke") / "run"
    finish(start(workdir, *subject_flags), workdir)
    return workdir
