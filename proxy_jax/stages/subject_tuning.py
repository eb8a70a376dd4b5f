"""Stage 1: DreamBooth. The supervisor learns the subject from its photos (Ruiz et al., arXiv 2208.12242; the paper's section 3.1).

Or it has learned it elsewhere: `supervisor.lora`.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from proxy_jax.data.cache import fingerprint
from proxy_jax.stages import contract, learners, training_set
from proxy_jax.stages.tuning import adopt, checkpoint_key, cropped, previews, tune

NAME = "subject_tuning"
OUTPUTS = ("weights", "metrics.jsonl")


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: its fields, the photos (or proxies) and the checkpoint."""
    learner = learners.supervisor(config, workdir)
    found = contract.fields(config, "seed", "supervisor", "compute", NAME) | {"checkpoint": checkpoint_key(learner)}
    if config.supervisor.lora:
        return found | {"lora": fingerprint(learners.locate(workdir)(config.supervisor.lora))}
    return found | training_set.key(config, workdir, NAME)


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes the loss curve, sample grids and subject_tuning/weights/.

    There a LoRA in diffusers' and in kohya's naming, and the embeddings of new tokens, or after full tuning the denoiser's folder.
    """
    stage, folder, cache = config.subject_tuning, workdir / NAME, workdir / "cache"
    learner = learners.supervisor(config, workdir)
    if config.supervisor.lora:
        return adopt(learner, learners.locate(workdir)(config.supervisor.lora), stage, folder)
    sources = training_set.sources(config, workdir, NAME)
    subjects = [subject for subject, _ in sources]
    originals, prompts = training_set.pictures(sources, stage.prompt)
    if stage.embedding.tokens:
        training_set.require_tokens(prompts, subjects, f"subject_tuning.embedding.tokens is {stage.embedding.tokens}")
    pictures, prompts, crops = cropped(learner, originals, prompts, stage, config.seed)
    return tune(
        learner,
        pictures,
        prompts,
        columns=learner.crop_columns(crops),
        stage=stage,
        batch_size=stage.encode_batch_size,
        seed=config.seed,
        folder=folder,
        cache=cache,
        prior=training_set.class_pictures(learner, config, workdir, NAME, subjects),
        preview=previews(learner, subjects[0].previews(), stage, seed=config.seed, options=config.evaluation.supervisor.to_dict(), cache=cache),
    )
