"""Stage 4: the DreamBench protocol. Supervisor and student draw its prompts; DINO, CLIP-I and CLIP-T of what they drew; the report."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from proxy_jax.data import cache, prompts, proxy_set
from proxy_jax.metrics import report, scores
from proxy_jax.metrics.encoders import MetricEncoders
from proxy_jax.models.layers import Compute
from proxy_jax.stages import contract, files, learners
from proxy_jax.stages.drawing import draw_images
from proxy_jax.stages.tuning import Learner, checkpoint_key, tuned_model

NAME = "evaluation"
OUTPUTS = ("report.json", "report.md", "report.html")
RANDOM = "random_weights"
STAGES_BEFORE = ("subject_tuning", "proxy_generation", "proxy_tuning")
TUNED_IN = {"supervisor": "subject_tuning", "student": "proxy_tuning"}


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: its fields, both tuned models, the proxies and the photos."""
    stages = {stage: contract.upstream(workdir, stage) for stage in _upstream_stages(config)}
    found = contract.fields(config, "seed", "supervisor", "student", "compute", NAME) | {"subject": learners.subject(config, workdir).key()}
    locate = learners.locate(workdir)
    found |= {name: cache.fingerprint(locate(config.evaluation[name])) for name in ("dino", "clip")}
    bases = {name: checkpoint_key(arm(name, config, workdir)[0]) for name in config.evaluation.arms if name not in TUNED_IN}
    return found | bases | stages


def _upstream_stages(config: ConfigDict) -> list[str]:
    stages = [TUNED_IN[arm] for arm in config.evaluation.arms if arm in TUNED_IN]
    return stages + (["proxy_generation"] if config.proxy_tuning.source == "proxies" and "student" in config.evaluation.arms else [])


def arm(name: str, config: ConfigDict, workdir: Path) -> tuple[Learner, Callable[[], nnx.Module], dict[str, Any]]:
    """Who draws for one row of the table: the learner, a function that loads its model, and its sampling options."""
    tuned, role = not name.startswith("untuned_"), name.removeprefix("untuned_")
    learner = (learners.supervisor if role == "supervisor" else learners.student)(config, workdir)
    options = config.evaluation[role].to_dict()
    if not tuned:
        return learner, lambda: learner.load_model(lambda name: learner.compute.dtype), options
    return learner, lambda: tuned_model(learner, config[TUNED_IN[role]], workdir / TUNED_IN[role]), options


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes evaluation/images/<arm>/*.png and report.json, report.md and report.html."""
    stage, subject, folder = config.evaluation, learners.subject(config, workdir), workdir / NAME
    templates = prompts.dreambench_prompts(subject.live)[: stage.num_prompts]
    filled = [subject.fill(template) for template in templates]
    plain = [prompts.without_token(template, subject.class_noun) for template in templates]
    wanted = [prompt for prompt in filled for _ in range(stage.images_per_prompt)]

    drawn: dict[str, list[Path]] = {}
    for name in stage.arms:
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

    photos = [np.asarray(photo.image) for photo in subject.photos]
    locate = learners.locate(workdir)
    # In float32 and with DreamBench's own preprocessing, as the published scores.
    encoders = MetricEncoders.load(locate(stage.dino), locate(stage.clip), compute=Compute(), dino_preprocessing="dreambench")
    prompt_of = np.repeat(np.arange(len(plain)), stage.images_per_prompt)
    real = scores.Embeddings(encoders.dino(photos), encoders.clip_image(photos))
    text = encoders.clip_text(plain)
    rows = {}
    for name, paths in drawn.items():
        pictures = [files.load_picture(path) for path in paths]
        generated = scores.Embeddings(encoders.dino(pictures), encoders.clip_image(pictures))
        rows[name] = scores.score(real, generated, text, plain, prompt_of)
    samples = {name: _captioned(paths, np.repeat(plain, stage.images_per_prompt), workdir) for name, paths in drawn.items()}
    content = _report(config, subject, workdir, samples, rows, scores.ceiling(real), _notes(config, encoders))
    report.write_json(content, folder / "report.json")
    report.write_markdown(content, folder / "report.md")
    report.write_html(content, workdir, folder / "report.html")
    return {name: row.to_dict() for name, row in rows.items()}


def _captioned(paths: Sequence[Path], captions: Sequence[str], workdir: Path) -> list[report.Picture]:
    return [{"path": str(path.relative_to(workdir)), "caption": str(caption)} for path, caption in zip(paths, captions, strict=True)]


LABELS = {
    "supervisor": "Supervisor, tuned on the photos",
    "student": "Student, tuned on the {source}",
    "untuned_supervisor": "Supervisor before tuning",
    "untuned_student": "Student before tuning",
}


def _report(
    config: ConfigDict,
    subject: learners.Subject,
    workdir: Path,
    samples: dict[str, list[report.Picture]],
    rows: dict[str, scores.Scores],
    ceiling: scores.Scores,
    notes: list[str],
) -> report.Report:
    """The report's content, of which only the timings differ between two runs of the same inputs."""
    photos, pictures = subject.photos, workdir / NAME / "photos"
    for index, photo in enumerate(photos):
        files.save_picture(pictures / f"{index:02d}.png", np.asarray(photo.image))
    photo_paths = [pictures / f"{index:02d}.png" for index in range(len(photos))]
    proxies = proxy_set.read(workdir / "proxy_generation" / "dataset").prompts() if "proxy_generation" in _upstream_stages(config) else []
    proxy_paths = [workdir / "proxy_generation" / "images" / f"{index:05d}.png" for index in range(len(proxies))]
    done = {stage: files.read_json(workdir / stage / "DONE.json") for stage in STAGES_BEFORE if stage in _upstream_stages(config)}
    source = {"proxies": "proxies", "photos": "photos"}[config.proxy_tuning.source]
    return report.Report(
        title=f"Proxy-Tuning: {subject.token} {subject.class_noun}" + (" (random weights: scores mean nothing)" * (RANDOM in config.stages)),
        subject={"class_noun": subject.class_noun, "token": subject.token},
        photos=_captioned(photo_paths, [photo.name for photo in photos], workdir),
        proxies=_captioned(proxy_paths, proxies, workdir),
        samples=samples,
        rows=[{"arm": name, "label": LABELS[name].format(source=source), "scores": row.to_dict()} for name, row in rows.items()],
        ceiling=ceiling.to_dict(),
        curves=[_curve(stage, workdir) for stage in ("subject_tuning", "proxy_tuning") if stage in done],
        timings=[{"stage": stage, "seconds": content["seconds"]} for stage, content in done.items()],
        config=contract.fields(config, *sorted(config.keys())),
        versions=contract.versions(),
        notes=notes,
    )


def _notes(config: ConfigDict, encoders: MetricEncoders) -> list[str]:
    """What a reader of the scores should know about how they were made."""
    stage = config.evaluation
    notes = [f"{name} looks at images so: {encoders.preprocessing[key].describe()}." for name, key in (("DINO", "dino"), ("CLIP", "clip"))]
    if stage.num_prompts < 25:
        notes.append(f"Only the first {stage.num_prompts} of DreamBench's 25 prompts were drawn: the scores are not comparable with published ones.")
    if RANDOM in config.stages:
        notes.append("All weights are random: this run checks the machinery, and its pictures and scores mean nothing.")
    return notes


def _curve(stage: str, workdir: Path) -> report.Curve:
    lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]
    return {"stage": stage, "steps": [line["step"] for line in lines], "losses": [line["loss"] for line in lines]}
