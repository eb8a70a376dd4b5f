"""The micro-world's image tokenizer: LlamaGen's VQ model at 48 pixels, 12 × 12 tokens of 4096 codes. It begins as the AutoencoderKL.

    python -m proxy_jax.main --config configs/micro/vq.py --workdir runs/micro/vq

Hardware: 2 CPU cores, about an hour. Expected result: at least 24 dB on held-out subjects.
"""

from ml_collections import ConfigDict

from configs.micro import common
from configs.micro.kl import WIDTHS


def get_config(checkpoints: str = common.CHECKPOINTS) -> ConfigDict:
    multiples = tuple(width // WIDTHS[0] for width in WIDTHS)
    sizes = dict(ch=WIDTHS[0], ch_mult=multiples, z_channels=64, codebook_size=4096, codebook_embed_dim=8, num_res_blocks=1)
    config = common.pretraining("vq", sizes, checkpoints, batch_size=16, weight_decay=0.0, steps=2600, learning_rate=7e-4, warmup_steps=20)
    config.pretraining.pictures = 40_000
    config.pretraining.parts.start = f"{checkpoints}/supervisor/vae"
    config.pretraining.unquantised.update(**config.pretraining.training.to_dict() | dict(steps=400, learning_rate=7e-4, warmup_steps=50))
    return config
