"""The account of weak-to-strong of one subject (metrics/account.py): the supervisor's errors in its proxies, and which of them survive.

Arms that were tuned on the proxies draw as many pictures for the very same prompts. A probe reads all of them, and the student's tokenizer
encodes them beside the renderings of the subject, drawn right, that come nearest. The micro-world alone can be accounted for: it knows
what its subjects are (truth.json beside the photos) and can draw them, with skia-python (the extra "microworld").

A student's pictures come out of its tokenizer, a supervisor's out of its autoencoder. Both codecs change a picture, and the tokenizer
likes its own. So whatever did not come out of the tokenizer goes through it once before anything looks at it, and the floor says what is
seen in renderings of the truth that went through the one codec or the other: errors that no generator made.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from PIL import Image

from proxy_jax.data import cache, proxy_set
from proxy_jax.data.microworld.looks import Identity
from proxy_jax.data.microworld.scenes import Scene, show
from proxy_jax.metrics import account
from proxy_jax.metrics.probes import Probes
from proxy_jax.metrics.scores import METRICS, PROBED
from proxy_jax.pretraining import autoencoders
from proxy_jax.stages import evaluation, files, learners, microworld, proxy_generation, training_set
from proxy_jax.stages.contract import StageError
from proxy_jax.stages.drawing import draw_images
from proxy_jax.stages.tuning import CROPS, Learner, encode_images

DIGITS = 5  # of the numbers that are kept
FLOOR_PICTURES = 50  # of each codec, at most
FLOOR, CEILING, ORACLE = 1, 2, 3  # whose renderings: each has poses of its own
UNGUIDED = {"guidance_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # what a model learned, not sharpened
Codec = Callable[[np.ndarray], np.ndarray]  # pictures [n, size, size, 3] uint8, encoded and decoded


def renderer() -> tuple[ModuleType, ModuleType]:
    """The modules matching and render of proxy_jax.data.microworld. Raises StageError if they cannot draw."""
    return microworld.module("matching"), microworld.module("render")


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

    def look(self, name: str, pictures: Sequence[np.ndarray], *, decoded: bool) -> Side:
        """At pictures [h, w, 3] uint8, called `name` in the log; decoded: they came out of the student's tokenizer."""
        logging.info("looking for the renderings nearest to %d pictures: %s", len(pictures), name)
        matching, _ = renderer()
        size, tokenizer = self.student.resolution, self.student.tokenizer
        squares = np.stack([CROPS[self.student.crop](Image.fromarray(picture), size) for picture in pictures])
        seen = squares if decoded else autoencoders.through_vq(tokenizer, squares)
        scenes = matching.nearest(seen, self.identity)
        rendered = autoencoders.through_vq(tokenizer, _rendered(scenes, size))
        drawn, truth = (encode_images(self.student, part, self.batch_size, self.cache)["tokens"] for part in (seen, rendered))
        tokens = account.Tokens(drawn, truth, matching.areas(scenes, size, math.isqrt(drawn.shape[1])))
        return Side(evaluation.read(self.probes, seen), evaluation.read(self.probes, rendered), tokens)


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
    """The account of each of `arms`, name -> (the config and the workdir of a run whose one arm of the evaluation was tuned).

    The first arm's proxies are those of whose errors is told; the first `pictures` count (fewer if there are fewer, or an arm learned from
    fewer). What the arms draw is kept as folder/<arm>/*.png, and folder/<arm>_guided/*.png. Raises StageError if skia, a probe or the truth
    is lacking. Returns, rounded, what comparison.accounts takes, and more:

    "pictures": their number; "arms": of each its "attributes" (AttributeAccounts) and "tokens" (a TokenAccount), drawn without guidance at
    temperature 1; "guided": the same, drawn as the evaluation does; "floor": the same of renderings of the truth, those through the
    supervisor's codec in the supervisor's place, those through the student's in the student's; "rows": `ceilings`.
    """
    renderer()
    config, workdir = next(iter(arms.values()))
    if not config.evaluation.probes:
        raise StageError("an account of weak-to-strong needs a probe: --config.evaluation.probes=FOLDER")
    judge, student = evaluation.Judge.load(config, workdir), learners.student(config, workdir)
    proxies = proxy_set.read(training_set.folder_of(config, workdir))
    prompts = training_set.prompts(proxies, judge.subject)
    count = min(pictures, len(proxies), *(arm.proxy_tuning.num_proxies or len(proxies) for arm, _ in arms.values()))
    observer = Observer(identity(config, workdir), judge.probes, student, config.proxy_tuning.encode_batch_size, folder / "cache")
    codebook = np.asarray(student.tokenizer.codebook.vectors())
    supervisor = observer.look("proxies", [proxies[index]["image"] for index in range(count)], decoded=False)

    def accounts(first: Side, sides: Mapping[str, Side]) -> dict[str, Any]:
        found = {}
        for name, side in sides.items():
            others = [other.tokens for other_name, other in sides.items() if other_name != name]
            attributes = account.attributes(subject, judge.known, first.read, side.read, rendered=first.rendered)
            tokens = account.tokens(subject, first.tokens, side.tokens, codebook, others=others)
            found[name] = {"attributes": [attribute.to_dict() for attribute in attributes], "tokens": tokens.to_dict()}
        return found

    def drawn(suffix: str, changes: Mapping[str, float]) -> dict[str, Any]:
        sides = {}
        for name, (arm, where) in arms.items():
            found = draw(arm, where, prompts[:count], folder / f"{name}{suffix}", changes)
            sides[name] = observer.look(f"{name}{suffix}", found, decoded=learners.role(arm.evaluation.arms[0]) == "student")
        return accounts(supervisor, sides)

    through = codecs(learners.supervisor(config, workdir), student)
    scenes = _scenes(observer.identity, proxy_generation.templates(config)[: min(count, FLOOR_PICTURES)], config.seed, FLOOR)
    floor = {
        role: observer.look(f"renderings through the {role}'s codec", codec(_rendered(scenes, size)), decoded=role == "student")
        for role, (codec, size) in through.items()
    }
    found = {"pictures": count, "arms": drawn("", UNGUIDED), "guided": drawn("_guided", {})}
    found |= {
        "floor": accounts(floor["supervisor"], {"floor": floor["student"]})["floor"],
        "rows": ceilings(config, judge, observer.identity, through),
    }
    return _rounded(found)


