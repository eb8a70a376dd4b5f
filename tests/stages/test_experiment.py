"""The experiment: which runs it makes of which configs, what it keeps and finds again. The four stages are stand-ins that score their config,
and the account is made of made readings.

(The stages themselves, as arms use them, are tested where they are: tests/pipeline, tests/stages/test_training_set.py; the account in
tests/stages/test_weak_to_strong.py.)
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
from tests.metrics.made_accounts import told

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
            rows = [{"arm": arm, "scores": scores | {"dino": value[arm]}} for arm in value]
            files.write_json(folder / "report.json", {"rows": rows, "ceiling": scores | {"dino": 0.75, "context": None, "identity_context": None}})
        return {}

    outputs = ("out.json", "report.json") if name == "evaluation" else ("out.json",)
    return SimpleNamespace(NAME=name, OUTPUTS=outputs, inputs=inputs, run=run)


@pytest.fixture(autouse=True)
def accounts(monkeypatch) -> list[str]:
    """The subjects that are told of, in order. Each account is told of arms that are tuned."""
    found = []

    def tell(subject, arms, pictures, folder):
        found.append(subject)
        tuned_in = {"proxy": "proxy_tuning", "control": "subject_tuning"}
        assert all((where / tuned_in[name] / "DONE.json").is_file() for name, (_, where) in arms.items())
        assert all(Path(arm.proxies).is_relative_to(where.parent / "shared") and where.parent.name == subject for arm, where in arms.values())
        assert folder.parent == next(iter(arms.values()))[1].parent / "account"
        return told(subject, 10, {name: wrong for name, wrong in zip(arms, (4, 12), strict=True)}) | {"pictures": pictures}

    monkeypatch.setattr(experiment, "STAGES", {name: stand_in(name) for name in experiment.STAGES})
    monkeypatch.setattr(experiment.weak_to_strong, "tell", tell)
    return found


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


def config(checkpoints: Path, arms: dict = ARMS, **fields):
    run = smoke.get_config()
    for group, names in ((run.supervisor, ("checkpoint",)), (run.student, ("gpt", "vq", "text_encoder")), (run.evaluation, ("dino", "clip"))):
        for name in names:
            group[name] = group[name].replace("{workdir}", str(checkpoints))
    with run.unlocked():
        run.experiment.shared = dict(evaluation=dict(arms=("supervisor", "untuned_student")))
        run.experiment.arms = arms
    run.experiment.update(dict(subjects=SUBJECTS, together=2, tokens=("zwx",), photos=str(checkpoints / "photos")) | fields)
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
    expected = dict(photos=0.75, supervisor=0.25, untuned_student=0.25, proxy=0.5, direct=0.1, control=0.25, together=0.5)
    assert {name: arm["scores"]["dino"]["mean"] for name, arm in arms.items()} == pytest.approx(expected)
    assert all(arm["subjects"] == 3 for arm in arms.values())
    found = stages_run(tmp_path / "work")
    assert found["vase/shared"] == {"subject_tuning", "proxy_generation", "evaluation"}
    assert found["vase/direct"] == found["vase/proxy"] == {"proxy_tuning", "evaluation"}
    assert found["vase/control"] == {"subject_tuning", "evaluation"}
    text = (tmp_path / "work" / "experiment" / "comparison.md").read_text()
    assert all(f"| {name} |" in text for name in arms)
    assert "(figures/identity_context.svg)" in text and (tmp_path / "work" / "experiment" / "figures" / "identity_context.svg").is_file()


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


def test_the_account_is_kept_and_made_again_without_what_it_does_not_need(checkpoints, tmp_path, accounts):
    fields = dict(account_arms=("proxy", "control"), account_pictures=20, baselines=("direct",), document=str(tmp_path / "document"))
    run = config(checkpoints, together=0, **fields)
    complete(run, tmp_path / "work")
    assert accounts == list(SUBJECTS)
    for folder in (tmp_path / "work" / "experiment", tmp_path / "document"):
        content = json.loads((folder / "comparison.json").read_text())
        gains = {arm["arm"]: arm["attributes"]["error"]["difference"]["mean"] for arm in content["account"]["arms"]}
        assert gains == pytest.approx({"proxy": -0.15, "control": 0.05})
        assert [contrast["against"] for contrast in content["contrasts"]] == ["direct"]
        assert {"error_rates.svg", "errors.svg"} <= {path.name for path in (folder / "figures").iterdir()}
    (tmp_path / "results" / "rc_car" / "account.json").unlink()
    shutil.rmtree(tmp_path / "work")
    complete(run, tmp_path / "elsewhere")
    assert accounts == [*SUBJECTS, "rc_car"]
    assert stages_run(tmp_path / "elsewhere") == {
        "rc_car/shared": {"subject_tuning", "proxy_generation"},
        "rc_car/proxy": {"proxy_tuning"},
        "rc_car/control": {"subject_tuning"},
    }


def test_the_key_of_an_account_is_its_arms_and_its_pictures(checkpoints, tmp_path):
    def key(arms=ARMS, **fields) -> str:
        run = config(checkpoints, arms, **dict(account_arms=("proxy", "control"), together=0) | fields)
        return experiment.keys(run, "vase", tmp_path)["account"]

    def with_rate(name: str) -> dict:
        return ARMS | {name: ARMS[name] | dict(proxy_tuning=dict(training=dict(learning_rate=0.3)))}

    own = key()
    assert key(with_rate("direct")) == own and key(reference="control") == own
    assert len({own, key(with_rate("proxy")), key(account_pictures=7), key(account_arms=("proxy",))}) == 4


def test_what_draws_the_account_is_looked_for_before_anything_is_tuned(checkpoints, tmp_path, monkeypatch):
    def renderer():
        raise contract.StageError("no skia")

    monkeypatch.setattr(experiment.weak_to_strong, "renderer", renderer)
    with pytest.raises(contract.StageError, match="no skia"):
        complete(config(checkpoints, account_arms=("proxy",)), tmp_path / "work")
    assert stages_run(tmp_path / "work") == {}


def test_arms_that_do_not_exist_are_named(checkpoints, tmp_path):
    for field, value in (("baselines", ("direct", "direkt")), ("account_arms", ("supervisor",)), ("reference", "nobody"), ("student", "supervisor")):
        run = config(checkpoints, **{field: value})
        with pytest.raises(contract.StageError, match=f"experiment.{field} names (direkt|supervisor|nobody); the arms are"):
            experiment.inputs(run, tmp_path)


def test_two_arms_of_one_config_are_a_mistake(checkpoints, tmp_path):
    prior = dict(proxy_tuning=dict(prior=dict(weight=0.0)), evaluation=dict(arms=("student",)))  # it is 0 anyway
    with pytest.raises(contract.StageError, match="proxy and without_prior are the same"):
        experiment.inputs(config(checkpoints, ARMS | {"without_prior": prior}), tmp_path)


def test_the_curve_is_of_arms_that_differ_in_their_number_of_proxies_alone(checkpoints):
    more = dict(
        few=dict(proxy_tuning=dict(num_proxies=3), evaluation=dict(arms=("student",))),
        few_and_slow=dict(proxy_tuning=dict(num_proxies=3, training=dict(learning_rate=1e-5)), evaluation=dict(arms=("student",))),
    )
    assert experiment.proxy_counts(config(checkpoints, ARMS | more)) == {"proxy": 16, "few": 3}
