"""The micro-world's image tokenizer: LlamaGen's VQ model at 48 pixels, 12 × 12 tokens of 2048 codes.

    python -m proxy_jax.main --config configs/micro/vq.py --workdir runs/micro/vq

Hardware: 2 CPU cores, about 25 minutes. Expected result: at least 24 dB on held-out subjects.
"""

from ml_collections import ConfigDict

from configs.micro import common


def get_config() -> ConfigDict:
    sizes = dict(ch=32, ch_mult=(1, 1, 2), z_channels=64, codebook_size=2048, codebook_embed_dim=8, num_res_blocks=1)
    training = dict(batch_size=16, weight_decay=0.0)
    config = common.pretraining("vq", sizes, **training, steps=2400, learning_rate=7e-4, warmup_steps=20)
    config.pretraining.pictures = 20_000
    config.pretraining.unquantised.update(
        **config.pretraining.training.to_dict() | dict(steps=800, learning_rate=1e-3, warmup_steps=50),
    )
    return config