def codecs(supervisor: Learner, student: Learner) -> dict[str, tuple[Codec, int]]:
    """What the pictures of each side go through, "supervisor" and "student", with the size of the pictures."""
    return {
        "supervisor": (lambda pictures: autoencoders.through_kl(supervisor.vae, pictures), supervisor.resolution),
        "student": (lambda pictures: autoencoders.through_vq(student.tokenizer, pictures), student.resolution),
    }


def _scenes(subject: Identity, templates: Sequence[str], *seeds: int) -> list[Scene]:
    rng = np.random.default_rng(seeds)
    return [show(subject, template, rng) for template in templates]


def _rendered(scenes: Sequence[Scene], size: int) -> np.ndarray:
    _, render = renderer()
    return np.stack([render.render(scene, size) for scene in scenes])


def ceilings(config: ConfigDict, judge: evaluation.Judge, subject: Identity, through: Mapping[str, tuple[Codec, int]]) -> list[dict[str, Any]]:
    """All scores of what a perfect generator would draw for the evaluation's prompts: {"arm", <score>, ...} a row.

    The arms: "renderings" (of the student's size), "renderings_supervisor" and "renderings_student" through the codec of either.
    """
    templates = [template for template in judge.templates for _ in range(config.evaluation.images_per_prompt)]
    scenes = _scenes(subject, templates, config.seed, CEILING)
    plain = (lambda pictures: pictures), through["student"][1]
    rows = []
    for arm, (codec, size) in {"renderings": plain, **{f"renderings_{role}": own for role, own in through.items()}}.items():
        found = judge.score(list(codec(_rendered(scenes, size)))).to_dict()
        rows.append({"arm": arm, "unseen": evaluation.unseen(found, config)} | {name: found[name] for name in (*METRICS, *PROBED)})
    return rows


def oracle_fields(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides the proxies of a perfect supervisor, as JSON. Raises StageError if the truth of the subject is lacking."""
    words, shown = learners.subject(config, workdir).words(), dataclasses.asdict(identity(config, workdir))
    common = {"seed": config.seed, "size": config.supervisor.resolution}
    return {"identity": shown, "subject": words, "templates": proxy_generation.templates(config)} | common


def write_oracle(config: ConfigDict, workdir: Path) -> None:
    """Writes the proxy set `config.proxies` of a perfect supervisor: as many pictures as stage 2 draws, for its prompts, of the size that it draws.

    They are renderings of the subject. A student that learns from them makes the errors of a student of its size; what one that learns
    from true proxies makes beside them is inherited (account.excess). A set that was made of the same is kept.
    Raises StageError if skia or the truth is lacking, KeyError on a prompt that the micro-world does not know.
    """
    fields, folder, words = oracle_fields(config, workdir), Path(config.proxies), learners.subject(config, workdir)
    digest = cache.digest(fields)
    if (folder / "dataset_info.json").is_file() and proxy_set.read(folder).metadata["made_of"] == digest:
        return
    common = {"seed": config.seed, "supervisor": "renderings of the truth", "config_hash": digest}
    pictures = _rendered(_scenes(Identity(**fields["identity"]), fields["templates"], config.seed, ORACLE), fields["size"])
    records = (
        {"image": picture, "prompt": words.fill(template), "index": index} | common
        for index, (picture, template) in enumerate(zip(pictures, fields["templates"], strict=True))
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    proxy_set.write(folder, records, metadata={"subject": words.words(), "made_of": digest})


def draw(config: ConfigDict, workdir: Path, prompts: Sequence[str], folder: Path, changes: Mapping[str, float]) -> list[np.ndarray]:
    """A picture [h, w, 3] uint8 for each prompt by the one arm that a run evaluates, kept in a folder.

    changes: of its sampling options; those that its learner does not have are left out.
    """
    (name,) = config.evaluation.arms
    learner, load_model, options = evaluation.arm(name, config, workdir)
    paths = draw_images(
        learner,
        load_model,
        prompts,
        folder,
        seed=config.seed + 3,  # other noise than the evaluation's and the proxies'
        batch_size=config.evaluation.batch_size,
        options=options | {option: value for option, value in changes.items() if option in options},
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
