"""Stage 4: the DreamBench protocol. Supervisor and student draw its prompts; DINO, CLIP-I and CLIP-T of what they drew; the report.

With `evaluation.probes` a probe also reads every picture of the micro-world: whether the subject is itself, and whether the prompt was
followed. What is true of the subject stands in truth.json beside its photos: {"class_noun": "dog", "primary": "teal", ...}.
"""

import copy
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from proxy_jax import processes
from proxy_jax.data import cache, images, prompts, proxy_set
from proxy_jax.data.microworld import scenes
from proxy_jax.data.microworld.attributes import IDENTITY
from proxy_jax.metrics import attributes, report, scores
from proxy_jax.metrics.encoders import MetricEncoders
from proxy_jax.metrics.probes import Probes
from proxy_jax.models.layers import Compute
from proxy_jax.stages import contract, files, learners, training_set
from proxy_jax.stages.drawing import draw_images
from proxy_jax.stages.tuning import Learner, base_model, checkpoint_key, tuned_model

NAME = "evaluation"
OUTPUTS = ("report.json", "report.md", "report.html")
RANDOM = "random_weights"
STAGES_BEFORE = ("subject_tuning", "proxy_generation", "proxy_tuning")
TUNED_IN = {"supervisor": "subject_tuning", "student": "proxy_tuning"}
DIRECT = "direct_student"  # the student that another run, evaluation.direct, tuned on the photos
TRUTH = "truth.json"


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: its fields, both tuned models, the proxies and the photos."""
    stages = {stage: contract.upstream(workdir, stage) for stage in _upstream_stages(config)}
    found = contract.fields(config, "seed", "supervisor", "student", "compute", NAME) | {"subject": learners.subject(config, workdir).key()}
    locate = learners.locate(workdir)
    found |= {name: cache.fingerprint(locate(config.evaluation[name])) for name in ("dino", "clip")}
    bases = {name: checkpoint_key(arm(name, config, workdir)[0]) for name in config.evaluation.arms if name not in TUNED_IN}
    if config.evaluation.probes:
        found |= {"probes": cache.fingerprint(locate(config.evaluation.probes)), "truth": truth(config, workdir)}
    if config.evaluation.direct:
        found |= {DIRECT: _direct_key(config, workdir)}
    return found | bases | stages


def arms(config: ConfigDict) -> list[str]:
    """Who draws, in the order of the table."""
    return [*config.evaluation.arms, *([DIRECT] if config.evaluation.direct else [])]


def _upstream_stages(config: ConfigDict) -> list[str]:
    stages = [TUNED_IN[arm] for arm in config.evaluation.arms if arm in TUNED_IN]
    return stages + (["proxy_generation"] if _from_proxies(config) and not config.proxies else [])


def _from_proxies(config: ConfigDict) -> bool:
    return config.proxy_tuning.source == "proxies" and "student" in config.evaluation.arms


def arm(name: str, config: ConfigDict, workdir: Path) -> tuple[Learner, Callable[[], nnx.Module], dict[str, Any]]:
    """Who draws for one row of the table: the learner, a function that loads its model, and its sampling options."""
    if name == DIRECT:
        other, folder = _direct(config, workdir), learners.path(config.evaluation.direct, workdir) / "proxy_tuning"
        learner = learners.student(other, workdir)
        return learner, lambda: tuned_model(learner, other.proxy_tuning, folder), config.evaluation.student.to_dict()
    tuned, role = not name.startswith("untuned_"), name.removeprefix("untuned_")
    learner = (learners.supervisor if role == "supervisor" else learners.student)(config, workdir)
    options = config.evaluation[role].to_dict()
    if not tuned:
        return learner, lambda: base_model(learner, config[TUNED_IN[role]]), options
    return learner, lambda: tuned_model(learner, config[TUNED_IN[role]], workdir / TUNED_IN[role]), options


def _direct(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config with the finished run's fields of stage 3: a student that learned its token's text features is another kind of learner."""
    config = copy.deepcopy(config)
    done = files.read_json(learners.path(config.evaluation.direct, workdir) / "proxy_tuning" / "DONE.json")
    config.proxy_tuning = ConfigDict(done["inputs"]["proxy_tuning"])
    return config


