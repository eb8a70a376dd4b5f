"""The micro student: LlamaGen's decoder over 12 × 12 tokens, from captions of the micro-world.

    python -m proxy_jax.main --config configs/micro/student.py --workdir runs/micro/student

Hardware: 2 CPU cores, about an hour and a half. The checkpoint that comes with the package learned its first 1400 steps in float32.
"""

from ml_collections import ConfigDict

from configs.micro import common


def get_config(checkpoints: str = common.CHECKPOINTS) -> ConfigDict:
    sizes = dict(dim=192, n_layer=6, n_head=3, vocab_size=4096, caption_dim=128, cls_token_num=common.TEXT_LENGTH, multiple_of=32)
    config = common.pretraining("student", sizes, checkpoints, steps=4500, batch_size=16, learning_rate=4e-3, warmup_steps=100, beta2=0.95)
    config.compute.dtype = "bfloat16"  # 1.4 times as fast as float32 on a CPU that multiplies it
    config.pretraining.pictures = 100_000
    config.pretraining.parts.probes = f"{checkpoints}/metrics/probes"
    config.evaluation.batch_size = 75
    config.evaluation.student.update(guidance_scale=3.0, top_k=0)
    return config
