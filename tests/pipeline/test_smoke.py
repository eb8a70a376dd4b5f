"""The smoke run end to end: its report, its resumption after kill -9 and SIGTERM, also in a bucket, and its losses in several processes."""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from proxy_jax import storage
from proxy_jax.data import images
from proxy_jax.metrics import scores
from proxy_jax.metrics.encoders import MetricEncoders
from proxy_jax.models.layers import Compute
from proxy_jax.processes import PREEMPTED
from tests.pipeline.conftest import finish, start

pytestmark = pytest.mark.slow
TRAININGS = ("subject_tuning", "proxy_tuning")
STAGES = ("random_weights", "subject_tuning", "proxy_generation", "proxy_tuning", "evaluation")


def report_of(workdir: Path) -> dict:
    return json.loads((workdir / "evaluation" / "report.json").read_text())


def losses(workdir: Path, stage: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]


def proxies(workdir: Path) -> list[dict]:
    """The records of the proxy set, images as their PNG bytes, read by TFDS alone."""
    builder = tfds.builder_from_directory(workdir / "proxy_generation" / "dataset")
    return [dict(row) for row in builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})]


def artefacts(workdir: Path) -> dict[str, bytes]:
    """Everything a run is for, by name: weights, losses, pictures, the proxy set and the report without its timings."""
    found = {}
    for pattern in ("*/weights/*", "*/metrics.jsonl", "*/class_images/*.png", "*/previews/*.png", "*/images/**/*.png", "*/dataset/*.json"):
        found |= {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.glob(pattern)}
    # The records, not the file that holds them: protobuf orders an example's fields differently in every process.
    for index, row in enumerate(proxies(workdir)):
        found |= {f"proxy {index} {name}": value if isinstance(value, bytes) else str(value).encode() for name, value in row.items()}
    return found | {"report": json.dumps(report_of(workdir) | {"timings": None}, sort_keys=True).encode()}


def test_report_scores_come_from_the_pictures_it_shows(finished):
    report = report_of(finished)
    encoders = MetricEncoders.load(
        finished / "random_weights" / "metrics" / "dino",
        finished / "random_weights" / "metrics" / "clip",
        compute=Compute(),
        dino_preprocessing="dreambench",
    )

    def embed(pictures: list[dict]) -> scores.Embeddings:
        pixels = [images.decode((finished / picture["path"]).read_bytes()) for picture in pictures]
        return scores.Embeddings(encoders.dino(pixels), encoders.clip_image(pixels))

    real = embed(report["photos"])
    assert [row["arm"] for row in report["rows"]] == ["supervisor", "student"]
    for row in report["rows"]:
        pictures = report["samples"][row["arm"]]
        assert len(pictures) == row["scores"]["images"] == 8
        found = embed(pictures)
        captions = encoders.clip_text([picture["caption"] for picture in pictures])
        assert row["scores"]["dino"] == pytest.approx(float(np.mean(found.dino @ real.dino.T)), abs=1e-5)
        assert row["scores"]["clip_i"] == pytest.approx(float(np.mean(found.clip @ real.clip.T)), abs=1e-5)
        assert row["scores"]["clip_t"] == pytest.approx(float(np.mean(np.sum(found.clip * captions, -1))), abs=1e-5)
    page = (finished / "evaluation" / "report.html").read_text()
    assert page.count("<img") >= 16 and all(f"{row['scores']['dino']:.3f}" in page for row in report["rows"])


def test_proxies_are_a_dataset_that_tfds_opens(finished):
    rows = proxies(finished)
    assert len(rows) == 16
    for index in (0, 15):
        assert rows[index]["image"] == (finished / "proxy_generation" / "images" / f"{index:05d}.png").read_bytes()
        assert rows[index]["prompt"].decode() == "a sks dog" and rows[index]["index"] == index


def test_training_and_drawing_did_something(finished):
    for stage in TRAININGS:
        assert len(losses(finished, stage)) == 8 and np.isfinite(losses(finished, stage)).all()
        assert [path.name for path in sorted((finished / stage / "previews").iterdir())] == ["step_000004.png", "step_000008.png"]
        assert list((finished / stage / "tensorboard").glob("events.*"))
    drawn = [np.asarray(Image.open(path)) for path in sorted((finished / "proxy_generation" / "images").iterdir())]
    assert len({picture.tobytes() for picture in drawn}) == 16 and all(picture.std() > 5 for picture in drawn)


