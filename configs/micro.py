"""The main job at micro size: one subject of micro-DreamBench through all four stages, with trained micro checkpoints.

    python -m proxy_jax.main --config configs/micro.py --workdir runs/micro/dog6
    python -m proxy_jax.main --config configs/micro.py:teapot --workdir runs/micro/teapot

Hardware: 2 CPU cores, at most 8 minutes. Expected result: evaluation/report.html, on which the student has learned the subject and still
follows the prompts. The argument is a subject's name (proxy_jax/data/prompts.py lists them).
"""

from ml_collections import ConfigDict

from configs import base
from configs.micro import common
from proxy_jax.data import prompts


def get_config(subject: str = "dog6") -> ConfigDict:
    config = base.get_config()
    common.generators(config)
    config.compute.dtype = "float32"
    config.compute.remat = "none"
    config.subject.photos = f"{common.CHECKPOINTS}/dreambench/{subject}"
    config.subject.class_noun = prompts.SUBJECTS[subject].class_noun
    config.subject.live = prompts.SUBJECTS[subject].live
    config.evaluation.probes = f"{common.CHECKPOINTS}/metrics/probes"

    tuning, student = config.subject_tuning, config.proxy_tuning
    tuning.lora.update(rank=16, alpha=16.0)
    tuning.training.update(steps=300, batch_size=16, learning_rate=1e-3, preview_every=100, weight_decay=0.0)
    tuning.prior.update(num_images=64, steps=20, guidance_scale=3.0)
    tuning.precondition_outputs = False
    config.proxy_generation.update(num_images=200, batch_size=50, steps=20, guidance_scale=3.0)
    student.lora.update(rank=16, alpha=16.0)
    student.training.update(steps=200, batch_size=16, learning_rate=1e-3, preview_every=100, weight_decay=0.0)
    config.evaluation.update(arms=("supervisor", "student", "untuned_student"), batch_size=50)
    config.evaluation.supervisor.update(steps=20, guidance_scale=3.0)
    config.evaluation.student.update(guidance_scale=3.0, top_k=0, temperature=1.0)
    return config
