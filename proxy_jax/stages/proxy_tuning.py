"""Stage 3: the student learns the proxy set by next-token loss (the paper's section 3.3), or, as its baseline, the photos themselves."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from proxy_jax.data import proxy_set
from proxy_jax.stages import contract, learners
from proxy_jax.stages.tuning import checkpoint_key, previews, squares, tune

NAME = "proxy_tuning"
OUTPUTS = ("weights", "metrics.jsonl")


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: its fields, the student's checkpoints, and the proxies or the photos."""
    subject = learners.subject(config, workdir)
    found = contract.fields(config, "seed", "student", "compute", NAME)
    found |= {"checkpoint": checkpoint_key(learners.student(config, workdir))}
    if config.proxy_tuning.source == "proxies":
        return found | {"subject": subject.words(), "proxy_generation": contract.upstream(workdir, "proxy_generation")}
    return found | {"subject": subject.key()}


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes proxy_tuning/weights/ (a LoRA, or gpt.safetensors in LlamaGen's naming), the loss curve and sample grids."""
    stage, subject, folder, cache = config.proxy_tuning, learners.subject(config, workdir), workdir / NAME, workdir / "cache"
    learner = learners.student(config, workdir)
    if config.proxy_tuning.source == "proxies":
        proxies = proxy_set.read(workdir / "proxy_generation" / "dataset")
        captions = proxies.prompts()
        originals = [Image.fromarray(record["image"]) for record in proxies]
    else:
        originals = [photo.image for photo in subject.photos]
        captions = [subject.fill(stage.prompt)] * len(originals)
    pictures = squares(learner, originals, stage, config.seed)
    return tune(
        learner,
        pictures,
        np.repeat(captions, len(pictures) // len(captions)).tolist(),
        stage=stage,
        batch_size=stage.encode_batch_size,
        seed=config.seed,
        folder=folder,
        cache=cache,
        preview=previews(learner, subject.previews(), stage, folder, seed=config.seed, options=config.evaluation.student.to_dict(), cache=cache),
    )
