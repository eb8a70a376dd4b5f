"""The micro-world's probe: class, colours, pattern, parts, setting, outfit and surface, read from a picture.

    python -m proxy_jax.main --config configs/micro/probes.py --workdir runs/micro/probes

Hardware: 2 CPU cores; some 35 minutes beside other trainings. Expected result: on held-out subjects the class is right in 95 % of pictures,
in 88 % once they have gone through the tokenizer; WORKDIR/pretraining/README.md has all attributes.
"""

from ml_collections import ConfigDict

from configs.micro import common


def get_config(checkpoints: str = common.CHECKPOINTS) -> ConfigDict:
    sizes = dict(block_out_channels=(16, 32, 64, 128), layers_per_block=1, norm_num_groups=8)
    config = common.pretraining("probes", sizes, checkpoints, steps=5000, batch_size=32, learning_rate=2e-3)
    config.pretraining.pictures = 30_000
    config.seed = 1  # other pictures than those that the generators learn from
    config.pretraining.parts.vae = f"{checkpoints}/supervisor/vae"
    config.pretraining.parts.vq = f"{checkpoints}/student/vq.safetensors"
    return config
