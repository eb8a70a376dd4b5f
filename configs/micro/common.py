"""What the trainings of the micro checkpoints share. Each is one command, from a seed, on pictures that are drawn first:

    python -m proxy_jax.main --config configs/micro/RECIPE.py --workdir runs/micro/RECIPE

in this order: vq, kl, text_encoders, metrics, probes, supervisor, student. The result lies in WORKDIR/pretraining/weights with its model
card beside it, WORKDIR/pretraining/README.md; those that come with the package were copied from there to proxy_jax/checkpoints/micro.
"""

from ml_collections import ConfigDict

from configs import base

CHECKPOINTS = "{package}/checkpoints/micro"
TEXT_LENGTH = 16  # tokens of a caption, with its marks


def pretraining(recipe: str, model: dict, **training) -> ConfigDict:
    """A config of the pre-training stage alone: a recipe, its model's sizes and changes to the training fields."""
    config = base.get_config()
    config.stages = ("pretraining",)
    config.compute.dtype = "float32"
    config.compute.remat = "none"
    config.pretraining.recipe = recipe
    with config.unlocked():
        config.pretraining.model = model
    config.pretraining.training.update(
        **dict(schedule="cosine", warmup_steps=100, beta2=0.99, weight_decay=0.01, checkpoint_every=200, log_every=50) | training
    )
    return config


def generators(config: ConfigDict) -> None:
    """The micro checkpoints as a run's supervisor, student and metrics."""
    config.supervisor.checkpoint = f"{CHECKPOINTS}/supervisor"
    config.supervisor.resolution = 48
    config.supervisor.max_sequence_length = TEXT_LENGTH
    config.student.gpt = f"{CHECKPOINTS}/student/gpt.safetensors"
    config.student.vq = f"{CHECKPOINTS}/student/vq.safetensors"
    config.student.text_encoder = f"{CHECKPOINTS}/student/text_encoder"
    config.student.resolution = 48
    config.evaluation.dino = f"{CHECKPOINTS}/metrics/dino"
    config.evaluation.clip = f"{CHECKPOINTS}/metrics/clip"