def test_a_second_run_finds_everything_done(finished, subject_flags):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file() and "cache" not in path.parts}
    text = finish(start(finished, *subject_flags), finished)
    assert text.count("done already") == 5
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_killed_runs_resume_to_the_same_artefacts(finished, subject_flags, tmp_path):
    """kill -9, or SIGTERM as before a preemption, at the first sign of life of each kind of work, then again from there."""
    workdir = tmp_path / "run"
    moments = [
        ("random_weights/supervisor/vae/config.json", signal.SIGTERM),
        ("subject_tuning/class_images/*.png", signal.SIGTERM),
        ("subject_tuning/checkpoints/4/state", signal.SIGKILL),
        ("proxy_generation/images/00007.png", signal.SIGTERM),
        ("proxy_tuning/metrics.jsonl", signal.SIGTERM),
        ("evaluation/images/student/*.png", signal.SIGTERM),
    ]
    for moment, sent in moments:
        process = start(workdir, *subject_flags)
        deadline = time.monotonic() + 300
        while not list(workdir.glob(moment)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, f"ended before {moment}: {workdir.with_suffix('.log').read_text()[-2000:]}"
        os.kill(process.pid, sent)
        assert process.wait() == (PREEMPTED if sent == signal.SIGTERM else -sent), f"{moment}: {workdir.with_suffix('.log').read_text()[-4000:]}"
        if moment == "proxy_tuning/metrics.jsonl":  # the step that was under way, the first if the machine is not busy, is not lost
            saved = max(int(path.name) for path in (workdir / "proxy_tuning" / "checkpoints").iterdir())
            assert 1 <= saved <= 8
    text = finish(start(workdir, *subject_flags), workdir)
    assert "resumed where it was interrupted" in text and f"resuming from step {saved} of {workdir}/proxy_tuning" in text
    assert text.count("preempted; the same command goes on") == 5
    ours, uninterrupted = artefacts(workdir), artefacts(finished)
    assert ours.keys() == uninterrupted.keys()
    assert [name for name in ours if ours[name] != uninterrupted[name]] == []


def test_a_workdir_in_a_bucket(finished, subject_flags, tmp_path, bucket):
    """A run begun in a folder goes on in a bucket and is killed while it writes a checkpoint there: another ends it, with the same artefacts."""
    with storage.opened("gs://bucket/run") as copy:
        storage.pull()
        for name in ("cache", "random_weights", "subject_tuning"):
            shutil.copytree(finished / name, copy / name, ignore=shutil.ignore_patterns("checkpoints"))
    flags = *subject_flags, "--workdir=gs://bucket/run"
    process = start(tmp_path / "run", *flags)
    deadline = time.monotonic() + 300
    while not bucket.files.find("bucket/run/proxy_tuning/checkpoints/8") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, (tmp_path / "run.log").read_text()[-2000:]
    process.kill()
    process.wait()
    before = bucket.versions("run")
    text = finish(start(tmp_path / "run", *flags), tmp_path / "run")
    assert text.count("done already") == 2 + 3 and "resuming from step 4 of gs://bucket/run/proxy_tuning/checkpoints" in text
    assert text.count("report: gs://bucket/run/evaluation/report.html") == 1
    after = bucket.versions("run")
    assert [name for name in before if before[name] != after.get(name) and not name.startswith(("proxy_tuning/", "cache/"))] == []
    with storage.opened("gs://bucket/run") as copy:
        storage.pull()
        ours, uninterrupted = artefacts(copy), artefacts(finished)
    assert ours.keys() == uninterrupted.keys()
    assert [name for name in ours if ours[name] != uninterrupted[name]] == []


@pytest.mark.parametrize(("count", "devices", "sizes", "stages"), [(2, 4, (2, 2, 2), STAGES), (4, 1, (2, 2, 1), STAGES[:3])])
def test_several_processes_give_the_same_losses_and_pictures(finished, subject_flags, tmp_path, count, devices, sizes, stages):
    workdir, axes = tmp_path / "run", dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    with socket.create_server(("", 0)) as free:
        together = (f"--coordinator=localhost:{free.getsockname()[1]}", f"--num_processes={count}")
    flags = [f"--config.mesh.{axis}={size}" for axis, size in axes.items()] + [f"--config.stages={stages}"]
    flags += ["--config.subject_tuning.training.preview_every=0", "--config.proxy_tuning.training.preview_every=0"]  # less to compile
    runs = [start(workdir, *subject_flags, *flags, *together, f"--process_id={number}", devices=devices) for number in range(count)]
    text = [finish(process, workdir) for process in runs][-1]
    assert text.count(str(axes)) == 1 and text.count("report: ") == ("evaluation" in stages), "the first process speaks"
    for stage in (stage for stage in TRAININGS if stage in stages):
        np.testing.assert_allclose(losses(workdir, stage), losses(finished, stage), atol=1e-4, err_msg=stage)
    folders = ("subject_tuning/class_images", "proxy_generation/images", "evaluation/images/supervisor")
    for folder in (folder for folder in folders if folder.split("/")[0] in stages):
        ours, theirs = (np.stack([np.asarray(Image.open(path)) for path in sorted((run / folder).iterdir())]) for run in (workdir, finished))
        assert np.mean(np.square(ours.astype(float) - theirs)) < 255**2 / 10**4, f"{folder}: less than 40 dB"
