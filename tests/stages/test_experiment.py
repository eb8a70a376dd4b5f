"""The experiment: which runs it makes of which configs, what it keeps and finds again. The four stages are stand-ins that score their config,
and the account is made of made readings. And what the arms of micro-DreamBench are, by their configs.

(The stages themselves, as arms use them, are tested where they are: tests/pipeline, tests/stages/test_training_set.py; the account in
tests/stages/test_weak_to_strong.py.)
"""

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import logging
from PIL import Image

from configs import base, smoke
from configs.micro import dreambench
from proxy_jax.data import prompts
from proxy_jax.data.microworld.scenes import ASKED
from proxy_jax.stages import contract, experiment, files, proxy_tuning, random_weights, subject_tuning, tuning, validation
from tests.metrics.made_accounts import told
from tests.stages.tiny_runs import write_proxies

ROOT = Path(__file__).resolve().parents[2]
SUBJECTS = ("duck_toy", "rc_car", "vase")
NEXT = {"duck_toy": "rc_car", "rc_car": "vase", "vase": "duck_toy"}  # whom each is learned together with


def stand_in(name: str, noise: Callable[[], int]):
    """A stage that writes down what it was asked for; the evaluation scores an arm by the config that tuned it. noise(): the proxies' pixels."""

    def inputs(config, workdir):
        drawn = () if name in validation.TUNINGS else ("evaluation",)
        return contract.fields(config, "seed", "subject", "subject_tuning", "proxy_tuning", *drawn, "proxies", "subjects")

    def run(config, workdir):
        folder = workdir / name
        asked = {"proxies": config.proxies, "subjects": list(config.subjects), "seed": config.seed, "steps": config.proxy_tuning.training.steps}
        files.write_json(folder / "out.json", asked)
        if name == "proxy_generation":
            write_proxies(folder / "dataset", ["a sks toy"], seed=config.seed + noise())
        if name == "evaluation":
            lr = config.proxy_tuning.training.learning_rate if config.proxy_tuning.source == "photos" else 0.5
            value = {arm: lr if arm == "student" else 0.25 for arm in config.evaluation.arms}
            scores = {score: 0.0 for score in experiment.SCORES if score != "unseen"}
            shown = {f"a {config.subject.class_noun}": 0.9, f"a {config.subject.class_noun} in the snow": 0.2, "a red toy": 0.4}
            per_prompt = [{"prompt": prompt, "identity_context": score} for prompt, score in shown.items()]
            rows = [{"arm": arm, "scores": scores | {"dino": value[arm], "per_prompt": per_prompt}} for arm in value]
            ceiling = scores | {"dino": 0.75, "context": None, "identity_context": None, "per_prompt": []}
            files.write_json(folder / "report.json", {"rows": rows, "ceiling": ceiling})
        return {}

    outputs = {"evaluation": ("out.json", "report.json"), "proxy_generation": ("out.json", "dataset")}.get(name, ("out.json",))
    return SimpleNamespace(NAME=name, OUTPUTS=outputs, inputs=inputs, run=run)


@pytest.fixture
def machine() -> dict[str, int]:
    """What tells a machine's proxies from another's."""
    return {"noise": 0}


@pytest.fixture(autouse=True)
def accounts(monkeypatch, machine) -> list[str]:
    """The subjects that are told of, in order. Each account is told of arms that are tuned."""
    found = []

    def tell(subject, arms, pictures, folder):
        found.append(subject)
        tuned_in = {"proxy": "proxy_tuning", "control": "subject_tuning"}
        assert all((where / tuned_in[name] / "DONE.json").is_file() for name, (_, where) in arms.items())
        assert all(Path(arm.proxies).is_relative_to(where.parent / "shared") and where.parent.name == subject for arm, where in arms.values())
        assert folder.parent == next(iter(arms.values()))[1].parent / "account"
        return told(subject, 10, {name: wrong for name, wrong in zip(arms, (4, 12), strict=True)}) | {"pictures": pictures}

    monkeypatch.setattr(experiment, "STAGES", {name: stand_in(name, lambda: machine["noise"]) for name in experiment.STAGES})
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


