"""proxy_jax/stages/learners.py: the subject from a folder of photos or from DreamBench, and where checkpoints are looked for."""

import types

import numpy as np
import pytest
from PIL import Image

from configs import base
from proxy_jax import sharding
from proxy_jax.data.dreambench import CLASSES_FILE, DreambenchError
from proxy_jax.data.photos import PhotosError
from proxy_jax.stages import learners
from proxy_jax.stages.contract import StageError
from proxy_jax.weights.hub import CheckpointError

CLASSES = "subject_name,class\ndog6,dog\nsloth,stuffed animal\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A DreamBench of two subjects."""
    folder = tmp_path_factory.mktemp("dreambench")
    rng = np.random.default_rng(0)
    for subject in ("dog6", "sloth"):
        (folder / subject).mkdir()
        for index in range(2):
            Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).save(folder / subject / f"{index}.png")
    (folder / CLASSES_FILE).write_text(CLASSES)
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


def config_with(**subject):
    config = base.get_config()
    config.subject.update(subject)
    return config


def test_a_dreambench_subject_brings_its_words_and_the_same_photos(source, workdir):
    found = learners.subject(config_with(dreambench=f"{source}/dog6"), workdir)
    by_hand = learners.subject(config_with(photos=f"{source}/dog6", class_noun="dog", live=True), workdir)
    assert found.key() == by_hand.key() and len(found.photos) == 2
    assert found.words() == {"class_noun": "dog", "token": "sks", "live": True}
    assert list((workdir / "cache" / "dreambench").rglob("*.array_record*")), "it came through the TFDS dataset"
    sloth = learners.subject(config_with(dreambench=f"{source}/sloth", token="zwx", class_noun="stuffed animal"), workdir)
    assert sloth.words() == {"class_noun": "stuffed animal", "token": "zwx", "live": False}
    assert sloth.key()["photos"].keys() == {"0.png", "1.png"} and sloth.key()["photos"] != found.key()["photos"]


def test_the_real_dreambench(shared, workdir):
    found = learners.subject(config_with(dreambench=f"{shared}/dreambench/backpack_dog"), workdir / "real")
    assert found.words() == {"class_noun": "backpack", "token": "sks", "live": False}
    assert [photo.name for photo in found.photos] == sorted(path.name for path in (shared / "dreambench" / "backpack_dog").glob("*.jpg"))


@pytest.mark.parametrize(
    ("subject", "error", "text"),
    [
        ({}, StageError, "the config names no subject: give --config.subject.photos=FOLDER"),
        ({"photos": "{source}/dog6"}, StageError, "the config names no subject"),
        ({"class_noun": "dog"}, StageError, "the config names no subject"),
        ({"photos": "a", "dreambench": "b/c"}, StageError, "subject.photos (a) and subject.dreambench (b/c) are both given"),
        ({"dreambench": "dog6"}, StageError, "subject.dreambench is FOLDER/SUBJECT, e.g. datasets/dreambench/dog6, not 'dog6'"),
        ({"dreambench": "{source}/dog6", "class_noun": "cat"}, StageError, "subject.class_noun is 'cat', but DreamBench's dog6 is a 'dog'"),
        ({"dreambench": "{source}/sloth", "live": True}, StageError, "subject.live is True, but DreamBench's sloth"),
        ({"dreambench": "{source}/dog7"}, DreambenchError, "DreamBench has no subject 'dog7'; it has dog6, sloth"),
        ({"dreambench": "{source}/dog6/0"}, DreambenchError, f"dog6 has no {CLASSES_FILE}"),
        ({"photos": "{source}/cat", "class_noun": "cat"}, PhotosError, "cat does not exist"),
        ({"photos": "{source}", "class_noun": "cat"}, PhotosError, "it holds only dog6, prompts_and_classes.txt, sloth"),
    ],
)
def test_what_is_wrong_with_a_subject_is_said(source, workdir, subject, error, text):
    filled = {name: value.replace("{source}", str(source)) if isinstance(value, str) else value for name, value in subject.items()}
    with pytest.raises(error) as caught:
        learners.subject(config_with(**filled), workdir)
    assert text in str(caught.value)


def test_the_subjects_key_follows_the_bytes_not_the_place(source, workdir, tmp_path):
    for path in (source / "dog6").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = learners.subject(config_with(photos=f"{source}/dog6", class_noun="dog"), workdir).key()
    moved = config_with(photos="{workdir}", class_noun="dog")
    assert learners.subject(moved, tmp_path).key() == before
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    assert learners.subject(moved, tmp_path).key() != before


def test_checkpoints_are_found_in_the_workdir(tmp_path):
    (tmp_path / "made").mkdir()
    assert learners.locate(tmp_path)("{workdir}/made") == tmp_path / "made"
    with pytest.raises(CheckpointError, match="absent"):
        learners.locate(tmp_path)("{workdir}/absent")


def test_families_are_known_by_name(workdir):
    config = base.get_config()
    config.supervisor.family = config.student.family = "sd4"
    with pytest.raises(StageError, match=r"supervisor\.family is 'sd4'; known families: .*sd3"):
        learners.supervisor(config, workdir)
    with pytest.raises(StageError, match=r"student\.family is 'sd4'; known families: llamagen"):
        learners.student(config, workdir)


@pytest.mark.parametrize(("platform", "unrolled"), [("cpu", True), ("gpu", False), ("tpu", False)])
def test_layers_are_unrolled_on_cpus_alone(platform, unrolled, monkeypatch):
    monkeypatch.setattr(sharding, "device", lambda: types.SimpleNamespace(platform=platform))
    config = base.get_config()
    assert not learners.compute_of(config).unroll
    config.compute.unroll = True
    assert learners.compute_of(config).unroll is unrolled
