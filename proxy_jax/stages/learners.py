"""From a run's config to its supervisor, its student and its subject."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from proxy_jax import sharding, storage, students, supervisors
from proxy_jax.data import dreambench, photos, prompts
from proxy_jax.models.layers import Compute
from proxy_jax.stages.contract import StageError
from proxy_jax.stages.tuning import Learner
from proxy_jax.supervisors.latent import NewTokens
from proxy_jax.weights import hub

PACKAGE = Path(__file__).resolve().parents[1]  # "{package}" in a config: the checkpoints that come with it lie in {package}/checkpoints


def locate(workdir: Path) -> Callable[[str], Path]:
    """A function from a checkpoint's name in a config to where it lies: a path, which may hold "{workdir}" or "{package}", or a hub id."""
    return lambda name: hub.find(_filled(name, workdir))


def path(name: str, workdir: Path) -> Path:
    """A path in a config, which may hold "{workdir}" or "{package}"."""
    return Path(_filled(name, workdir)).expanduser()


def _filled(name: str, workdir: Path) -> str:
    return name.replace("{workdir}", str(workdir)).replace("{package}", str(PACKAGE))


def compute_of(config: ConfigDict) -> Compute:
    """How models compute, from the config's `compute`. Layers are unrolled on CPUs alone: accelerators gain little by it and compile for minutes."""
    unroll = config.compute.unroll and sharding.device().platform == "cpu"
    return Compute(jnp.dtype(config.compute.dtype), config.compute.remat, unroll)


def _choose(families: Mapping[str, Callable], role: str, family: str) -> Callable:
    if family not in families:
        raise StageError(f"{role}.family is {family!r}; known families: {', '.join(sorted(families))}")
    return families[family]


def supervisor(config: ConfigDict, workdir: Path) -> Learner:
    """The diffusion supervisor of stages 1 and 2. New tokens for the subject start from its class noun."""
    make = _choose(supervisors.FAMILIES, "supervisor", config.supervisor.family)
    count = config.subject_tuning.embedding.tokens
    new_tokens = None
    if count:
        new_tokens = NewTokens(config.subject.token, count, config.subject.class_noun or subject(config, workdir).class_noun)
    return make(config.supervisor, config.subject_tuning, compute_of(config), locate(workdir), new_tokens)


def student(config: ConfigDict, workdir: Path) -> Learner:
    """The autoregressive student of stage 3."""
    make = _choose(students.FAMILIES, "student", config.student.family)
    tokens = [config.subject.token, *(parse_subject(entry)["token"] for entry in config.subjects)]
    return make(config.student, config.proxy_tuning, compute_of(config), locate(workdir), tokens)


@dataclasses.dataclass(frozen=True)
class Subject:
    """Who the run is about: the photos, and the words and prompts for them (config.subject, or DreamBench)."""

    photos: tuple[photos.Photo, ...]
    class_noun: str
    token: str
    live: bool

    def words(self) -> dict[str, Any]:
        """All but the photos, as JSON."""
        return {"class_noun": self.class_noun, "token": self.token, "live": self.live}

    def fill(self, template: str) -> str:
        """A prompt of a model that has learned the token."""
        return prompts.fill(template, self.token, self.class_noun)

    def previews(self) -> list[str]:
        """The prompts of the sample grids: DreamBench's first four."""
        return [self.fill(template) for template in prompts.dreambench_prompts(self.live)[:4]]

    def key(self) -> dict[str, Any]:
        """The subject as JSON for a stage's inputs, each photo by its bytes' SHA-256: where the photos lie makes no difference."""
        return self.words() | {"photos": {photo.name: photo.sha256 for photo in self.photos}}


def role(arm: str) -> str:
    """Who draws the pictures of an arm of the evaluation: "supervisor" or "student"."""
    return "student" if arm.endswith("student") else "supervisor"


def parse_subject(entry: str) -> dict[str, str]:
    """The fields of one of config.subjects. Raises StageError if it lacks one or has others."""
    pairs = [pair.partition("=") for pair in re.split(r",(?=\w+=)", entry)]
    found = {name.strip(): value.strip() for name, _, value in pairs}
    whole = set(found) in ({"token", "class_noun", "photos"}, {"token", "class_noun", "proxies"}) and all(found.values())
    if not whole or len(found) < len(pairs):
        raise StageError(f"{entry!r} is not token=WORD,class_noun=NOUN,photos=FOLDER (or proxies=FOLDER)")
    return found


def more_subjects(config: ConfigDict, workdir: Path) -> list[tuple[Subject, Path | None]]:
    """The further subjects of stage 3 that config.subjects names, each with its photos, or without any and the folder of its proxy set."""
    found: list[tuple[Subject, Path | None]] = []
    for fields in map(parse_subject, config.subjects):
        pictures = tuple(photos.load_photos(path(fields["photos"], workdir))) if "photos" in fields else ()
        subject = Subject(pictures, fields["class_noun"], fields["token"], fields["class_noun"] in prompts.LIVE_CLASSES)
        found.append((subject, path(fields["proxies"], workdir).resolve() if "proxies" in fields else None))
    return found


def check_subject(config: ConfigDict) -> None:
    """Raises StageError unless the config names one subject; looks at no file."""
    fields = config.subject
    if fields.photos and fields.dreambench:
        raise StageError(
            f"subject.photos ({fields.photos}) and subject.dreambench ({fields.dreambench}) are both given; empty one, e.g. --config.subject.photos="
        )
    if fields.dreambench and not (Path(fields.dreambench).name and len(Path(fields.dreambench).parts) > 1):
        raise StageError(f"subject.dreambench is FOLDER/SUBJECT, e.g. datasets/dreambench/dog6, not {fields.dreambench!r}")
    if not fields.dreambench and not (fields.photos and fields.class_noun):
        raise StageError(
            "the config names no subject: give --config.subject.photos=FOLDER and --config.subject.class_noun=NOUN (dog, backpack, ...), "
            "or --config.subject.dreambench=FOLDER/SUBJECT"
        )


def subject(config: ConfigDict, workdir: Path) -> Subject:
    """The subject that the config names. A DreamBench one comes out of its TFDS dataset, prepared under workdir/cache/dreambench.

    Raises StageError if the config names none or contradicts DreamBench, PhotosError if no photo can be read, and DreambenchError
    for a folder that is not DreamBench's or lacks the subject.
    """
    check_subject(config)
    fields = config.subject
    if not fields.dreambench:
        if fields.class_noun in prompts.LIVE_CLASSES and not fields.live:
            logging.warning("a %s gets DreamBench's prompts for objects; --config.subject.live=True chooses those for pets", fields.class_noun)
        return Subject(tuple(photos.load_photos(path(fields.photos, workdir))), fields.class_noun, fields.token, fields.live)
    source, name = path(fields.dreambench, workdir).parent, path(fields.dreambench, workdir).name
    pictures = dreambench.photos(storage.first_then_all(lambda: dreambench.prepare(source, workdir / "cache" / "dreambench")), name)
    class_noun = dreambench.class_nouns((source / dreambench.CLASSES_FILE).read_text(encoding="utf-8"))[name]
    live = class_noun in prompts.LIVE_CLASSES
    if fields.class_noun not in ("", class_noun):
        raise StageError(
            f"subject.class_noun is {fields.class_noun!r}, but DreamBench's {name} is a {class_noun!r}; leave it empty: --config.subject.class_noun="
        )
    if fields.live and not live:
        raise StageError(f"subject.live is True, but DreamBench's {name}, a {class_noun!r}, has the prompts of objects; leave subject.live out")
    return Subject(tuple(pictures), class_noun, fields.token, live)