def _direct_key(config: ConfigDict, workdir: Path) -> str:
    """What names the directly tuned student in this stage's inputs.

    Raises StageError if its run is not done, was not tuned on photos, or is about another subject or student.
    """
    folder = learners.path(config.evaluation.direct, workdir)
    key = contract.upstream(folder, "proxy_tuning")
    found = files.read_json(folder / "proxy_tuning" / "DONE.json")["inputs"]
    if found["proxy_tuning"]["source"] != "photos":
        raise contract.StageError(f"evaluation.direct is {folder}, whose student learned from proxies; give a run with proxy_tuning.source=photos")
    student = learners.student(_direct(config, workdir), workdir)
    ours = {"subject": learners.subject(config, workdir).key(), "checkpoint": checkpoint_key(student)}
    differing = contract.changes(json.loads(json.dumps(ours)), {name: found[name] for name in ours})
    if differing:
        raise contract.StageError(f"evaluation.direct is {folder}, a run of another subject or student:\n  " + "\n  ".join(differing))
    return key


def photo_folder(config: ConfigDict, workdir: Path) -> Path | None:
    """The folder of the subject's photos; None for a subject of DreamBench."""
    return learners.path(config.subject.photos, workdir) if config.subject.photos else None


def truth(config: ConfigDict, workdir: Path) -> dict[str, str] | None:
    """What is true of the subject, attribute -> value, from truth.json beside its photos; None without one.

    Raises StageError if the file lacks an attribute or is about another class.
    """
    folder = photo_folder(config, workdir)
    content = files.read_json(folder / TRUTH) if folder else None
    if content is None:
        return None
    lacking = [name for name in ("class_noun", *IDENTITY) if name not in content]
    if lacking:
        raise contract.StageError(f"{folder / TRUTH} lacks {', '.join(lacking)}")
    if content["class_noun"] != config.subject.class_noun:
        raise contract.StageError(f"{folder / TRUTH} is about a {content['class_noun']}, subject.class_noun is {config.subject.class_noun!r}")
    return {name: str(content[name]) for name in IDENTITY}


def read(probes: Probes, pictures: Sequence[np.ndarray]) -> dict[str, list[str]]:
    """What the probe reads in uint8 [h, w, 3] pictures of any sizes, resized and cropped to its own."""
    size = probes.model.config.sample_size
    return probes.read(np.stack([images.resize_crop(Image.fromarray(picture), size, Image.Resampling.BICUBIC) for picture in pictures]))


def templates(config: ConfigDict, subject: learners.Subject) -> tuple[str, ...]:
    """Those of DreamBench's prompts that are drawn."""
    return prompts.dreambench_prompts(subject.live)[: config.evaluation.num_prompts]


