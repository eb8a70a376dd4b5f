"""Scores of what a probe read from pictures against the truth: does each show this very subject, and does it show what its prompt asks for?

All are functions of read values (attribute -> one value a picture) and give a number from 0 to 1 a picture; higher is better.
"""

from collections.abc import Mapping, Sequence

import numpy as np

CLASS, COLOUR = "class_noun", "primary"  # a prompt that asks for a colour asks for the body's
Read = Mapping[str, Sequence[str]]
Asked = Sequence[Mapping[str, str]]  # a picture's attributes as its prompt asks for them


def identity(read: Read, class_noun: str, truth: Mapping[str, str], asked: Asked) -> np.ndarray:
    """The share of the subject's attributes `truth` that are read right, [n]; 0 in a picture of another class, whose parts are others.

    Chance is not 0: a subject of the class drawn at random (looks.draw_identity) has 0.2 of them right on average. Where the prompt asks for
    another body colour, the body's does not count, nor any attribute of the colour asked for: in a red subject a red stripe changes too
    (scenes.recoloured). Raises ValueError if nothing is left to count.
    """
    shares = []
    for i, wanted in enumerate(asked):
        colour = wanted[COLOUR] if COLOUR in wanted else None
        counted = [name for name, value in truth.items() if colour is None or (name != COLOUR and value != colour)]
        if not counted:
            raise ValueError(f"no attribute of {dict(truth)} counts in picture {i}, whose prompt asks for {dict(wanted)}")
        shares.append(np.mean([read[name][i] == truth[name] for name in counted]))
    return np.asarray(shares) * right_class(read, class_noun)


def context(read: Read, asked: Asked) -> np.ndarray:
    """The share of what its prompt asks for that is read in each picture, [n]. Raises ValueError on a prompt that asks for nothing."""
    empty = [i for i, wanted in enumerate(asked) if not wanted]
    if empty:
        raise ValueError(f"the prompts of the pictures {empty[:5]} ask for nothing")
    return np.asarray([np.mean([read[name][i] == value for name, value in wanted.items()]) for i, wanted in enumerate(asked)])


def right_class(read: Read, class_noun: str) -> np.ndarray:
    """1 where the class is read right, else 0, [n]."""
    return np.asarray([value == class_noun for value in read[CLASS]], np.float64)


def of_samples(read: Read, class_noun: str, truth: Mapping[str, str] | None, asked: Asked) -> dict[str, np.ndarray]:
    """All scores of generated pictures by name, [n] each; without the subject's truth neither identity nor its product with context."""
    found = {"context": context(read, asked), "right_class": right_class(read, class_noun)}
    if truth is None:
        return found
    shares = identity(read, class_noun, truth, asked)
    return found | {"identity": shares, "identity_context": shares * found["context"]}


def of_photos(read: Read, class_noun: str, truth: Mapping[str, str] | None) -> dict[str, np.ndarray]:
    """The same of the subject's photos, which no prompt asked for, [n] each."""
    found = {"right_class": right_class(read, class_noun)}
    return found if truth is None else found | {"identity": identity(read, class_noun, truth, [{}] * len(read[CLASS]))}