def config(checkpoints: Path, arms: dict | tuple = ARMS, **fields):
    pairs = tuple(arms.items()) if isinstance(arms, dict) else arms
    run = smoke.get_config()
    for group, names in ((run.supervisor, ("checkpoint",)), (run.student, ("gpt", "vq", "text_encoder")), (run.evaluation, ("dino", "clip"))):
        for name in names:
            group[name] = group[name].replace("{workdir}", str(checkpoints))
    with run.unlocked():
        run.experiment = base.experiment()
        run.experiment.shared = dict(evaluation=dict(arms=("supervisor", "untuned_student")))
    own = dict(subjects=SUBJECTS, arms=pairs, together=2, tokens=("zwx",), photos=str(checkpoints / "photos"), main_score="dino")
    run.experiment.update(own | dict(results="{workdir}/../results") | fields)
    return run


def complete(run, workdir: Path) -> dict:
    """Runs the experiment; returns its arms by name."""
    contract.complete(experiment.NAME, experiment, run, workdir)
    content = json.loads((workdir / "experiment" / "comparison.json").read_text())
    assert content["subjects"] == list(SUBJECTS)
    return {arm["arm"]: arm for arm in content["arms"]}


def with_rate(name: str, rate: float) -> dict:
    """ARMS, one of them with another learning rate."""
    stage = "proxy_tuning" if name != "control" else "subject_tuning"
    return ARMS | {name: ARMS[name] | {stage: ARMS[name].get(stage, {}) | dict(training=dict(learning_rate=rate))}}


def stages_run(workdir: Path) -> dict[str, set[str]]:
    """Run -> the stages that were done in it."""
    found: dict[str, set[str]] = {}
    for done in (workdir / "runs").glob("*/*/*/DONE.json"):
        found.setdefault("/".join(done.parts[-4:-2]), set()).add(done.parts[-2])
    return found


def asked_of(workdir: Path, run: str, stage: str) -> dict:
    return json.loads((workdir / "runs" / run / stage / "out.json").read_text())


def test_every_arm_is_run_for_every_subject_and_scored(checkpoints, tmp_path):
    arms = complete(config(checkpoints), tmp_path / "work")
    expected = dict(photos=0.75, supervisor=0.25, untuned_student=0.25, proxy=0.5, direct=0.1, control=0.25, together=0.5)
    assert list(arms) == list(expected), "in the order of the config"
    assert {name: arm["scores"]["dino"]["mean"] for name, arm in arms.items()} == pytest.approx(expected)
    assert all(arm["subjects"] == 3 for arm in arms.values())
    unseen = {name: arm["scores"]["unseen"] and arm["scores"]["unseen"]["mean"] for name, arm in arms.items()}
    assert unseen == dict.fromkeys(expected, pytest.approx(0.3)) | {"photos": None}, "without the proxies' own prompt"
    found = stages_run(tmp_path / "work")
    assert found["vase/shared"] == {"subject_tuning", "proxy_generation", "evaluation"}
    assert found["vase/direct"] == found["vase/proxy"] == {"proxy_tuning", "evaluation"}
    assert found["vase/control"] == {"subject_tuning", "evaluation"}
    text = (tmp_path / "work" / "experiment" / "comparison.md").read_text()
    assert all(f"| {name} |" in text for name in arms)
    assert "| together | proxy_tuning | 16 | 8 | 0.0001 |" in text and "| control | subject_tuning | 8 | 8 | 0.0004 |" in text
    assert "(figures/identity_context.svg)" in text and (tmp_path / "work" / "experiment" / "figures" / "identity_context.svg").is_file()


def test_an_interrupted_experiment_leaves_the_tables_of_what_is_done(checkpoints, tmp_path):
    made = experiment.Plan.make

    def interrupted(plan, name, subject):
        if subject == SUBJECTS[1]:
            raise KeyboardInterrupt
        return made(plan, name, subject)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(experiment.Plan, "make", interrupted)
        complete(config(checkpoints, together=0, document=str(tmp_path / "document")), tmp_path / "work")
    text = (tmp_path / "document" / "comparison.md").read_text()
    assert f"**Unfinished**: {SUBJECTS[1]}, {SUBJECTS[2]} are still to come." in text and "| proxy | 1 |" in text
    complete(config(checkpoints, together=0, document=str(tmp_path / "document")), tmp_path / "work")
    text = (tmp_path / "document" / "comparison.md").read_text()
    assert "Unfinished" not in text and "| proxy | 3 |" in text


