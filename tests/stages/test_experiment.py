"""The experiment: which runs it makes of which configs, what it keeps and finds again. The four stages are stand-ins that score their config.

(The stages themselves, as arms use them, are tested where they are: tests/pipeline, tests/stages/test_training_set.py.)
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import smoke
from proxy_jax.stages import contract, experiment, files, random_weights

SUBJECTS = ("duck_toy", "rc_car", "vase")


def stand_in(name: str):
    """A stage that writes down what it was asked for; the evaluation scores an arm by the config that tuned it."""

    def inputs(config, workdir):
        return contract.fields(config, "subject", "subject_tuning", "proxy_tuning", "evaluation", "proxies", "subjects")

    def run(config, workdir):
        folder = workdir / name
        files.write_json(folder / "out.json", {"proxies": config.proxies, "subjects": list(config.subjects)})
        if name == "evaluation":
            lr = config.proxy_tuning.training.learning_rate if config.proxy_tuning.source == "photos" else 0.5
            value = {arm: lr if arm == "student" else 0.25 for arm in config.evaluation.arms}
            scores = {score: 0.0 for score in experiment.SCORES}
            files.write_json(folder / "report.json", {"rows": [{"arm": arm, "scores": scores | {"dino": value[arm]}} for arm in value]})
        return {}

    outputs = ("out.json", "report.json") if name == "evaluation" else ("out.json",)
    return SimpleNamespace(NAME=name, OUTPUTS=outputs, inputs=inputs, run=run)


@pytest.fixture(autouse=True)
def stages(monkeypatch):
    monkeypatch.setattr(experiment, "STAGES", {name: stand_in(name) for name in experiment.STAGES})


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A folder with random checkpoints and photos of the subjects."""
    folder = tmp_path_factory.mktemp("checkpoints")
    contract.complete(random_weights.NAME, random_weights, smoke.get_config(), folder)
    for number, subject in enumerate(SUBJECTS):
        (folder / "photos" / subject).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / subject / "0.png")
    return folder


ARMS = dict(
    proxy=dict(evaluation=dict(arms=("student",))),
    direct=dict(proxy_tuning=dict(source="photos", training=dict(learning_rate=0.1)), evaluation=dict(arms=("student",))),
    control=dict(subject_tuning=dict(source="proxies"), evaluation=dict(arms=("supervisor",))),
)


def config(checkpoints: Path, arms: dict = ARMS):
    run = smoke.get_config()
    for group, names in ((run.supervisor, ("checkpoint",)), (run.student, ("gpt", "vq", "text_encoder")), (run.evaluation, ("dino", "clip"))):
        for name in names:
            group[name] = group[name].replace("{workdir}", str(checkpoints))
    with run.unlocked():
        run.experiment.shared = dict(evaluation=dict(arms=("supervisor", "untuned_student")))
        run.experiment.arms = arms
    run.experiment.update(subjects=SUBJECTS, together=2, tokens=("zwx",), photos=str(checkpoints / "photos"))
    return run


def complete(run, workdir: Path) -> dict:
    """Runs the experiment; returns its arms by name."""
    run.experiment.results = str(workdir.parent / "results")
    contract.complete(experiment.NAME, experiment, run, workdir)
    content = json.loads((workdir / "experiment" / "comparison.json").read_text())
    assert content["subjects"] == list(SUBJECTS)
    return {arm["arm"]: arm for arm in content["arms"]}


def stages_run(workdir: Path) -> dict[str, set[str]]:
    """Run -> the stages that were done in it."""
    found: dict[str, set[str]] = {}
    for done in (workdir / "experiment" / "runs").glob("*/*/*/DONE.json"):
        found.setdefault("/".join(done.parts[-4:-2]), set()).add(done.parts[-2])
    return found


def test_every_arm_is_run_for_every_subject_and_scored(checkpoints, tmp_path):
    arms = complete(config(checkpoints), tmp_path / "work")
    expected = dict(supervisor=0.25, untuned_student=0.25, proxy=0.5, direct=0.1, control=0.25, together=0.5)
    assert {name: arm["scores"]["dino"]["mean"] for name, arm in arms.items()} == pytest.approx(expected)
    assert all(arm["subjects"] == 3 for arm in arms.values())
    found = stages_run(tmp_path / "work")
    assert found["vase/shared"] == {"subject_tuning", "proxy_generation", "evaluation"}
    assert found["vase/direct"] == found["vase/proxy"] == {"proxy_tuning", "evaluation"}
    assert found["vase/control"] == {"subject_tuning", "evaluation"}
    text = (tmp_path / "work" / "experiment" / "comparison.md").read_text()
    assert all(f"| {name} |" in text for name in arms)


def test_arms_use_their_subjects_own_proxies_and_those_of_its_companions(checkpoints, tmp_path):
    complete(config(checkpoints), tmp_path / "work")
    runs = tmp_path / "work" / "experiment" / "runs"
    for subject, companion in (("duck_toy", "rc_car"), ("vase", "duck_toy")):
        asked = json.loads((runs / subject / "together" / "proxy_tuning" / "out.json").read_text())
        assert asked["proxies"] == str(runs / subject / "shared" / "proxy_generation" / "dataset")
        (other,) = asked["subjects"]
        assert other == f"token=zwx,class_noun=toy,proxies={runs / companion / 'shared' / 'proxy_generation' / 'dataset'}"


def test_on_another_machine_only_what_has_no_result_is_run(checkpoints, tmp_path):
    first = complete(config(checkpoints), tmp_path / "work")
    kept = sorted(path.relative_to(tmp_path / "results").as_posix() for path in (tmp_path / "results").rglob("*.json"))
    assert len(kept) == 3 * 5
    shutil.rmtree(tmp_path / "work")
    changed = ARMS | {"direct": dict(proxy_tuning=dict(source="photos", training=dict(learning_rate=0.2)), evaluation=dict(arms=("student",)))}
    again = complete(config(checkpoints, changed), tmp_path / "elsewhere")
    assert again["direct"]["scores"]["dino"]["mean"] == pytest.approx(0.2)
    assert again["proxy"] == first["proxy"]
    # The changed arm, and the supervisor and proxies that it might need.
    assert stages_run(tmp_path / "elsewhere") == {
        run: names
        for subject in SUBJECTS
        for run, names in ((f"{subject}/direct", {"proxy_tuning", "evaluation"}), (f"{subject}/shared", {"subject_tuning", "proxy_generation"}))
    }


def test_another_photo_is_another_result(checkpoints, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(checkpoints, own)
    complete(config(own), tmp_path / "work")
    before = {path: path.read_text() for path in (tmp_path / "results").rglob("*.json")}
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(own / "photos" / "vase" / "0.png")
    complete(config(own), tmp_path / "work")
    changed = {path.parent.name + "/" + path.stem for path, text in before.items() if path.read_text() != text}
    # Also the one that learns the vase together with its own subject.
    assert changed == {f"vase/{name}" for name in ("shared", "proxy", "direct", "control", "together")} | {"rc_car/together"}
