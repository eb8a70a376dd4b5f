"""FLUX.1-dev teaches Lumina-mGPT 7B one's own subject: LoRA on both, 1000 proxies at 1024 px learned at 768 px.

    python -m proxy_jax.main --config configs/flux_lumina_mgpt.py --workdir runs/my_dog \\
        --config.subject.photos=photos/my_dog --config.subject.class_noun=dog --config.subject.live=True

Checkpoints (downloaded on first use): black-forest-labs/FLUX.1-dev (accept its non-commercial licence on its page first); the others as
in configs/sd3_lumina_mgpt.py.
Hardware: one accelerator with 80 GB, by estimate (the frozen denoiser takes 24 GB in bfloat16), or a TPU slice v5p:2x2x1 or v5e:4x4:
for these it is compiled, with --config.mesh.auto=True (docs/tpu.md). Not run at full size by us yet: no score or time is claimed.
"""

from ml_collections import ConfigDict

from configs import base, sd3_lumina_mgpt


def get_config() -> ConfigDict:
    config = sd3_lumina_mgpt.get_config()
    base.flux(config)
    return config
