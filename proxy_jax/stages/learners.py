"""From a run's config to its supervisor, its student and its subject's photos."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
from ml_collections import ConfigDict

from proxy_jax import students, supervisors
from proxy_jax.data import photos
from proxy_jax.models.layers import Compute
from proxy_jax.stages.contract import StageError
from proxy_jax.stages.tuning import Learner
from proxy_jax.weights import hub


def locate(workdir: Path) -> Callable[[str], Path]:
    """A function from a checkpoint's name in a config (a path, which may hold "{workdir}", or a hub id) to where it lies."""
    return lambda name: hub.find(name.replace("{workdir}", str(workdir)))


def compute_of(config: ConfigDict) -> Compute:
    """How models compute, from the config's `compute`."""
    return Compute(jnp.dtype(config.compute.dtype), config.compute.remat, config.compute.unroll)


def _choose(families: Mapping[str, Callable], role: str, family: str) -> Callable:
    if family not in families:
        raise StageError(f"{role}.family is {family!r}; known families: {', '.join(sorted(families))}")
    return families[family]


def supervisor(config: ConfigDict, workdir: Path) -> Learner:
    """The diffusion supervisor of stages 1 and 2."""
    make = _choose(supervisors.FAMILIES, "supervisor", config.supervisor.family)
    return make(config.supervisor, config.subject_tuning, compute_of(config), locate(workdir))


def student(config: ConfigDict, workdir: Path) -> Learner:
    """The autoregressive student of stage 3."""
    make = _choose(students.FAMILIES, "student", config.student.family)
    return make(config.student, config.proxy_tuning, compute_of(config), locate(workdir))


def subject_photos(config: ConfigDict, workdir: Path) -> list[photos.Photo]:
    """The subject's photos. Raises StageError if the config names no folder or class noun, PhotosError if no photo can be read."""
    if not config.subject.photos or not config.subject.class_noun:
        raise StageError(
            "the config names no subject: give --config.subject.photos=FOLDER and --config.subject.class_noun=NOUN (dog, backpack, ...)"
        )
    return photos.load_photos(Path(config.subject.photos.replace("{workdir}", str(workdir))))
