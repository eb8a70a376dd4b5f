"""The micro supervisor: SD3's MMDiT on 12 × 12 latents, from captions of the micro-world.

    python -m proxy_jax.main --config configs/micro/sd3.py --workdir runs/micro/sd3

Hardware: 2 CPU cores; an hour and a half by estimate, not trained to the end yet.
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
    config = common.pretraining("sd3", sizes, checkpoints, steps=11_000, batch_size=32, learning_rate=1e-3, warmup_steps=200, ema_decay=0.999)
    config.pretraining.pictures = 100_000
    config.pretraining.parts.encoders = f"{checkpoints}/supervisor"
    config.subject_tuning.precondition_outputs = False
    config.pretraining.parts.probes = f"{checkpoints}/metrics/probes"
    config.evaluation.batch_size = 75
    config.evaluation.supervisor.update(steps=20, guidance_scale=3.0)
    return config
