"""SD3 Medium teaches Lumina-mGPT 7B one's own subject: LoRA on both, 1000 proxies at 1024 px learned at 768 px.

    python -m proxy_jax.main --config configs/sd3_lumina_mgpt.py --workdir runs/my_dog \\
        --config.subject.photos=photos/my_dog --config.subject.class_noun=dog --config.subject.live=True

Checkpoints (downloaded on first use): stabilityai/stable-diffusion-3-medium-diffusers (accept its licence on its page first),
Alpha-VLLM/Lumina-mGPT-7B-768, the tokenizers in Alpha-VLLM/Chameleon_7B_mGPT, facebook/dino-vits16, openai/clip-vit-base-patch32.
Hardware: one accelerator with 80 GB, by estimate, or a TPU slice v5e:2x4 or v6e:2x2, and to tune all of Lumina-mGPT (proxy_tuning.mode=full)
v5e:4x4 with batches of 16: for these it is compiled, with --config.mesh.auto=True (docs/tpu.md), and the student's step alone for v5e:16x16
with batches of 256 and v5p:8x8x8 with 512.
Not run at full size by us yet: no score or time is claimed.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    base.lumina_mgpt(config)
    config.supervisor.resolution = 1024  # SD3's own
    config.subject_tuning.training.preview_every = 100
    config.proxy_tuning.training.preview_every = 250
    return config