@dataclasses.dataclass(frozen=True)
class Judge:
    """All that scores pictures of one subject: its prompts, its photos and what is known of it, the encoders and, if there is one, the probe."""

    subject: learners.Subject
    templates: tuple[str, ...]
    encoders: MetricEncoders
    probes: Probes | None
    known: dict[str, str] | None

    @classmethod
    def load(cls, config: ConfigDict, workdir: Path) -> "Judge":
        """The run's own. Raises StageError on a truth.json that is not the subject's, and what the loaders raise."""
        stage, subject, locate = config.evaluation, learners.subject(config, workdir), learners.locate(workdir)
        # In float32 and with DreamBench's own preprocessing, as the published scores.
        encoders = MetricEncoders.load(locate(stage.dino), locate(stage.clip), compute=Compute(), dino_preprocessing="dreambench")
        probes = Probes.load(locate(stage.probes)) if stage.probes else None
        return cls(subject, templates(config, subject), encoders, probes, truth(config, workdir) if probes else None)

    @functools.cached_property
    def plain(self) -> list[str]:
        """The prompts without the subject's token."""
        return [prompts.without_token(template, self.subject.class_noun) for template in self.templates]

    @functools.cached_property
    def text(self) -> np.ndarray:
        """CLIP's embeddings of `plain`, [prompts, d]."""
        return self.encoders.clip_text(self.plain)

    @functools.cached_property
    def photos(self) -> list[np.ndarray]:
        """The subject's photos, [h, w, 3] uint8 each."""
        return [np.asarray(photo.image) for photo in self.subject.photos]

    @functools.cached_property
    def real(self) -> scores.Embeddings:
        """The photos' embeddings."""
        return self.embed(self.photos)

    def embed(self, pictures: Sequence[np.ndarray]) -> scores.Embeddings:
        """Both encoders' embeddings of pictures [h, w, 3] uint8."""
        return scores.Embeddings(self.encoders.dino(pictures), self.encoders.clip_image(pictures))

    def score(self, pictures: Sequence[np.ndarray]) -> scores.Scores:
        """Of pictures [h, w, 3] uint8, as many of each prompt, one prompt's after another's."""
        prompt_of, probed = np.repeat(np.arange(len(self.plain)), len(pictures) // len(self.plain)), {}
        if self.probes:
            asked = [scenes.ASKED[self.templates[number]].named() for number in prompt_of]
            probed = attributes.of_samples(read(self.probes, pictures), self.subject.class_noun, self.known, asked)
        return scores.score(self.real, self.embed(pictures), self.text, self.plain, prompt_of, probed)

    def score_photos(self) -> scores.Scores:
        """The photos against each other."""
        read_in = attributes.of_photos(read(self.probes, self.photos), self.subject.class_noun, self.known) if self.probes else {}
        return scores.ceiling(self.real, read_in)


def unseen(scored: Mapping[str, Any], config: ConfigDict) -> float | None:
    """identity_context of one arm, as Scores.to_dict() has it, over those prompts alone for which stage 2 draws no proxies; None without any."""
    drawn = {prompts.without_token(template, config.subject.class_noun) for template in config.proxy_generation.prompts}
    values = [row["identity_context"] for row in scored["per_prompt"] if row["prompt"] not in drawn]
    return float(np.mean(values)) if values and None not in values else None


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes evaluation/images/<arm>/*.png and report.json, report.md and report.html."""
    begin = time.time()
    stage, subject, folder = config.evaluation, learners.subject(config, workdir), workdir / NAME
    wanted = [subject.fill(template) for template in templates(config, subject) for _ in range(stage.images_per_prompt)]

    drawn: dict[str, list[Path]] = {}
    for name in arms(config):
        learner, load_model, options = arm(name, config, workdir)
        drawn[name] = draw_images(
            learner,
            load_model,
            wanted,
            folder / "images" / name,
            seed=config.seed + 2,  # other noise than the proxies'
            batch_size=stage.batch_size,
            options=options,
            cache=workdir / "cache",
            label=name,
        )

    judge = Judge.load(config, workdir)
    rows = {name: judge.score([files.load_picture(path) for path in paths]) for name, paths in drawn.items()}
    samples = {name: _captioned(paths, np.repeat(judge.plain, stage.images_per_prompt), workdir) for name, paths in drawn.items()}
    notes = _notes(config, judge.encoders, judge.known)
    content = _report(config, subject, workdir, samples, rows, judge.score_photos(), notes, time.time() - begin)
    if processes.is_first():
        report.write_json(content, folder / "report.json")
        report.write_markdown(content, folder / "report.md")
        report.write_html(content, workdir, folder / "report.html")
    return {name: row.to_dict() for name, row in rows.items()}


def _captioned(paths: Sequence[Path], captions: Sequence[str], workdir: Path) -> list[report.Picture]:
    return [{"path": str(path.relative_to(workdir)), "caption": str(caption)} for path, caption in zip(paths, captions, strict=True)]


LABELS = {
    "supervisor": "Supervisor, tuned on the {source}",
    "student": "Student, tuned on the {source}",
    "untuned_supervisor": "Supervisor before tuning",
    "untuned_student": "Student before tuning",
    DIRECT: "Student, tuned on the photos directly",
}


def _report(
    config: ConfigDict,
    subject: learners.Subject,
    workdir: Path,
    samples: dict[str, list[report.Picture]],
    rows: dict[str, scores.Scores],
    ceiling: scores.Scores,
    notes: list[str],
    seconds: float,
) -> report.Report:
    """The report's content, of which only the timings differ between two runs of the same inputs."""
    photos, pictures = subject.photos, workdir / NAME / "photos"
    for index, photo in enumerate(photos):
        files.save_picture(pictures / f"{index:02d}.png", np.asarray(photo.image))
    photo_paths = [pictures / f"{index:02d}.png" for index in range(len(photos))]
    done = {stage: files.read_json(workdir / stage / "DONE.json") for stage in STAGES_BEFORE if stage in _upstream_stages(config)}
    return report.Report(
        title=f"Proxy-Tuning: {subject.token} {subject.class_noun}" + (" (random weights: scores mean nothing)" * (RANDOM in config.stages)),
        subject={"class_noun": subject.class_noun, "token": subject.token},
        photos=_captioned(photo_paths, [photo.name for photo in photos], workdir),
        left_out=_left_out(config, workdir, subject),
        proxies=_proxies(config, subject, workdir) if _from_proxies(config) else [],
        samples=samples,
        rows=[{"arm": name, "label": _label(name, config), "scores": row.to_dict()} for name, row in rows.items()],
        ceiling=ceiling.to_dict(),
        curves=[curve(stage, workdir) for stage in ("subject_tuning", "proxy_tuning") if stage in done],
        timings=[*({"stage": stage, "seconds": content["seconds"]} for stage, content in done.items()), {"stage": NAME, "seconds": seconds}],
        config=contract.fields(config, *sorted(config.keys())),
        versions=contract.versions(),
        notes=notes,
    )


def _label(name: str, config: ConfigDict) -> str:
    return LABELS[name].format(source=config[TUNED_IN[name]].source if name in TUNED_IN else "")


def _proxies(config: ConfigDict, subject: learners.Subject, workdir: Path) -> list[report.Picture]:
    """What the student learned from; of another run's proxies only those that the page shows, copied."""
    proxies = proxy_set.read(training_set.folder_of(config, workdir))
    captions = training_set.proxies_of(proxies, subject, config.proxy_tuning.num_proxies, config.proxy_tuning.proxy_prompts)
    numbers = list(captions)
    folder = workdir / "proxy_generation" / "images"
    if config.proxies:
        numbers, folder = report.spread(numbers, report.PROXIES_SHOWN), workdir / NAME / "proxies"
        for index in numbers:
            files.save_picture(folder / f"{index:05d}.png", proxies[index]["image"])
    return _captioned([folder / f"{index:05d}.png" for index in numbers], [captions[index] for index in numbers], workdir)


def _left_out(config: ConfigDict, workdir: Path, subject: learners.Subject) -> list[str]:
    """The visible files among the photos that are not the subject's photos."""
    folder = photo_folder(config, workdir)
    used = {TRUTH, *(photo.name for photo in subject.photos)}
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder else []
    return sorted(name for name in names if name not in used and not name.startswith("."))


def _notes(config: ConfigDict, encoders: MetricEncoders, known: dict[str, str] | None) -> list[str]:
    """What a reader of the scores should know about how they were made."""
    stage = config.evaluation
    notes = [f"{name} looks at images so: {encoders.preprocessing[key].describe()}." for name, key in (("DINO", "dino"), ("CLIP", "clip"))]
    if _from_proxies(config) and config.proxies:
        notes.append("The proxies are another run's; a few of them are shown.")
    if stage.probes:
        notes.append("The probe makes mistakes of its own: what it reads in the real photos shows how many.")
    if stage.probes and known is None:
        notes.append(f"Identity is not scored: no {TRUTH} beside the photos says what is true of the subject.")
    if stage.num_prompts < 25:
        notes.append(f"Only the first {stage.num_prompts} of DreamBench's 25 prompts were drawn: the scores are not comparable with published ones.")
    if RANDOM in config.stages:
        notes.append("All weights are random: this run checks the machinery, and its pictures and scores mean nothing.")
    return notes


def curve(stage: str, workdir: Path) -> report.Curve:
    """The loss of every step of a training stage that has run."""
    lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
    return {"stage": stage, "steps": [line["step"] for line in lines], "losses": [line["loss"] for line in lines]}
