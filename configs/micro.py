"""The main job at micro size: one subject of micro-DreamBench through all four stages, with trained micro checkpoints.

    python -m proxy_jax.main --config configs/micro.py --workdir runs/micro/dog6
    python -m proxy_jax.main --config configs/micro.py:teapot --workdir runs/micro/teapot

Hardware: 2 CPU cores; meant to take at most 8 minutes. Not yet: it needs the micro supervisor and student, which are still to be
trained (configs/micro/common.py). Then the report, evaluation/report.html, shows that the student has learned the subject and still follows
the prompts. The argument is a subject's name (proxy_jax/data/prompts.py lists them).
"""

from ml_collections import ConfigDict

from configs.micro import common


def get_config(subject: str = "dog6") -> ConfigDict:
    return common.main_job(subject)
