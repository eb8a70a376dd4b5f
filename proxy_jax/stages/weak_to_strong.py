"""The account of weak-to-strong of one subject (metrics/account.py): the supervisor's errors in its proxies, and which of them survive.

Arms that were tuned on the proxies draw as many pictures for the very same prompts. A probe reads all of them, and the student's tokenizer
encodes them beside the renderings of the subject, drawn right, that come nearest. The micro-world alone can be accounted for: it knows
what its subjects are (truth.json beside the photos) and can draw them, with skia-python (the extra "microworld").
"""

import dataclasses
import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from proxy_jax.data import proxy_set
from proxy_jax.data.microworld.looks import Identity
from proxy_jax.metrics import account
from proxy_jax.metrics.probes import Probes
from proxy_jax.stages import evaluation, files, learners, training_set
from proxy_jax.stages.contract import StageError
from proxy_jax.stages.drawing import draw_images
from proxy_jax.stages.tuning import CROPS, Learner, encode_images

DIGITS = 5  # of the numbers that are kept


def renderer() -> tuple[ModuleType, ModuleType]:
    """The modules matching and render of proxy_jax.data.microworld. Raises StageError if skia, which draws, is not installed."""
    try:
        return tuple(importlib.import_module(f"proxy_jax.data.microworld.{name}") for name in ("matching", "render"))
    except ImportError as error:
        raise StageError(f'the account of weak-to-strong draws with skia ({error}); pip install "skia-python>=138"') from error


@dataclasses.dataclass(frozen=True)
class Side:
    """What is seen in some pictures: the probe's reading of them, that of the renderings nearest to them, and the tokens of both."""

    read: account.Read
    rendered: account.Read
    tokens: account.Tokens


@dataclasses.dataclass(frozen=True)
class Observer:
    """All that looks at pictures of one subject."""

    identity: Identity
    probes: Probes
    student: Learner  # one with a VQ tokenizer
    batch_size: int  # of encoding
    cache: Path

    def look(self, name: str, pictures: Sequence[np.ndarray]) -> Side:
        """At pictures [h, w, 3] uint8, called `name` in the log."""
        logging.info("looking for the renderings nearest to %d pictures: %s", len(pictures), name)
        matching, render = renderer()
        size = self.student.resolution
        squares = np.stack([CROPS[self.student.crop](Image.fromarray(picture), size) for picture in pictures])
        scenes = matching.nearest(squares, self.identity)
        rendered = np.stack([render.render(scene, size) for scene in scenes])
        drawn, truth = (encode_images(self.student, part, self.batch_size, self.cache)["tokens"] for part in (squares, rendered))
        tokens = account.Tokens(drawn, truth, matching.areas(scenes, size, math.isqrt(drawn.shape[1])))
        return Side(evaluation.read(self.probes, pictures), evaluation.read(self.probes, rendered), tokens)


def identity(config: ConfigDict, workdir: Path) -> Identity:
    """The subject of truth.json. Raises StageError if there is none, or if it is not whole."""
    if evaluation.truth(config, workdir) is None:
        raise StageError(f"no {evaluation.TRUTH} beside the photos in {config.subject.photos} says what is true of the subject")
    content = files.read_json(evaluation.photo_folder(config, workdir) / evaluation.TRUTH)
    names = [field.name for field in dataclasses.fields(Identity)]
    lacking = [name for name in names if name not in content]
    if lacking:
        raise StageError(f"{evaluation.TRUTH} in {config.subject.photos} lacks {', '.join(lacking)}")
    return Identity(**{name: content[name] for name in names})


def tell(subject: str, arms: Mapping[str, tuple[ConfigDict, Path]], pictures: int, folder: Path) -> dict[str, Any]:
    """The account of each of `arms`, name -> (the config and the workdir of a run whose one arm of the evaluation is tuned on proxies).

    All have the same proxies, of which the first `pictures` count (fewer if there are fewer, or an arm learned from fewer). What the arms
    draw is kept as folder/<arm>/*.png. Returns, rounded, what comparison.accounts takes: "pictures", "floor", and of each of "arms" its
    "attributes" and "tokens". Raises StageError if skia, a probe or the truth is lacking.
    """
    renderer()
    config, workdir = next(iter(arms.values()))
    if not config.evaluation.probes:
        raise StageError("an account of weak-to-strong needs a probe: --config.evaluation.probes=FOLDER")
    proxies = proxy_set.read(training_set.folder_of(config, workdir))
    prompts = training_set.prompts(proxies, learners.subject(config, workdir))
    count = min(pictures, len(proxies), *(arm.proxy_tuning.num_proxies or len(proxies) for arm, _ in arms.values()))
    probes, student = Probes.load(learners.locate(workdir)(config.evaluation.probes)), learners.student(config, workdir)
    observer = Observer(identity(config, workdir), probes, student, config.proxy_tuning.encode_batch_size, folder / "cache")
    truth, codebook = evaluation.truth(config, workdir), np.asarray(student.tokenizer.codebook.vectors())
    supervisor = observer.look("proxies", [proxies[index]["image"] for index in range(count)])
    photos = observer.look("photos", [np.asarray(photo.image) for photo in learners.subject(config, workdir).photos]).tokens
    off = account.deviation(photos.pictures, photos.truth, codebook)
    found = {}
    for name, (arm, where) in arms.items():
        side = observer.look(name, draw(arm, where, prompts[:count], folder / name))
        attributes = account.attributes(subject, truth, supervisor.read, side.read, rendered=supervisor.rendered)
        tokens = account.tokens(subject, supervisor.tokens, side.tokens, codebook)
        found[name] = {"attributes": [attribute.to_dict() for attribute in attributes], "tokens": tokens.to_dict()}
    floor = {"inside": float(off[photos.area].mean()), "outside": float(off[~photos.area].mean())}
    return _rounded({"pictures": count, "floor": floor, "arms": found})


def draw(config: ConfigDict, workdir: Path, prompts: Sequence[str], folder: Path) -> list[np.ndarray]:
    """A picture [h, w, 3] uint8 for each prompt by the one arm that a run evaluates, kept in a folder."""
    (name,) = config.evaluation.arms
    learner, load_model, options = evaluation.arm(name, config, workdir)
    paths = draw_images(
        learner,
        load_model,
        prompts,
        folder,
        seed=config.seed + 3,  # other noise than the evaluation's and the proxies'
        batch_size=config.evaluation.batch_size,
        options=options,
        cache=workdir / "cache",
        label=f"{folder.name}, for the proxies' prompts",
    )
    return [files.load_picture(path) for path in paths]


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, DIGITS) if isinstance(value, float) else value