def test_two_runs_of_one_workdir_share_the_work(checkpoints, tmp_path, monkeypatch, accounts):
    """Each begins a subject that the other is not at. Nothing is made twice, both end when all is there, and the first keeps the record."""
    met, begun = threading.Barrier(2), []
    monkeypatch.setattr(experiment, "PATIENCE_S", 0.01)

    def noted(stage):
        def run(config, workdir):
            begun.append((threading.current_thread().name, workdir.parent.name, f"{workdir.name}/{stage.NAME}"))
            if len(begun) <= 2:
                met.wait(60)  # neither goes on before the other has begun something
            return stage.run(config, workdir)

        return SimpleNamespace(NAME=stage.NAME, OUTPUTS=stage.OUTPUTS, inputs=stage.inputs, run=run)

    monkeypatch.setattr(experiment, "STAGES", {name: noted(stage) for name, stage in experiment.STAGES.items()})
    own = config(checkpoints, account_arms=("proxy", "control"))
    with ThreadPoolExecutor(2, "run") as pool:
        for found in [pool.submit(contract.complete, experiment.NAME, experiment, own, tmp_path / "work") for _ in range(2)]:
            found.result()
    assert {thread for thread, _, _ in begun} == {"run_0", "run_1"} and begun[0][1] != begun[1][1]
    assert len(begun) == len({item[1:] for item in begun}) == 3 * (3 + 2 + 2 + 2 + 2)
    assert sorted(accounts) == sorted(SUBJECTS)
    before = len(begun)
    assert complete(own, tmp_path / "work")["proxy"]["subjects"] == 3 and len(begun) == before


def test_what_another_run_made_in_the_meantime_is_left_alone(checkpoints, tmp_path):
    plan = experiment.Plan(config(checkpoints), tmp_path / "work")
    assert plan.make("direct", "vase")
    before = (tmp_path / "results" / "vase" / "direct.json").stat().st_mtime_ns
    assert plan.make("direct", "vase") and (tmp_path / "results" / "vase" / "direct.json").stat().st_mtime_ns == before
    with files.claimed([tmp_path / "work" / "runs" / "rc_car"]):
        assert not plan.make("direct", "rc_car") and not plan.make("together", "duck_toy"), "which needs rc_car's proxies"
        assert not (tmp_path / "results" / "rc_car").exists() and not (tmp_path / "results" / "duck_toy").exists()
    assert plan.make("together", "duck_toy")


def test_runs_that_undo_each_others_results_are_told(checkpoints, tmp_path, monkeypatch):
    """Another config's results have the same names: without an end, each would make its own again."""
    made = experiment.Plan.make

    def undone(plan, name, subject):
        own = made(plan, name, subject)
        path = plan.path(name, subject)
        files.write_json(path, files.read_json(path) | {"key": "another's"})
        return own

    monkeypatch.setattr(experiment.Plan, "make", undone)
    with pytest.raises(contract.StageError, match=r"duck_toy/shared in .*: another run, of another config or workdir, writes them too"):
        complete(config(checkpoints), tmp_path / "work")


def test_a_claim_is_for_all_folders_or_none_and_ends_with_its_process(tmp_path):
    with files.claimed([tmp_path / "b"]) as ours:
        assert ours
        with files.claimed([tmp_path / "a", tmp_path / "b"]) as too:
            assert not too
            with files.claimed([tmp_path / "a"]) as free:
                assert free, "given back"
    hold = f"import sys, time; from pathlib import Path; from proxy_jax.stages import files; c = files.claimed([Path({str(tmp_path / 'a')!r})])"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{hold}; print(c.__enter__(), flush=True); time.sleep(600)"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert holder.stdout.readline() == "True\n"
    with files.claimed([tmp_path / "a"]) as ours:
        assert not ours
    holder.kill()
    holder.wait()
    with files.claimed([tmp_path / "a", tmp_path / "b"]) as ours:
        assert ours


def test_arms_use_their_subjects_own_proxies_and_those_of_its_companions(checkpoints, tmp_path):
    complete(config(checkpoints), tmp_path / "work")
    runs = tmp_path / "work" / "runs"
    for subject, companion in (("duck_toy", "rc_car"), ("vase", "duck_toy")):
        asked = asked_of(tmp_path / "work", f"{subject}/together", "proxy_tuning")
        assert asked["proxies"] == str(runs / subject / "shared" / "proxy_generation" / "dataset")
        (other,) = asked["subjects"]
        assert other == f"token=zwx,class_noun=toy,proxies={runs / companion / 'shared' / 'proxy_generation' / 'dataset'}"
        assert asked["steps"] == 2 * asked_of(tmp_path / "work", f"{subject}/proxy", "proxy_tuning")["steps"]


