"""Stage 3: the student learns the proxy set by next-token loss (the paper's section 3.3), or, as its baseline, the photos themselves.

With `subjects` it learns several subjects at once, each under its own token.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from proxy_jax.stages import contract, learners, training_set
from proxy_jax.stages.tuning import checkpoint_key, cropped, previews, tune

NAME = "proxy_tuning"
OUTPUTS = ("weights", "metrics.jsonl")


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: its fields, the student's checkpoints, and the proxies or the photos."""
    found = contract.fields(config, "seed", "student", "compute", NAME)
    return found | {"checkpoint": checkpoint_key(learners.student(config, workdir))} | training_set.key(config, workdir, NAME)


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes proxy_tuning/weights/ (a LoRA, or gpt.safetensors in LlamaGen's naming), the loss curve and sample grids."""
    stage, folder, cache = config.proxy_tuning, workdir / NAME, workdir / "cache"
    learner = learners.student(config, workdir)
    sources = training_set.sources(config, workdir, NAME)
    subjects = [subject for subject, _ in sources]
    originals, prompts = training_set.pictures(sources, stage.prompt, stage.num_proxies, stage.proxy_prompts)
    if stage.mode == "two_stage":
        training_set.require_tokens(prompts, subjects, "proxy_tuning.mode is 'two_stage'")
    return tune(
        learner,
        *cropped(learner, originals, prompts, stage, config.seed)[:2],
        stage=stage,
        batch_size=stage.encode_batch_size,
        seed=config.seed,
        folder=folder,
        cache=cache,
        prior=training_set.class_pictures(learner, config, workdir, NAME, subjects),
        preview=previews(learner, subjects[0].previews(), stage, seed=config.seed, options=config.evaluation.student.to_dict(), cache=cache),
    )
