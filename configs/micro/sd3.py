"""The micro supervisor: SD3's MMDiT on 12 × 12 latents, from captions of the micro-world.

    python -m proxy_jax.main --config configs/micro/sd3.py --workdir runs/micro/sd3

Hardware: 2 CPU cores, about two hours. The checkpoint that comes with the package was trained in two runs: 3500 steps at a rate of 1e-3, and then,
from their weights (pretraining.parts.start), the 5500 at 1.5e-3 that its card tells of.
"""

from ml_collections import ConfigDict

from configs.micro import common


def get_config(checkpoints: str = common.CHECKPOINTS) -> ConfigDict:
    sizes = dict(
        sample_size=12,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=5,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=128,
        caption_projection_dim=192,
        pooled_projection_dim=128,
        pos_embed_max_size=6,
    )
    config = common.pretraining("sd3", sizes, checkpoints, steps=9000, batch_size=32, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.999)
    config.pretraining.pictures = 100_000
    config.pretraining.parts.encoders = f"{checkpoints}/supervisor"
    config.subject_tuning.precondition_outputs = False
    config.pretraining.parts.probes = f"{checkpoints}/metrics/probes"
    config.evaluation.batch_size = 75
    config.evaluation.supervisor.update(steps=20, guidance_scale=4.0)
    return config
