"""The text encoders of the micro supervisor (two CLIPs and a T5) and student (the T5), trained to tell captions of pictures apart.

    python -m proxy_jax.main --config configs/micro/text_encoders.py --workdir runs/micro/text_encoders

Hardware: 2 CPU cores, about 10 minutes.
"""

from ml_collections import ConfigDict

from configs.micro import common

CLIP_TEXT = dict(
    vocab_size=846,
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=common.TEXT_LENGTH,
    layer_norm_eps=1e-5,
    projection_dim=64,
    bos_token_id=844,
    eos_token_id=845,
    pad_token_id=845,
)
T5 = dict(
    vocab_size=148,
    d_model=128,
    d_kv=32,
    num_heads=4,
    d_ff=256,
    num_layers=2,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
    feed_forward_proj="gated-gelu",
)
VISION = dict(
    hidden_size=96,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=3,
    image_size=48,
    patch_size=8,
    hidden_act="quick_gelu",
)


def get_config(checkpoints: str = common.CHECKPOINTS) -> ConfigDict:
    sizes = dict(
        text_encoder=CLIP_TEXT | dict(hidden_act="quick_gelu"),
        text_encoder_2=CLIP_TEXT | dict(hidden_act="gelu"),
        text_encoder_3=T5,
        vision=VISION,
    )
    config = common.pretraining("text_encoders", sizes, checkpoints, steps=1200, batch_size=96, learning_rate=1e-3)
    config.pretraining.pictures = 40_000
    return config
