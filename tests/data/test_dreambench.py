"""proxy_jax/data/dreambench.py: the TFDS builder on a small made-up dataset and on the real photos."""

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from proxy_jax.data import dreambench, prompts
from proxy_jax.data.photos import PhotosError, load_photos

CLASSES = "Classes\n\nsubject_name,class\nduck_toy,toy\ndog6,dog\nsloth,stuffed animal\n\nPrompts\n\nprompt_list = [\n'a {0} {1}, red'\n]\n"
FILES = {"duck_toy": ["0.jpg", "1.png"], "dog6": ["2.jpg", "10.jpg"], "sloth": ["a.webp"]}


@pytest.fixture
def source(tmp_path):
    """A dataset of three subjects; one photo is turned by its EXIF tag."""
    folder = tmp_path / "source"
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for subject, names in FILES.items():
        (folder / subject).mkdir(parents=True)
        for name in names:
            options = {"exif": exif} if name == "10.jpg" else {}
            Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).save(folder / subject / name, **options)
    (folder / dreambench.CLASSES_FILE).write_text(CLASSES)
    return folder


def test_prepared_dataset_holds_the_files_unchanged(source, tmp_path):
    builder = dreambench.prepare(source, tmp_path / "data")
    rows = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    order = [("dog6", "2.jpg"), ("dog6", "10.jpg"), ("duck_toy", "0.jpg"), ("duck_toy", "1.png"), ("sloth", "a.webp")]
    assert [(row["subject"].decode(), row["file_name"].decode()) for row in rows] == order
    for row, (subject, name) in zip(rows, order, strict=True):
        assert row["image"] == (source / subject / name).read_bytes()
        assert bool(row["live"]) == (subject == "dog6")
    assert rows[4]["class_noun"].decode() == "stuffed animal"
    assert "CC BY 4.0" in builder.info.redistribution_info.license and "Ruiz, Nataniel" in builder.info.citation


def test_photos_are_those_of_the_folder(source, tmp_path):
    builder = dreambench.prepare(source, tmp_path / "data")
    for subject in FILES:
        ours, theirs = dreambench.photos(builder, subject), load_photos(source / subject)
        assert [(photo.name, photo.sha256) for photo in ours] == [(photo.name, photo.sha256) for photo in theirs]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(np.asarray(one.image), np.asarray(other.image))
    assert dreambench.photos(builder, "dog6")[1].image.size == (8, 10)  # upright
    with pytest.raises(dreambench.DreambenchError, match="no subject 'dog'; it has dog6, duck_toy, sloth"):
        dreambench.photos(builder, "dog")


def test_plain_tfds_opens_it(source, tmp_path):
    folder = dreambench.prepare(source, tmp_path / "data").data_dir
    rows = tfds.builder_from_directory(folder).as_data_source("train")
    assert len(rows) == 5
    np.testing.assert_array_equal(rows[3]["image"], np.asarray(Image.open(source / "duck_toy" / "1.png")))


def test_prepared_once_and_again_when_the_source_changes(source, tmp_path):
    folder = Path(dreambench.prepare(source, tmp_path / "data").data_dir)
    stamp = folder.stat().st_mtime_ns
    dreambench.prepare(source, tmp_path / "data")
    assert folder.stat().st_mtime_ns == stamp
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "PNG")
    (source / "sloth" / "b.png").write_bytes(buffer.getvalue())
    builder = dreambench.prepare(source, tmp_path / "data")
    assert [photo.name for photo in dreambench.photos(builder, "sloth")] == ["a.webp", "b.png"]
    assert builder.info.splits["train"].num_examples == 6


def test_wrong_sources_are_refused(source, tmp_path):
    with pytest.raises(dreambench.DreambenchError, match=r"has no prompts_and_classes\.txt"):
        dreambench.prepare(tmp_path, tmp_path / "data")
    (source / "sloth" / "broken.jpg").write_bytes(b"text")
    with pytest.raises(PhotosError, match=r"sloth/broken\.jpg"):
        dreambench.prepare(source, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    (source / "unknown").mkdir()
    with pytest.raises(dreambench.DreambenchError, match=r"folders not listed: \['unknown'\]"):
        dreambench.prepare(source, tmp_path / "data")
    (source / "unknown").rename(source / ".hidden")
    (source / "sloth").rename(source / ".sloth")
    with pytest.raises(dreambench.DreambenchError, match=r"without a folder: \['sloth'\]"):
        dreambench.prepare(source, tmp_path / "data")
    (source / "sloth").mkdir()
    with pytest.raises(dreambench.DreambenchError, match="holds no photo"):
        dreambench.prepare(source, tmp_path / "data")
    with pytest.raises(dreambench.DreambenchError, match="no lines"):
        dreambench.class_nouns("Prompts\n'a dog, red'\n")


def test_the_real_dataset(shared, tmp_path):
    builder = dreambench.prepare(shared / "dreambench", tmp_path)
    rows = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert len(rows) == 158
    found = {row["subject"].decode(): prompts.Subject(row["class_noun"].decode(), bool(row["live"])) for row in rows}
    assert found == dict(prompts.SUBJECTS)
    assert [photo.name for photo in dreambench.photos(builder, "dog6")] == [f"0{i}.jpg" for i in range(5)]
