"""SDXL teaches Lumina-mGPT 7B one's own subject: LoRA on both, 1000 proxies at 1024 px learned at 768 px.

    python -m proxy_jax.main --config configs/sdxl_lumina_mgpt.py --workdir runs/my_dog \\
        --config.subject.photos=photos/my_dog --config.subject.class_noun=dog --config.subject.live=True

Checkpoints (downloaded on first use): stabilityai/stable-diffusion-xl-base-1.0; the others as in configs/sd3_lumina_mgpt.py.
Hardware: one accelerator with 80 GB, by estimate, or a TPU slice v6e:2x2, which it is compiled for, with --config.mesh.auto=True
(docs/tpu.md). Not run at full size by us yet: no score or time is claimed.
"""

from ml_collections import ConfigDict

from configs import base, sd3_lumina_mgpt


def get_config() -> ConfigDict:
    config = sd3_lumina_mgpt.get_config()
    base.sdxl(config)
    return config
