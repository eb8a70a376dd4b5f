"""Stage 2: the tuned supervisor draws the proxy set (the paper's section 3.2), written as a TFDS dataset."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from proxy_jax.data import proxy_set
from proxy_jax.stages import contract, learners
from proxy_jax.stages.drawing import draw_images
from proxy_jax.stages.tuning import tuned_model

NAME = "proxy_generation"
OUTPUTS = ("images", "dataset")


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: its fields and the tuned supervisor."""
    found = {"subject": learners.subject(config, workdir).words(), "subject_tuning": contract.upstream(workdir, "subject_tuning")}
    return contract.fields(config, "seed", "compute", NAME) | found


def templates(config: ConfigDict) -> list[str]:
    """The template of each proxy."""
    stage = config.proxy_generation
    return [stage.prompts[index % len(stage.prompts)] for index in range(stage.num_images)]


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes proxy_generation/images/*.png and proxy_generation/dataset/, which plain tensorflow-datasets opens."""
    stage, subject, folder = config.proxy_generation, learners.subject(config, workdir), workdir / NAME
    learner = learners.supervisor(config, workdir)
    wanted = [subject.fill(template) for template in templates(config)]
    paths = draw_images(
        learner,
        lambda: tuned_model(learner, config.subject_tuning, workdir / "subject_tuning"),
        wanted,
        folder / "images",
        seed=config.seed + 1,  # other noise than the class images'
        batch_size=stage.batch_size,
        options={"steps": stage.steps, "guidance_scale": stage.guidance_scale},
        cache=workdir / "cache",
        label="proxies",
    )
    digest = hashlib.sha256(json.dumps(inputs(config, workdir), sort_keys=True).encode()).hexdigest()
    name = config.supervisor.checkpoint.removeprefix("{workdir}/")
    records = (
        dict(image=path.read_bytes(), prompt=prompt, seed=config.seed + 1, index=index, supervisor=name, config_hash=digest)
        for index, (path, prompt) in enumerate(zip(paths, wanted, strict=True))
    )
    proxy_set.write(folder / "dataset", records, metadata={"subject": subject.words()})
    return {"num_images": len(paths)}
