"""The main job at micro size: one subject of micro-DreamBench through all four stages, with trained micro checkpoints.

    python -m proxy_jax.main --config configs/micro.py --workdir runs/micro/dog6
    python -m proxy_jax.main --config configs/micro.py:teapot --workdir runs/micro/teapot

Hardware: 2 CPU cores, at most 8 minutes. The argument is a subject's name (proxy_jax/data/prompts.py lists them). The checkpoints come with the
package; configs/micro/common.py tells how they are trained anew.
"""

from ml_collections import ConfigDict

from configs.micro import common


def get_config(subject: str = "dog6") -> ConfigDict:
    return common.main_job(subject)
