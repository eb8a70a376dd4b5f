"""The sizes of the published checkpoints that the configs name, in the fields of their official config.json: programs can be compiled without them.

The structures are those that stages/random_weights.py takes. Source: the config.json files of the named repositories, LlamaGen's
autoregressive/models/gpt.py and tokenizer/tokenizer_image/vq_model.py, Meta's vqgan.yaml of Chameleon.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Sizes = Mapping[str, Any]

CLIP = dict(vocab_size=49408, max_position_embeddings=77, layer_norm_eps=1e-5, bos_token_id=0, eos_token_id=2, pad_token_id=1)
CLIP_L = CLIP | dict(
    hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu"
)
CLIP_G = CLIP | dict(hidden_size=1280, intermediate_size=5120, projection_dim=1280, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu")
T5 = dict(
    vocab_size=32128,
    d_kv=64,
    num_layers=24,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
    feed_forward_proj="gated-gelu",
)
T5_XXL = T5 | dict(d_model=4096, d_ff=10240, num_heads=64)
T5_XL = T5 | dict(d_model=2048, d_ff=5120, num_heads=32)
VAE = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    norm_num_groups=32,
)
VAE_16 = VAE | dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
MMDIT = dict(sample_size=128, patch_size=2, in_channels=16, out_channels=16, attention_head_dim=64, joint_attention_dim=4096)
MMDIT |= dict(pooled_projection_dim=2048)
SD3_MEDIUM = MMDIT | dict(num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192)
SD35_MEDIUM = SD3_MEDIUM | dict(pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13)))
SD35_LARGE = MMDIT | dict(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, pos_embed_max_size=192, qk_norm="rms_norm")
SDXL_UNET = dict(
    sample_size=128,
    in_channels=4,
    out_channels=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(320, 640, 1280),
    layers_per_block=2,
    cross_attention_dim=2048,
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    norm_num_groups=32,
)
FLUX = dict(
    in_channels=64,
    num_layers=19,
    num_single_layers=38,
    attention_head_dim=128,
    num_attention_heads=24,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    guidance_embeds=True,
    axes_dims_rope=(16, 56, 56),
)


def _sd3(transformer: Sizes) -> Sizes:
    vae = VAE_16 | dict(scaling_factor=1.5305, shift_factor=0.0609)
    return dict(transformer=transformer, vae=vae, text_encoder=CLIP_L, text_encoder_2=CLIP_G, text_encoder_3=T5_XXL)


SUPERVISORS: Mapping[str, Sizes] = MappingProxyType(
    {
        "stabilityai/stable-diffusion-xl-base-1.0": dict(
            unet=SDXL_UNET, vae=VAE | dict(latent_channels=4, scaling_factor=0.13025, force_upcast=True), text_encoder=CLIP_L, text_encoder_2=CLIP_G
        ),
        "stabilityai/stable-diffusion-3-medium-diffusers": _sd3(SD3_MEDIUM),
        "stabilityai/stable-diffusion-3.5-medium": _sd3(SD35_MEDIUM),
        "stabilityai/stable-diffusion-3.5-large": _sd3(SD35_LARGE),
        "black-forest-labs/FLUX.1-dev": dict(
            transformer=FLUX, vae=VAE_16 | dict(scaling_factor=0.3611, shift_factor=0.1159), text_encoder=CLIP_L, text_encoder_2=T5_XXL
        ),
    }
)

LLAMAGEN_XL = dict(
    gpt=dict(dim=1280, n_layer=36, n_head=20, vocab_size=16384, caption_dim=2048, cls_token_num=120, multiple_of=256),
    vq=dict(ch=128, ch_mult=(1, 1, 2, 2, 4), z_channels=256, codebook_size=16384, codebook_embed_dim=8, num_res_blocks=2),
    text_encoder=T5_XL,
)
LUMINA_MGPT_7B = dict(
    gpt=dict(
        vocab_size=65536,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        rope_theta=10000.0,
    ),
    vq=dict(
        embed_dim=256,
        n_embed=8192,
        ddconfig=dict(
            z_channels=256,
            ch=128,
            ch_mult=(1, 1, 2, 2, 4),
            num_res_blocks=2,
            in_channels=3,
            out_ch=3,
            resolution=512,
            attn_resolutions=(),
            double_z=False,
        ),
    ),
)
# By the decoder: the config's student.gpt
STUDENTS: Mapping[str, Sizes] = MappingProxyType(
    {
        "peizesun/llamagen_t2i/t2i_XL_stage1_256.pt": LLAMAGEN_XL,
        "peizesun/llamagen_t2i/t2i_XL_stage2_512.pt": LLAMAGEN_XL,
        "Alpha-VLLM/Lumina-mGPT-7B-768": LUMINA_MGPT_7B,
    }
)
