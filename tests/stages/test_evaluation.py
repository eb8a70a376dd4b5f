"""proxy_jax/stages/evaluation.py with made-up learners: who draws, what a probe reads, and what the report says of the photos."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import smoke
from proxy_jax.data import proxy_set
from proxy_jax.data.microworld.attributes import IDENTITY
from proxy_jax.data.microworld.scenes import ASKED
from proxy_jax.data.prompts import dreambench_prompts
from proxy_jax.stages import contract, evaluation, files, learners, random_weights

TRUTH = dict(zip(("class_noun", *IDENTITY), ("dog", "teal", "yellow", "spots", "1", "bow"), strict=True))
SIZE = 16
# What a picture shows, by its first channel: the subject as the prompt asks, the subject on a lawn, another one as the prompt asks.
PERFECT, PHOTO, STRANGER = 10, 20, 30


class MadeUpProbes:
    """Reads what a picture's first channel stands for; its second one is the number of its prompt."""

    model = SimpleNamespace(config=SimpleNamespace(sample_size=SIZE))

    def read(self, pictures):
        assert pictures.shape[1:] == (SIZE, SIZE, 3) and pictures.dtype == np.uint8
        rows = []
        for kind, prompt, _ in pictures[:, 0, 0]:
            row = TRUTH | {"setting": "lawn", "outfit": "none", "surface": "none"}
            if kind == STRANGER:
                row |= {"pattern": "plain", "class_noun": "cat"}
            if kind != PHOTO:
                row |= {name: value for name, value in vars(ASKED[dreambench_prompts(True)[prompt]]).items() if value}
            rows.append(row)
        return {name: [row[name] for row in rows] for name in rows[0]}


def write_done(workdir: Path, stage: str, inputs: dict) -> None:
    def run(config, workdir):
        (workdir / stage / "weights").mkdir()
        return {}

    contract.complete(stage, SimpleNamespace(OUTPUTS=("weights",), inputs=lambda config, workdir: inputs, run=run), smoke.get_config(), workdir)


@pytest.fixture
def config():
    config = smoke.get_config()
    config.subject.update(photos="{workdir}/photos", class_noun="dog", live=True)
    config.proxy_tuning.source = "photos"
    config.evaluation.num_prompts = 25
    config.evaluation.arms = ("supervisor", "student")
    return config


@pytest.fixture
def workdir(config, tmp_path):
    """A run with photos, the encoders of the scores, and both generators tuned."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(2):
        picture = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        picture[..., :2] = PHOTO, 0
        Image.fromarray(picture).save(tmp_path / "photos" / f"{index}.png")
    sizes = config.random_weights.to_dict()["metrics"]
    random_weights.metrics(sizes, tmp_path / random_weights.NAME / "metrics", config.seed)
    for stage in ("subject_tuning", "proxy_tuning"):
        write_done(tmp_path, stage, {})
        (tmp_path / stage / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """Replaces drawing: each arm's pictures are of one kind, but every fourth one shows the subject on a lawn."""
    kinds = {"supervisor": PERFECT, "student": STRANGER, "direct_student": PHOTO}

    def draw_images(learner, load_model, wanted, folder, **options):
        rng, paths = np.random.default_rng(len(folder.name)), [folder / f"{index:05d}.png" for index in range(len(wanted))]
        for index, path in enumerate(paths):
            picture = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            picture[..., :2] = PHOTO if index % 4 == 3 else kinds[folder.name], index // 2
            files.save_picture(path, picture)
        return paths

    monkeypatch.setattr(evaluation, "draw_images", draw_images)
    monkeypatch.setattr(evaluation, "arm", lambda name, config, workdir: (None, None, {}))


def report_of(workdir):
    content = json.loads((workdir / "evaluation" / "report.json").read_text())
    return content, {row["arm"]: row["scores"] for row in content["rows"]}


def test_a_probe_reads_every_arm_and_the_photos(config, workdir, drawn, monkeypatch):
    monkeypatch.setattr(evaluation.Probes, "load", lambda folder: MadeUpProbes())
    config.evaluation.probes = "{workdir}/photos"
    (workdir / "photos" / "truth.json").write_text(json.dumps(TRUTH | {"accent": "red", "variant": 1}))
    (workdir / "photos" / "broken.jpg").write_bytes(b"no picture")
    evaluation.run(config, workdir)
    content, found = report_of(workdir)
    # Two pictures a prompt: 12 of the 50 show the subject, but not what the prompt asks for.
    assert found["supervisor"]["identity"] == 1 and found["supervisor"]["context"] == pytest.approx(38 / 50)
    assert found["supervisor"]["identity_context"] == pytest.approx(38 / 50) and found["supervisor"]["right_class"] == 1
    # The stranger is of another class: nothing of the subject, whatever its colours.
    assert found["student"]["identity"] == found["student"]["right_class"] == pytest.approx(12 / 50)
    assert [found["student"]["per_prompt"][number]["identity"] for number in (20, 21)] == [0, 0.5]
    assert content["ceiling"]["identity"] == 1 and content["ceiling"]["context"] is None
    assert content["left_out"] == ["broken.jpg"]
    assert [timing["stage"] for timing in content["timings"]] == ["subject_tuning", "proxy_tuning", "evaluation"]
    assert "Identity × context ↑" in (workdir / "evaluation" / "report.html").read_text()


