"""Stage 3: the student learns the proxy set by next-token loss (the paper's section 3.3), or, as its baseline, the photos themselves."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from proxy_jax.data import prompts, proxy_set
from proxy_jax.stages import contract, learners
from proxy_jax.stages.tuning import encoders_key, preview_grid, squares, tune

NAME = "proxy_tuning"
OUTPUTS = ("weights",)


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: its fields, the student's checkpoints, and the proxies or the photos."""
    subject = learners.subject(config, workdir)
    found = contract.fields(config, "seed", "student", "compute", NAME)
    found |= {"checkpoint": encoders_key(learners.student(config, workdir))}
    if _source(config) == "proxies":
        return found | {"subject": subject.words(), "proxy_generation": contract.upstream(workdir, "proxy_generation")}
    return found | {"subject": subject.key()}


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes proxy_tuning/weights/ (a LoRA, or gpt.safetensors in LlamaGen's naming), the loss curve and sample grids."""
    stage, subject, folder, cache = config.proxy_tuning, learners.subject(config, workdir), workdir / NAME, workdir / "cache"
    learner = learners.student(config, workdir)
    if _source(config) == "proxies":
        proxies = proxy_set.read(workdir / "proxy_generation" / "dataset")
        captions = proxies.prompts()
        originals = [Image.fromarray(record["image"]) for record in proxies]
    else:
        originals = [photo.image for photo in subject.photos]
        captions = [prompts.fill(stage.prompt, subject.token, subject.class_noun)] * len(originals)
    pictures = squares(learner, originals, stage, config.seed)
    previews = [prompts.fill(template, subject.token, subject.class_noun) for template in prompts.dreambench_prompts(subject.live)[:4]]
    options = config.evaluation.student.to_dict()
    return tune(
        learner,
        pictures,
        np.repeat(captions, len(pictures) // len(captions)).tolist(),
        stage=stage,
        batch_size=stage.encode_batch_size,
        seed=config.seed,
        folder=folder,
        cache=cache,
        preview=preview_grid(learner, previews, folder / "previews", seed=config.seed, options=options, cache=cache)
        if stage.training.preview_every
        else None,
    )


def _source(config: ConfigDict) -> str:
    source = config.proxy_tuning.source
    if source not in ("proxies", "photos"):
        raise contract.StageError(f"proxy_tuning.source is 'proxies' or 'photos', not {source!r}")
    return source
