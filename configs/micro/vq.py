"""The micro-world's image tokenizer: LlamaGen's VQ model at 48 pixels, 12 × 12 tokens of 2048 codes.

    python -m proxy_jax.main --config configs/micro/vq.py --workdir runs/micro/vq

Hardware: 2 CPU cores, about 25 minutes. Expected result: runs/micro/vq/pretraining/README.md, at least 24 dB on held-out subjects.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.stages = ("pretraining",)
    config.compute.dtype = "float32"
    config.compute.remat = "none"
    fields = config.pretraining
    fields.recipe = "vq"
    fields.pictures = 20_000
    with config.unlocked():
        fields.model = dict(ch=32, ch_mult=(1, 1, 2), z_channels=64, codebook_size=2048, codebook_embed_dim=8, num_res_blocks=1)
    common = dict(batch_size=16, learning_rate=1e-3, schedule="cosine", beta2=0.99, weight_decay=0.0, checkpoint_every=200, log_every=50)
    fields.unquantised.update(**common, steps=800, warmup_steps=50)
    fields.training.update(**common | {"learning_rate": 7e-4}, steps=2400, warmup_steps=20)
    return config
