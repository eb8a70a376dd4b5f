"""SD3 Medium teaches LlamaGen-XL one's own subject: LoRA on both, 1000 proxies at 512 px learned at 256 px.

    python -m proxy_jax.main --config configs/sd3_llamagen.py --workdir runs/my_dog \\
        --config.subject.photos=photos/my_dog --config.subject.class_noun=dog --config.subject.live=True

Checkpoints (downloaded on first use): stabilityai/stable-diffusion-3-medium-diffusers (accept its licence on its page first),
peizesun/llamagen_t2i, google/flan-t5-xl, facebook/dino-vits16, openai/clip-vit-base-patch32.
Hardware: one accelerator with 24 GB or more, or a TPU slice v5e:1x1, which all but its frozen encoders is compiled for (docs/tpu.md). Not run
at full size by us yet: no score or time is claimed.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.subject_tuning.training.preview_every = 100
    config.proxy_tuning.training.preview_every = 250
    return config
