"""The notebooks, run top to bottom in a fresh kernel at small scale; the one for any machine is committed with its outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests import cheap_xla

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "launch" / "colab"
CHECKPOINTS = ROOT / "proxy_jax" / "checkpoints" / "micro"
pytestmark = pytest.mark.skipif(not (CHECKPOINTS / "student" / "gpt.safetensors").is_file(), reason="the micro student is not trained yet")
SMALL = {
    "compute.dtype": "float32",
    "subject_tuning.training.steps": 4,
    "subject_tuning.training.batch_size": 4,
    "subject_tuning.training.preview_every": 2,
    "subject_tuning.prior.num_images": 6,
    "subject_tuning.encode_batch_size": 6,
    "subject_tuning.prior.steps": 2,
    "proxy_generation.num_images": 12,
    "proxy_generation.batch_size": 6,
    "proxy_generation.steps": 2,
    "proxy_tuning.training.steps": 4,
    "proxy_tuning.training.warmup_steps": 1,
    "proxy_tuning.training.batch_size": 4,
    "proxy_tuning.training.preview_every": 4,
    "proxy_tuning.prior.num_images": 6,
    "proxy_tuning.encode_batch_size": 6,
    "evaluation.num_prompts": 3,
    "evaluation.batch_size": 6,
    "evaluation.images_per_prompt": 2,
    "evaluation.supervisor.steps": 2,
}


# The parameters of each notebook, for the micro-world's dog6 either way, and where its run goes below the temporary folder.
PARAMETERS = {
    "micro": (dict(CHANGES=SMALL), "dog6"),
    "photos_tpu": (dict(CONFIG="micro.py", PHOTOS=str(CHECKPOINTS / "dreambench" / "dog6"), CHANGES=SMALL, TOPOLOGY=""), "."),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_every_cell_runs(name, tmp_path, monkeypatch):
    for variable, value in cheap_xla.environment().items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    changed, folder = PARAMETERS[name]
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert all(f"\n{name} = " in f"\n{parameters.source}" for name in changed)
    parameters.source += "".join(f"\n{name} = {value!r}" for name, value in (changed | {"WORKDIR": str(tmp_path)}).items())
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]
    previews = 2 + 1
    assert len(pictures) == 1 + previews + 1 + 3, "photos, previews of both tunings, proxies, and the samples of three arms"
    assert (tmp_path / folder / "evaluation" / "report.html").is_file()


def test_it_is_committed_with_its_outputs():
    notebook = nbformat.read(NOTEBOOKS / "micro.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run top to bottom, once"
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 7
    assert str(ROOT.parent) not in (NOTEBOOKS / "micro.ipynb").read_text()
