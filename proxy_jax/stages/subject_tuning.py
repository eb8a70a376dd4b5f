"""Stage 1: DreamBooth. The supervisor learns the subject from its photos (Ruiz et al., arXiv 2208.12242; the paper's section 3.1)."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from proxy_jax.stages import contract, files, learners
from proxy_jax.stages.drawing import draw_images
from proxy_jax.stages.tuning import checkpoint_key, previews, squares, tune

NAME = "subject_tuning"
OUTPUTS = ("weights", "metrics.jsonl")


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: its fields, the photos' bytes and the checkpoint's."""
    subject, learner = learners.subject(config, workdir), learners.supervisor(config, workdir)
    return contract.fields(config, "seed", "supervisor", "compute", NAME) | {"subject": subject.key(), "checkpoint": checkpoint_key(learner)}


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes subject_tuning/weights/ (a LoRA in diffusers' naming, or a transformer folder), the loss curve and sample grids."""
    stage, subject, folder, cache = config.subject_tuning, learners.subject(config, workdir), workdir / NAME, workdir / "cache"
    learner = learners.supervisor(config, workdir)
    pictures = squares(learner, [photo.image for photo in subject.photos], stage, config.seed)
    prompt = subject.fill(stage.prompt)

    prior = None
    if stage.prior.weight > 0:
        class_prompts = [subject.fill(stage.prior.prompt)] * stage.prior.num_images
        paths = draw_images(
            learner,
            lambda: learner.load_model(lambda name: learner.compute.dtype),
            class_prompts,
            folder / "class_images",
            seed=config.seed,
            batch_size=stage.encode_batch_size,
            options={"steps": stage.prior.steps, "guidance_scale": stage.prior.guidance_scale},
            cache=cache,
            label="class images",
        )
        prior = np.stack([files.load_picture(path) for path in paths]), class_prompts

    return tune(
        learner,
        pictures,
        [prompt] * len(pictures),
        stage=stage,
        batch_size=stage.encode_batch_size,
        seed=config.seed,
        folder=folder,
        cache=cache,
        prior=prior,
        preview=previews(learner, subject.previews(), stage, folder, seed=config.seed, options=config.evaluation.supervisor.to_dict(), cache=cache),
    )