def test_arms_of_a_subject_share_a_seed_and_subjects_do_not(checkpoints, tmp_path):
    found = {subject: {own.seed for _, own in experiment.runs(config(checkpoints), subject, tmp_path)} for subject in ("duck_toy", "rc_car", "vase")}
    assert all(len(seeds) == 1 for seeds in found.values())
    ordered = sorted(seed for seeds in found.values() for seed in seeds)
    assert min(np.diff(ordered)) >= 1000, "stages add small numbers to it"
    alone = config(checkpoints, subjects=("vase",), together=0)
    assert {own.seed for _, own in experiment.runs(alone, "vase", tmp_path)} == found["vase"], "whoever else is compared"


def test_arms_that_only_draw_otherwise_are_tuned_once(checkpoints, tmp_path, caplog):
    logging.set_verbosity(logging.INFO)
    cold = dict(evaluation=dict(arms=("student",), student=dict(temperature=0.5)))
    complete(config(checkpoints, ARMS | {"cold": cold}, together=0), tmp_path / "work")
    assert caplog.text.count("proxy_tuning: taken from") == len(SUBJECTS) and caplog.text.count("taken from") == len(SUBJECTS)
    assert stages_run(tmp_path / "work")["vase/cold"] == {"proxy_tuning", "evaluation"}


def test_runs_share_one_cache(checkpoints, tmp_path):
    complete(config(checkpoints, subjects=SUBJECTS), tmp_path / "work")
    caches = list((tmp_path / "work" / "runs").glob("*/*/cache"))
    assert len(caches) == 3 * 5 and {path.resolve() for path in caches} == {tmp_path / "work" / "cache"}


def test_a_changed_arm_leaves_the_runs_of_the_others(checkpoints, tmp_path):
    run = config(checkpoints)
    complete(run, tmp_path / "work")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "runs").rglob("DONE.json")}
    arms = complete(config(checkpoints, with_rate("direct", 0.3), document=str(tmp_path / "document")), tmp_path / "work")
    assert arms["direct"]["scores"]["dino"]["mean"] == pytest.approx(0.3)
    changed = {path.parts[-3] for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert len(before) == 3 * (3 + 2 + 2 + 2 + 2) and changed == {"direct"}


def test_on_another_machine_only_what_has_no_result_is_run(checkpoints, tmp_path):
    first = complete(config(checkpoints), tmp_path / "work")
    kept = sorted(path.relative_to(tmp_path / "results").as_posix() for path in (tmp_path / "results").rglob("*.json"))
    assert len(kept) == 3 * (5 + 1), "the shared run, four arms, and what the proxies are"
    shutil.rmtree(tmp_path / "work")
    again = complete(config(checkpoints, with_rate("direct", 0.2)), tmp_path / "elsewhere")
    assert again["direct"]["scores"]["dino"]["mean"] == pytest.approx(0.2)
    assert again["proxy"] == first["proxy"]
    assert stages_run(tmp_path / "elsewhere") == {f"{subject}/direct": {"proxy_tuning", "evaluation"} for subject in SUBJECTS}
    shutil.rmtree(tmp_path / "elsewhere")
    both = with_rate("direct", 0.2) | {"control": with_rate("control", 0.2)["control"]}
    complete(config(checkpoints, both), tmp_path / "third")
    # This arm is tuned on proxies: they are drawn again, and are as they were.
    expected = {"control": {"subject_tuning", "evaluation"}, "shared": {"subject_tuning", "proxy_generation"}}
    assert stages_run(tmp_path / "third") == {f"{subject}/{name}": stages for subject in SUBJECTS for name, stages in expected.items()}


def test_a_second_supervisor_has_results_of_its_own_and_shares_those_that_have_none(checkpoints, tmp_path):
    arms = ARMS | {"tuned_supervisor": dict(evaluation=dict(arms=("supervisor",)))}
    first = complete(config(checkpoints, arms), tmp_path / "work")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.json")}
    second = config(checkpoints, arms, supervisor="other")
    second.subject_tuning.training.steps += 1
    assert complete(second, tmp_path / "second")["direct"] == first["direct"]
    assert before == {path: path.stat().st_mtime_ns for path in before}, "the first one's are left alone"
    own = {path.stem for path in (tmp_path / "results" / "vase" / "other").iterdir()}
    assert own == {"shared", "proxies", "proxy", "control", "tuned_supervisor", "together-duck_toy"}
    assert not (tmp_path / "second" / "runs" / "vase" / "direct").exists()


def test_proxies_that_come_out_otherwise_renew_all_that_was_made_from_them(checkpoints, tmp_path, machine, caplog):
    complete(config(checkpoints), tmp_path / "work")
    kept = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.json")}
    machine["noise"] = 1
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "results" / "vase" / "proxy.json").unlink()
    complete(config(checkpoints), tmp_path / "elsewhere")
    renewed = {"/".join(path.parts[-2:])[:-5] for path, text in kept.items() if path.read_bytes() != text}
    # The vase is in rc_car's `together`, for which rc_car's proxies are drawn again, which duck_toy's `together` is made from, and so on.
    own = {f"{subject}/{name}" for subject in SUBJECTS for name in ("shared", "proxies", "proxy", "control")}
    assert renewed == own | {f"{subject}/together-{other}" for subject, other in NEXT.items()}
    assert "vase: its proxies came out otherwise" in caplog.text
    digests = {subject: json.loads((tmp_path / "results" / subject / "proxies.json").read_text())["digest"] for subject in SUBJECTS}
    sets = json.loads((tmp_path / "results" / "rc_car" / "together-vase.json").read_text())["proxy_sets"]
    assert sets == {name: digests[name] for name in ("rc_car", "vase")}