def test_without_truth_or_probes_less_is_scored(config, workdir, drawn, monkeypatch):
    monkeypatch.setattr(evaluation.Probes, "load", lambda folder: MadeUpProbes())
    config.evaluation.num_prompts = 2
    evaluation.run(config, workdir)
    assert report_of(workdir)[1]["student"]["context"] is None
    config.evaluation.probes = "{workdir}/photos"
    evaluation.run(config, workdir)
    content, found = report_of(workdir)
    assert found["student"]["identity"] is None and found["student"]["context"] == pytest.approx(3 / 4)
    assert any("no truth.json" in note for note in content["notes"])


def test_the_truth_must_be_whole_and_of_this_class(config, workdir):
    path = workdir / "photos" / "truth.json"
    assert evaluation.truth(config, workdir) is None
    path.write_text(json.dumps(TRUTH))
    assert evaluation.truth(config, workdir) == {name: TRUTH[name] for name in IDENTITY}
    path.write_text(json.dumps({name: value for name, value in TRUTH.items() if name != "pattern"}))
    with pytest.raises(contract.StageError, match=r"truth\.json lacks pattern"):
        evaluation.truth(config, workdir)
    path.write_text(json.dumps(TRUTH | {"class_noun": "cat"}))
    with pytest.raises(contract.StageError, match=r"about a cat, subject\.class_noun is 'dog'"):
        evaluation.truth(config, workdir)


def test_the_direct_student_comes_from_another_run(config, workdir, monkeypatch, tmp_path_factory):
    other = tmp_path_factory.mktemp("direct")
    config.evaluation.direct = str(other)
    monkeypatch.setattr(learners, "student", lambda config, workdir: f"the student of {config.proxy_tuning.mode}")
    monkeypatch.setattr(evaluation, "checkpoint_key", lambda learner: {"base": "abc"})
    with pytest.raises(contract.StageError, match="the stage proxy_tuning is not done"):
        evaluation.inputs(config, workdir)
    of_photos = {"source": "photos", "mode": "two_stage"}
    right = {"proxy_tuning": of_photos, "subject": learners.subject(config, workdir).key(), "checkpoint": {"base": "abc"}}
    for wrong, message in (
        ({"proxy_tuning": {"source": "proxies"}}, "learned from proxies"),
        ({"checkpoint": {"base": "abd"}}, r"checkpoint\.base"),
        ({"subject": right["subject"] | {"photos": {}}}, r"subject\.photos"),
    ):
        write_done(other, "proxy_tuning", right | wrong)
        with pytest.raises(contract.StageError, match=message):
            evaluation.inputs(config, workdir)
    write_done(other, "proxy_tuning", right)
    before = evaluation.inputs(config, workdir)
    write_done(other, "proxy_tuning", right | {"seed": 1})
    assert contract.changes(before, evaluation.inputs(config, workdir))[0].startswith("direct_student: ")

    monkeypatch.setattr(evaluation, "tuned_model", lambda learner, stage, folder: (learner, stage.mode, folder))
    _, load_model, options = evaluation.arm("direct_student", config, workdir)
    assert load_model() == ("the student of two_stage", "two_stage", other / "proxy_tuning") and options == config.evaluation.student.to_dict()


def test_the_direct_student_is_one_more_arm(config, workdir, drawn):
    config.evaluation.direct = "{workdir}/direct"
    config.evaluation.num_prompts = 2
    evaluation.run(config, workdir)
    content, found = report_of(workdir)
    assert list(found) == ["supervisor", "student", "direct_student"] and found["direct_student"]["images"] == 4
    assert content["rows"][-1]["label"] == "Student, tuned on the photos directly"
    assert content["samples"]["direct_student"][0]["path"] == "evaluation/images/direct_student/00000.png"


def test_of_another_runs_proxies_the_page_shows_a_few(config, workdir, drawn):
    pictures = np.random.default_rng(0).integers(0, 256, (40, SIZE, SIZE, 3), dtype=np.uint8)
    records = (dict(image=p, prompt="a zwx figure", seed=0, index=i, supervisor="x", config_hash="y") for i, p in enumerate(pictures))
    proxy_set.write(workdir / "other", records, metadata={"subject": {"token": "zwx", "class_noun": "figure", "live": False}})
    config.proxies, config.evaluation.num_prompts = str(workdir / "other"), 1
    config.proxy_tuning.update(source="proxies", num_proxies=30)
    evaluation.run(config, workdir)
    content, _ = report_of(workdir)
    assert len(content["proxies"]) == 24 and {proxy["caption"] for proxy in content["proxies"]} == {"a sks dog"}
    assert content["proxies"][-1]["path"] == "evaluation/proxies/00028.png"
    np.testing.assert_array_equal(files.load_picture(workdir / "evaluation" / "proxies" / "00028.png"), pictures[28])
    assert any("another run's" in note for note in content["notes"]) and "proxies" in content["rows"][1]["label"]
