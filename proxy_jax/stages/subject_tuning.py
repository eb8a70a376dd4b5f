"""Stage 1: DreamBooth. The supervisor learns the subject from its photos (Ruiz et al., arXiv 2208.12242; the paper's section 3.1)."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from proxy_jax.data import prompts
from proxy_jax.stages import contract, files, learners
from proxy_jax.stages.drawing import draw_images
from proxy_jax.stages.tuning import encoders_key, preview_grid, squares, tune

NAME = "subject_tuning"
OUTPUTS = ("weights",)


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: its fields, the photos' bytes and the checkpoint's."""
    subject, learner = learners.subject(config, workdir), learners.supervisor(config, workdir)
    return contract.fields(config, "seed", "supervisor", "compute", NAME) | {"subject": subject.key(), "checkpoint": encoders_key(learner)}


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes subject_tuning/weights/ (a LoRA in diffusers' naming, or a transformer folder), the loss curve and sample grids."""
    stage, subject, folder, cache = config.subject_tuning, learners.subject(config, workdir), workdir / NAME, workdir / "cache"
    learner = learners.supervisor(config, workdir)
    pictures = squares(learner, [photo.image for photo in subject.photos], stage, config.seed)
    options = config.evaluation.supervisor.to_dict()
    prompt = prompts.fill(stage.prompt, subject.token, subject.class_noun)

    prior = None
    if stage.prior.weight > 0:
        class_prompts = [prompts.fill(stage.prior.prompt, subject.token, subject.class_noun)] * stage.prior.num_images
        paths = draw_images(
            learner,
            lambda: learner.load_model(lambda name: learner.compute.dtype),
            class_prompts,
            folder / "class_images",
            seed=config.seed,
            batch_size=config.proxy_generation.batch_size,
            options=options,
            cache=cache,
            label="class images",
        )
        prior = np.stack([files.load_picture(path) for path in paths]), class_prompts

    previews = [prompts.fill(template, subject.token, subject.class_noun) for template in prompts.dreambench_prompts(subject.live)[:4]]
    return tune(
        learner,
        pictures,
        [prompt] * len(pictures),
        stage=stage,
        batch_size=config.proxy_generation.batch_size,
        seed=config.seed,
        folder=folder,
        cache=cache,
        prior=prior,
        preview=preview_grid(learner, previews, folder / "previews", seed=config.seed, options=options, cache=cache)
        if stage.training.preview_every
        else None,
    )