def test_results_of_different_machines_are_told_from_each_other(checkpoints, tmp_path, monkeypatch):
    own = experiment.made_with()
    complete(config(checkpoints), tmp_path / "work")
    assert "Caution" not in (tmp_path / "work" / "experiment" / "comparison.md").read_text()
    monkeypatch.setattr(experiment, "made_with", lambda: own | {"devices": "8 TPU v9"})
    (tmp_path / "results" / "vase" / "proxy.json").unlink()
    complete(config(checkpoints, document=str(tmp_path / "document")), tmp_path / "work")
    text = (tmp_path / "document" / "comparison.md").read_text()
    assert f"not all made with the same devices, but with {own['devices']} and 8 TPU v9" in text and text.count("Caution") == 1


def test_another_photo_is_another_result(checkpoints, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(checkpoints, own)
    complete(config(own), tmp_path / "work")
    before = {path: path.read_text() for path in (tmp_path / "results").rglob("*.json")}
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(own / "photos" / "vase" / "0.png")
    complete(config(own), tmp_path / "work")
    changed = {path.parent.name + "/" + path.stem for path, text in before.items() if path.read_text() != text}
    # Also the one that learns the vase together with its own subject.
    assert changed == {f"vase/{name}" for name in ("shared", "proxies", "proxy", "direct", "control", "together-duck_toy")} | {"rc_car/together-vase"}


def test_the_account_is_kept_and_made_again_without_what_it_does_not_need(checkpoints, tmp_path, accounts):
    fields = dict(account_arms=("proxy", "control"), account_pictures=20, document=str(tmp_path / "document"))
    fields |= dict(primary=(("proxy", "supervisor"),), contrasts=(("proxy", "direct"),))
    run = config(checkpoints, together=0, **fields)
    complete(run, tmp_path / "work")
    assert accounts == list(SUBJECTS)
    for folder in (tmp_path / "work" / "experiment", tmp_path / "document"):
        content = json.loads((folder / "comparison.json").read_text())
        gains = {arm["arm"]: arm["attributes"]["error"]["difference"]["mean"] for arm in content["account"]["arms"]}
        assert gains == pytest.approx({"proxy": -0.15, "control": 0.05})
        assert [(row["arm"], row["against"], row["primary"]) for row in content["contrasts"]] == [
            ("proxy", "supervisor", True),
            ("proxy", "direct", False),
        ]
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


def test_an_oracle_learns_from_renderings_and_needs_no_supervisor(checkpoints, tmp_path, monkeypatch):
    """It is the arm `proxy` but for its proxies, which are made before it and never by a supervisor."""
    monkeypatch.setattr(experiment.weak_to_strong, "renderer", lambda: None)
    monkeypatch.setattr(experiment.weak_to_strong, "oracle_fields", lambda own, workdir: {"truth": own.subject.photos, "seed": own.seed})
    monkeypatch.setattr(
        experiment.weak_to_strong, "write_oracle", lambda own, workdir: write_proxies(Path(own.proxies), ["a sks toy"], seed=own.seed)
    )
    run = config(checkpoints, ARMS | {"oracle": ARMS["proxy"]}, together=0)
    assert complete(run, tmp_path / "work")["oracle"]["scores"]["dino"]["mean"] == pytest.approx(0.5)
    for subject in SUBJECTS:
        proxies = Path(asked_of(tmp_path / "work", f"{subject}/oracle", "proxy_tuning")["proxies"])
        assert proxies == tmp_path / "work" / "runs" / subject / "oracle" / "renderings" and (proxies / "dataset_info.json").is_file()
    before = keys(run, tmp_path)
    run.subject_tuning.training.steps += 1
    after = keys(run, tmp_path)
    assert after["oracle"] == before["oracle"] != before["proxy"] != after["proxy"]


def keys(run, workdir: Path) -> dict[str, str]:
    """The keys of the results of the vase."""
    return experiment.Plan(run, workdir).keys["vase"]


def test_a_key_is_of_what_its_result_is_made_from(checkpoints, tmp_path):
    def changed(change=lambda run: None, **fields) -> set[str]:
        run = config(checkpoints, **dict(account_arms=("proxy", "control")) | fields)
        change(run)
        return {name for name, key in keys(run, tmp_path).items() if key != own[name]}

    def shared_with(**training) -> Callable:
        def change(run):
            with run.unlocked():
                run.experiment.shared.subject_tuning = dict(training=training)

        return change

    own = keys(config(checkpoints, account_arms=("proxy", "control")), tmp_path)
    from_proxies = {"shared", "proxy", "control", "together", "account"}
    assert changed(tokens=("qov",)) == {"together"}
    assert changed(lambda run: run.experiment.shared.evaluation.update(arms=("supervisor",))) == {"shared"}
    assert changed(shared_with(steps=9)) == from_proxies
    assert changed(lambda run: run.proxy_generation.update(num_images=17)) == from_proxies
    assert changed(lambda run: run.proxy_tuning.update(dropout=0.1)) == {"proxy", "direct", "together", "account"}
    assert changed(lambda run: run.evaluation.update(num_prompts=3)) == set(own)
    assert changed(lambda run: run.proxy_tuning.training.update(preview_every=9, log_every=9)) == set()
    assert changed(account_pictures=7) == changed(account_arms=("proxy",)) == {"account"}


def test_a_checkpoint_in_the_experiments_workdir_is_found_by_its_runs(checkpoints, tmp_path):
    run, own = config(checkpoints), config(checkpoints)
    shutil.copytree(checkpoints / "random_weights", tmp_path / "random_weights")
    run.student.gpt = "{workdir}/random_weights/student/gpt.safetensors"
    run.experiment.photos = "{workdir}/photos"
    shutil.copytree(checkpoints / "photos", tmp_path / "photos")
    assert all(arm.student.gpt == str(tmp_path / "random_weights/student/gpt.safetensors") for _, arm in experiment.runs(run, "vase", tmp_path))
    assert keys(run, tmp_path) == keys(own, tmp_path), "where it lies makes no difference"


def test_what_draws_the_account_is_looked_for_before_anything_is_tuned(checkpoints, tmp_path, monkeypatch):
    def renderer():
        raise contract.StageError("no skia")

    monkeypatch.setattr(experiment.weak_to_strong, "renderer", renderer)
    with pytest.raises(contract.StageError, match="no skia"):
        complete(config(checkpoints, account_arms=("proxy",)), tmp_path / "work")
    assert stages_run(tmp_path / "work") == {}


@pytest.mark.parametrize(
    "fields, text",
    [
        (dict(contrasts=(("proxy", "direkt"),)), "contrasts has direkt; there are proxy, direct, control, supervisor"),
        (dict(account_arms=("supervisor",)), "account_arms has supervisor; there are proxy"),
        (dict(reference="nobody"), "reference has nobody"),
        (dict(main_arm="supervisor"), "main_arm has supervisor"),
        (dict(main_score="beauty"), "main_score has beauty; there are dino"),
        (dict(supervisor="../vase"), "supervisor is '../vase', but it names a folder"),
        (dict(subjects=("vase", "dog6000"), together=0), "subjects has dog6000; there are backpack,"),
        (dict(tokens=()), "a token for each but the first, not 3 subjects and 0 tokens"),
        (dict(together=4, tokens=("a", "b", "c")), "as many subjects, .*, not 3 subjects"),
        (dict(tokens=("sks",)), "in the run together of duck_toy: each subject needs a token of its own"),
        (dict(arms=(*ARMS.items(), ("proxy", dict()))), "arms has proxy, proxy twice"),
        (dict(arms=(("shared", dict()),), main_arm=""), "arms has shared twice, or as a name"),
        (dict(arms=(*ARMS.items(), ("whole", dict(proxy_tuning=dict(mode="fulll"))))), "in the run whole of duck_toy: proxy_tuning.mode is 'fulll'"),
        (dict(arms=(*ARMS.items(), ("odd", dict(proxy_tuning=dict(training=dict(batch_size=3)))))), "in the run odd of .*batch_size is 3"),
    ],
)
def test_what_no_run_could_be_is_found_before_any_is_made(checkpoints, tmp_path, fields, text):
    with pytest.raises(contract.StageError, match=text):
        experiment.inputs(config(checkpoints, **fields), tmp_path)


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
    assert experiment.proxy_counts(config(checkpoints, main_arm="")) == {}
    assert experiment.proxy_counts(config(checkpoints, ARMS | {"oracle": ARMS["proxy"]})) == {"proxy": 16}, "which learns from no proxies"


@pytest.mark.parametrize("protocol", dreambench.PROTOCOLS)
def test_the_arms_of_micro_dreambench_differ_and_have_one_budget(protocol, tmp_path):
    run = dreambench.get_config(protocol)
    experiment.check(run, tmp_path)
    subject = run.experiment.subjects[0]
    configs = dict(experiment.runs(run, subject, tmp_path))
    names = ("subject_tuning", "proxy_generation", "proxy_tuning", "evaluation", "subjects", "proxies")
    fields = [json.dumps(contract.fields(own, *names)) for own in configs.values()]
    assert len(set(fields)) == len(fields)
    assert {own.proxy_tuning.prompt for own in configs.values()} | {run.subject_tuning.prompt} == {prompts.PAPER_TEMPLATE}
    assert prompts.PAPER_TEMPLATE in run.proxy_generation.prompts and all(prompt in ASKED for prompt in run.proxy_generation.prompts[1::2])
    for own in configs.values():
        assert all(training.preview_every == 0 for stage in (own.subject_tuning, own.proxy_tuning) for training in tuning.trainings(stage).values())
    rows = experiment.budgets(run, tmp_path)
    seen = {stage: {row["run"]: row["steps"] * row["batch_size"] for row in rows if row["training"] == stage} for stage in experiment.ROLE}
    together, others = {"together"} & set(configs), {"together", "proxy_steps_800", f"{dreambench.BEST_DIRECT}_steps_800"}
    without_control = protocol in ("proxies", "variations", "paper9_sdxl_rate")
    assert len(set(seen["subject_tuning"].values())) == 1 and (len(seen["subject_tuning"]) > 1 or without_control), "supervisor and control"
    students = protocol != "development_sdxl"
    assert len({count for name, count in seen["proxy_tuning"].items() if name not in others}) == students
    assert all(seen["proxy_tuning"][name] == 3 * seen["proxy_tuning"]["proxy"] for name in together)
    assert len({row["batch_size"] for row in rows if row["training"].startswith("proxy_tuning")}) == students, "the embedding's too"


def test_the_nine_subjects_have_one_family_of_contrasts_and_their_protocols_one_proxy_arm(tmp_path):
    own = {name: dreambench.get_config(name) for name in ("paper9", "proxies", "dreambench30", "replication")}
    counts = {name: len(run.experiment.contrasts) for name, run in own.items()}
    assert counts == {"paper9": 7, "proxies": 2, "dreambench30": 8, "replication": 8}
    families = {name: counts[name] + run.experiment.further_tests for name, run in own.items()}
    assert families == {"paper9": 9, "proxies": 9, "dreambench30": 8, "replication": 8}
    repeated = dreambench.get_config("paper9_sdxl").experiment
    assert set(repeated.contrasts) < set(own["paper9"].experiment.contrasts) and repeated.primary == own["paper9"].experiment.primary
    arms = [dict(experiment.runs(run, "cat", tmp_path)) for run in own.values()]
    for name in ("shared", "proxy"):
        stages = experiment.stages(name, arms[0][name])
        assert len({json.dumps(contract.fields(found[name], "seed", *stages, *experiment.ROLE.values())) for found in arms}) == 1


def test_settings_are_chosen_on_other_subjects_than_those_of_the_paper(tmp_path):
    chosen_on = set(dreambench.PROTOCOLS["development"])
    assert not chosen_on & set(prompts.PAPER9) and {prompts.SUBJECTS[name].live for name in chosen_on} == {True, False}
    tried = dict(dreambench.get_config("development").experiment.arms)
    for name, changes in dreambench.get_config("paper9").experiment.arms:
        if name in dreambench.CHOSEN:
            assert [rate for rate in dreambench.RATES if tried[f"{name}_{rate:g}"] == changes] == [dreambench.CHOSEN[name]]


@pytest.mark.parametrize(("supervisor", "chosen"), [("", dreambench.CHOSEN), ("sdxl", dreambench.CHOSEN_SDXL)])
def test_settings_are_what_the_rule_chooses_from_the_committed_results(supervisor, chosen):
    results, subjects = dreambench.DOCUMENT / "results", dreambench.PROTOCOLS["development"]
    means: dict[str, dict[float, float]] = {}
    for name in chosen:
        for rate in dreambench.RATES:
            files_of = [results / subject / supervisor / f"{name}_{rate:g}.json" for subject in subjects]
            means.setdefault(name, {})[rate] = np.mean([files.read_json(path)["rows"][0]["identity_context"] for path in files_of])
    assert {name: max(own, key=own.get) for name, own in means.items()} == chosen
    best = {name: max(own.values()) for name, own in means.items() if name.startswith("direct_")}
    assert not best or max(best, key=best.get) == dreambench.BEST_DIRECT


@pytest.mark.parametrize(
    ("protocol", "rate"), [("paper9_sdxl", dreambench.CHOSEN_SDXL["supervisor"]), ("paper9_sdxl_rate", dreambench.SUPERVISOR_RATE)]
)
def test_a_second_supervisor_changes_only_what_learns_from_it_or_is_it(protocol, rate, tmp_path):
    first, second = (dict(experiment.runs(dreambench.get_config(name), "cat", tmp_path)) for name in ("paper9", protocol))
    assert second["shared"].subject_tuning.training.learning_rate == rate and second["shared"].supervisor.family == "sdxl"
    for name in set(first) & set(second):
        stages = experiment.stages(name, first[name])
        roles = experiment.roles(first[name], stages) | {"supervisor" for stage in stages if first[name].get(stage, {}).get("source") == "proxies"}
        same = [contract.fields(found[name], "seed", "compute", "subject", *stages, *roles) for found in (first, second)]
        assert (same[0] == same[1]) == name.startswith("direct_"), name


def test_every_figure_of_the_document_stands_in_the_tables_that_commands_write():
    tables = "\n".join(path.read_text() for path in dreambench.DOCUMENT.glob("*/comparison.md"))
    own = dreambench.DOCUMENT.with_suffix(".md").read_text()
    figures = re.findall(r"[+-]?\d+\.\d+ ± \d+\.\d+(?: \(\d+/\d+|)|\d+\.\d+ \[-?\d+\.\d+, -?\d+\.\d+\]", own)
    assert len(figures) > 40
    assert [figure for figure in figures if figure not in tables] == []


def test_what_a_student_draws_with_is_no_input_of_its_tuning(checkpoints, tmp_path):
    """So that arms which only draw otherwise can share a tuning, as the stand-ins of this file do."""
    run = config(checkpoints)
    run.proxy_tuning.source = "photos"
    run.subject.photos = str(checkpoints / "photos" / "vase")
    before = [stage.inputs(run, tmp_path) for stage in (subject_tuning, proxy_tuning)]
    run.evaluation.student.temperature = run.evaluation.student.temperature / 2
    run.evaluation.supervisor.steps += 1
    assert [stage.inputs(run, tmp_path) for stage in (subject_tuning, proxy_tuning)] == before
