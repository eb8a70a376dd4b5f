"""The micro-world's metric encoders: a DINO by instance contrast and a CLIP by captions, apart from the encoders that the generators read.

    python -m proxy_jax.main --config configs/micro/metrics.py --workdir runs/micro/metrics

Hardware: 2 CPU cores, about an hour. Expected result: on held-out subjects DINO finds the right one of 30 at least 95 % of the time across
contexts, CLIP the right caption of 25 at least 90 %.
"""

from ml_collections import ConfigDict

from configs.micro import common
from configs.micro.text_encoders import CLIP_TEXT

VISION = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=48, patch_size=6)


def get_config(checkpoints: str = common.CHECKPOINTS) -> ConfigDict:
    sizes = dict(
        dino=VISION | dict(hidden_act="gelu", qkv_bias=True, layer_norm_eps=1e-12),
        clip=dict(
            projection_dim=64,
            text_config=CLIP_TEXT | dict(hidden_size=128, intermediate_size=512, num_attention_heads=4, hidden_act="quick_gelu"),
            vision_config=VISION | dict(hidden_act="quick_gelu", projection_dim=64),
        ),
    )
    config = common.pretraining("metrics", sizes, checkpoints, steps=1500, batch_size=64, learning_rate=1e-3)
    config.pretraining.pictures = 40_000
    return config
