"""DreamBench, the 30 subjects of the DreamBooth dataset, as a TFDS dataset (array_record; no TensorFlow needed).

    builder = dreambench.prepare(source, data_dir)            # source: the dataset's folder, one subfolder a subject
    photos = dreambench.photos(builder, "dog6")               # the same objects as photos.load_photos(source / "dog6")
    builder.as_data_source("train")                           # or plain TFDS

The dataset is licensed CC BY 4.0 by its authors; it is not part of this package.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from proxy_jax.data import cache
from proxy_jax.data import photos as photos_lib
from proxy_jax.data.prompts import LIVE_CLASSES

CLASSES_FILE = "prompts_and_classes.txt"
SPLIT = "train"

_DESCRIPTION = """
DreamBench: 30 subjects (21 objects, 9 live), 4-6 photos each, for subject-driven image generation.
The images are stored as the original encoded files.
"""
_LICENSE = """
Creative Commons Attribution 4.0 International (CC BY 4.0), https://creativecommons.org/licenses/by/4.0/.
Some photos come from Unsplash; the dataset's references_and_licenses.txt names the author of each.
"""
_CITATION = """
@inproceedings{ruiz2023dreambooth,
  title = {DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation},
  author = {Ruiz, Nataniel and Li, Yuanzhen and Jampani, Varun and Pritch, Yael and Rubinstein, Michael and Aberman, Kfir},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2023}
}
"""


class DreambenchError(ValueError):
    """A source folder that is not laid out as the DreamBooth dataset, or a subject that it does not have."""


def class_nouns(text: str) -> dict[str, str]:
    """Subject name -> class noun, from the text of prompts_and_classes.txt: the lines after "subject_name,class".

    Raises DreambenchError if there is no such table.
    """
    table = re.search(r"^subject_name,class[ \t]*\r?\n((?:[^,\r\n]+,[^\r\n]+\r?\n?)+)", text, re.MULTILINE)
    if table is None:
        raise DreambenchError(f'no lines "subject,class" after a line "subject_name,class" in {CLASSES_FILE}')
    rows = [line.split(",", 1) for line in table.group(1).splitlines()]
    return {subject.strip(): noun.strip() for subject, noun in rows}


def _subjects(source: Path) -> dict[str, str]:
    """Subject -> class noun of the dataset at `source`, checked both ways against its subfolders."""
    if not (source / CLASSES_FILE).is_file():
        raise DreambenchError(f"{source} has no {CLASSES_FILE}; give the folder of the DreamBooth dataset that holds it")
    nouns = class_nouns((source / CLASSES_FILE).read_text(encoding="utf-8"))
    folders = {path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if folders != set(nouns):
        missing, extra = sorted(set(nouns) - folders), sorted(folders - set(nouns))
        raise DreambenchError(f"{source}: listed in {CLASSES_FILE} without a folder: {missing}; folders not listed: {extra}")
    return nouns


class Dreambench(tfds.core.GeneratorBasedBuilder):
    """TFDS builder over the DreamBooth dataset's folder, given to TFDS as its manual_dir."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "All subjects in one split, the files' bytes unchanged."}  # noqa: RUF012 - TFDS's own form
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"""
    The `dataset` folder of github.com/google/dreambooth: one folder of photos a subject, and {CLASSES_FILE}.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "subject": tfds.features.Text(),
                    "class_noun": tfds.features.Text(),
                    "live": np.bool_,
                    "file_name": tfds.features.Text(),
                }
            ),
            homepage="https://github.com/google/dreambooth",
            citation=_CITATION,
            license=_LICENSE,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # subjects and their photos keep their order
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        source = Path(dl_manager.manual_dir)
        self.info.metadata["source"] = cache.fingerprint(source)
        return {SPLIT: self._generate_examples(source)}

    def _generate_examples(self, source: Path) -> Iterator[tuple[int, dict]]:
        key = 0
        for subject, noun in sorted(_subjects(source).items()):
            files = photos_lib.image_files(source / subject)
            if not files:
                raise DreambenchError(f"the subject folder {source / subject} holds no photo")
            for path in files:
                data = path.read_bytes()
                photos_lib.read(f"{subject}/{path.name}", data)  # a benchmark with a broken photo is no benchmark: raises
                yield (
                    key,
                    {
                        # Bytes, not pixels: TFDS would encode pixels through TensorFlow.
                        "image": io.BytesIO(data),
                        "subject": subject,
                        "class_noun": noun,
                        "live": noun in LIVE_CLASSES,
                        "file_name": path.name,
                    },
                )
                key += 1


def prepare(source: Path, data_dir: Path) -> Dreambench:
    """The builder of the dataset at `source`, prepared under `data_dir`; made again if `source` has changed since.

    Raises DreambenchError on a wrong layout and PhotosError on a broken photo; nothing is left behind then.
    """
    source = Path(source)
    _subjects(source)
    builder = Dreambench(data_dir=data_dir, file_format="array_record")
    mode = tfds.download.GenerateMode.REUSE_DATASET_IF_EXISTS
    if builder.is_prepared() and builder.info.metadata["source"] != cache.fingerprint(source):
        logging.info("%s has changed: preparing DreamBench again", source)
        mode = tfds.download.GenerateMode.REUSE_CACHE_IF_EXISTS
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=source, download_mode=mode))
    return builder


def photos(builder: tfds.core.DatasetBuilder, subject: str) -> list[photos_lib.Photo]:
    """The photos of one subject of a prepared dataset, in their order. Raises DreambenchError if it has no such subject."""
    rows = builder.as_data_source(SPLIT, decoders={"image": tfds.decode.SkipDecoding()})
    names, found = set(), []
    for row in rows:
        name = row["subject"].decode()
        names.add(name)
        if name == subject:
            found.append(photos_lib.read(row["file_name"].decode(), row["image"]))
    if not found:
        raise DreambenchError(f"DreamBench has no subject {subject!r}; it has {', '.join(sorted(names))}")
    return found
