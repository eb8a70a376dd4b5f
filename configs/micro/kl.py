"""The micro-world's AutoencoderKL: 12 × 12 latents of 16 channels at 48 pixels.

    python -m proxy_jax.main --config configs/micro/kl.py --workdir runs/micro/kl

Hardware: 2 CPU cores, about 45 minutes. Expected result: at least 28 dB on held-out subjects.
"""

from ml_collections import ConfigDict

from configs.micro import common

WIDTHS = (32, 32, 128)  # the tokenizer's too, which begins as this


def get_config(checkpoints: str = common.CHECKPOINTS) -> ConfigDict:
    sizes = dict(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=48,
    )
    config = common.pretraining("kl", sizes, checkpoints, steps=2600, batch_size=16, learning_rate=1e-3, weight_decay=0.0, warmup_steps=50)
    config.pretraining.pictures = 40_000
    return config
