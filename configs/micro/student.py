"""The micro student: LlamaGen's decoder over 12 × 12 tokens, from captions of the micro-world.

    python -m proxy_jax.main --config configs/micro/student.py --workdir runs/micro/student

Hardware: 2 CPU cores, two hours and a half. The checkpoint that comes with the package was trained in two runs: 4500 steps at a rate of 4e-3, the
first 1400 in float32, and then, from their weights (pretraining.parts.start), the 11000 at 3e-3 that its card tells of.
"""

from ml_collections import ConfigDict

from configs.micro import common


def get_config(checkpoints: str = common.CHECKPOINTS) -> ConfigDict:
    sizes = dict(dim=192, n_layer=6, n_head=3, vocab_size=4096, caption_dim=128, cls_token_num=common.TEXT_LENGTH, multiple_of=32)
    config = common.pretraining("student", sizes, checkpoints, steps=15_500, batch_size=16, learning_rate=3e-3, warmup_steps=100, beta2=0.95)
    config.compute.dtype = "bfloat16"  # nearly twice as fast as float32 on a CPU that multiplies it
    config.pretraining.pictures = 100_000
    config.pretraining.parts.probes = f"{checkpoints}/metrics/probes"
    config.evaluation.batch_size = 75
    config.evaluation.student.update(guidance_scale=3.0, top_k=0, temperature=0.8)
    return config
