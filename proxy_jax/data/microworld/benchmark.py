"""Micro-DreamBench: 30 held-out subjects under DreamBench's names and classes (9 live, 21 objects), with five photos each."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import numpy as np

from proxy_jax.data.microworld.looks import Identity, draw_identity
from proxy_jax.data.microworld.scenes import ASKED, EVERYDAY, PLAIN, Scene, show
from proxy_jax.data.prompts import SUBJECTS, dreambench_prompts

PHOTOS = 5  # of each subject
ASKED_COLOURS = {asked.primary for asked in ASKED.values() if asked.primary}  # no subject has them already
_SEED = 2503


@cache
def subjects() -> Mapping[str, Identity]:
    """The held-out identities by DreamBench's folder name. Those of one class have different body colours."""
    found: dict[str, Identity] = {}
    for number, (name, subject) in enumerate(SUBJECTS.items()):
        rng = np.random.default_rng([_SEED, number])
        taken = {identity.primary for identity in found.values() if identity.class_noun == subject.class_noun} | ASKED_COLOURS
        while (identity := draw_identity(subject.class_noun, rng)).primary in taken:
            pass
        found[name] = identity
    return MappingProxyType(found)


def held_out() -> frozenset[tuple]:
    """The combinations (Identity.combination) that no picture of pre-training shows."""
    return frozenset(identity.combination() for identity in subjects().values())


def photos(name: str) -> list[Scene]:
    """The scenes of a subject's photos: it alone, in everyday settings that differ. Raises KeyError if there is no such subject."""
    identity = subjects()[name]
    number = list(SUBJECTS).index(name)
    rng = np.random.default_rng([_SEED, number, 1])
    settings = rng.permutation(EVERYDAY)[:PHOTOS]
    return [dataclasses.replace(show(identity, PLAIN, rng), setting=str(setting)) for setting in settings]


def contexts() -> list[tuple[int, str, Scene]]:
    """Every subject once as each of its 25 prompts asks for it: (its number, template, scene). What a perfect generator would draw."""
    rng = np.random.default_rng([_SEED, len(SUBJECTS)])
    return [
        (number, template, show(subjects()[name], template, rng))
        for number, (name, subject) in enumerate(SUBJECTS.items())
        for template in dreambench_prompts(subject.live)
    ]
