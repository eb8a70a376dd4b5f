"""The second micro supervisor: SDXL's UNet on 12 × 12 latents, from captions of the micro-world.

    python -m proxy_jax.main --config configs/micro/sdxl.py --workdir runs/micro/sdxl

Hardware: one CPU core, an hour and a half. The one of docs/weak_to_strong/supervisor_sdxl, which the experiment compares with SD3, was trained in
two runs: 6000 steps at a rate of 1e-3, and then, from their weights (pretraining.parts.start), the 2400 at 7e-4 that its card tells of.
"""

from ml_collections import ConfigDict

from configs.micro import common


def get_config(checkpoints: str = common.CHECKPOINTS) -> ConfigDict:
    sizes = dict(
        sample_size=12,
        in_channels=16,
        out_channels=16,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),  # the numbers of heads
        cross_attention_dim=128,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=112,  # pooled text and six numbers
        norm_num_groups=32,
    )
    config = common.pretraining("sdxl", sizes, checkpoints, steps=8400, batch_size=32, learning_rate=1e-3, warmup_steps=200, ema_decay=0.999)
    common.sdxl(config, checkpoints)
    config.pretraining.pictures = 100_000
    config.pretraining.parts.encoders = f"{checkpoints}/supervisor"
    config.pretraining.parts.probes = f"{checkpoints}/metrics/probes"
    config.evaluation.batch_size = 75
    config.evaluation.supervisor.update(steps=20, guidance_scale=4.0)
    return config
