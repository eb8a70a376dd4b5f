"""All four stages with the real classes at tiny size and random weights: it checks the machinery, its pictures are noise.

    python -m proxy_jax.main --config configs/smoke.py --workdir runs/smoke
    python -m proxy_jax.main --config configs/smoke.py:sdxl --workdir runs/smoke_sdxl

The argument: the supervisor (sd3, the default, sd35, sdxl or flux) and, after a comma, the student (llamagen, the default, or
lumina_mgpt), e.g. configs/smoke.py:sd3,lumina_mgpt. Hardware: 2 CPU cores, under 3 minutes. Expected result: evaluation/report.html in the
workdir; no score in it means anything. The photos are DreamBench's dog where that set lies beside the checkout, else the three drawings in
configs/smoke_photos.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import base

DRAWINGS = Path(__file__).resolve().parent / "smoke_photos"
DREAMBENCH_DOG = Path(__file__).resolve().parents[2] / "shared" / "dreambench" / "dog"

CLIP_TEXT = dict(
    vocab_size=514,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=77,
    layer_norm_eps=1e-5,
    eos_token_id=513,
    bos_token_id=512,
    pad_token_id=513,
)
T5 = dict(
    vocab_size=48,
    d_model=64,
    d_kv=16,
    num_heads=4,
    d_ff=128,
    num_layers=2,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
    feed_forward_proj="gated-gelu",
)


VAE = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(16, 32, 32),
    layers_per_block=1,
    norm_num_groups=8,
)
CLIP_TEXTS = dict(
    text_encoder=CLIP_TEXT | dict(hidden_size=32, projection_dim=32, hidden_act="quick_gelu"),
    text_encoder_2=CLIP_TEXT | dict(hidden_size=32, projection_dim=32, hidden_act="gelu"),
)
SUPERVISORS = dict(
    sd3=dict(
        transformer=dict(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=64,
            pooled_projection_dim=64,
            pos_embed_max_size=16,
        ),
        vae=VAE | dict(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder_3=T5,
        **CLIP_TEXTS,
    ),
    sdxl=dict(
        unet=dict(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(1, 2),  # the numbers of heads
            cross_attention_dim=64,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,
            norm_num_groups=8,
        ),
        vae=VAE | dict(latent_channels=4, scaling_factor=0.13025, force_upcast=True),
        **CLIP_TEXTS,
    ),
    flux=dict(
        transformer=dict(
            in_channels=64,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=64,
            pooled_projection_dim=32,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
        vae=VAE | dict(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIP_TEXTS["text_encoder"],
        text_encoder_2=T5,
    ),
)
# As the Medium: normalised queries and keys, a second attention in the first blocks
SD35 = SUPERVISORS["sd3"]["transformer"] | dict(qk_norm="rms_norm", dual_attention_layers=(0,))
SUPERVISORS["sd35"] = SUPERVISORS["sd3"] | dict(transformer=SD35)
DEFAULTS = {"sd35": base.sd35, "sdxl": base.sdxl, "flux": base.flux}  # base.py itself is SD3's


STUDENTS = dict(
    llamagen=dict(
        gpt=dict(dim=64, n_layer=3, n_head=4, vocab_size=256, caption_dim=64, cls_token_num=120, multiple_of=32),
        vq=dict(ch=32, ch_mult=(1, 1, 2), z_channels=32, codebook_size=256, codebook_embed_dim=8, num_res_blocks=1),
        text_encoder=T5,
    ),
    lumina_mgpt=dict(
        gpt=dict(vocab_size=600, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, rope_theta=10000.0),
        vq=dict(
            embed_dim=8,
            n_embed=256,
            ddconfig=dict(
                z_channels=32, ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, in_channels=3, out_ch=3, resolution=32, attn_resolutions=(), double_z=False
            ),
        ),
    ),
)


def weights(family: str = "sd3", student: str = "llamagen") -> ConfigDict:
    """The sizes of every checkpoint, in the fields of its official config.json."""
    return ConfigDict(
        dict(
            supervisor=base.choose(SUPERVISORS, family, "the supervisor"),
            student=base.choose(STUDENTS, student, "the student"),
            metrics=dict(
                dino=dict(
                    hidden_size=48,
                    num_hidden_layers=2,
                    num_attention_heads=3,
                    intermediate_size=96,
                    image_size=32,
                    patch_size=8,
                    hidden_act="gelu",
                    qkv_bias=True,
                    layer_norm_eps=1e-12,
                ),
                clip=dict(
                    projection_dim=32,
                    text_config=CLIP_TEXT | dict(hidden_size=32, hidden_act="quick_gelu", projection_dim=32),
                    vision_config=dict(
                        hidden_size=48,
                        intermediate_size=96,
                        num_hidden_layers=2,
                        num_attention_heads=3,
                        image_size=32,
                        patch_size=8,
                        hidden_act="quick_gelu",
                        projection_dim=32,
                    ),
                ),
            ),
        )
    )


def get_config(families: str = "sd3,llamagen") -> ConfigDict:
    family, _, student = families.partition(",")
    config = base.get_config()
    if family in DEFAULTS:
        DEFAULTS[family](config)
    with config.unlocked():
        config.random_weights = weights(family, student or "llamagen")
    config.stages = ("random_weights", *config.stages)
    config.subject.live = DREAMBENCH_DOG.is_dir()
    config.subject.photos = str(DREAMBENCH_DOG if config.subject.live else DRAWINGS)
    config.subject.class_noun = "dog" if config.subject.live else "toy"
    config.compute.dtype = "float32"
    config.compute.remat = "none"

    config.supervisor.checkpoint = "{workdir}/random_weights/supervisor"
    config.supervisor.resolution = 32
    config.supervisor.max_sequence_length = 77
    config.student.gpt = "{workdir}/random_weights/student/gpt.safetensors"
    config.student.vq = "{workdir}/random_weights/student/vq.safetensors"
    config.student.text_encoder = "{workdir}/random_weights/student/text_encoder"
    if student == "lumina_mgpt":
        base.lumina_mgpt(config)
        config.student.gpt = "{workdir}/random_weights/student/gpt"
        config.student.vq = "{workdir}/random_weights/student/vqgan.safetensors"
        config.student.text_tokenizer = "{workdir}/random_weights/student/text_tokenizer.json"
    config.student.resolution = 32
    config.evaluation.dino = "{workdir}/random_weights/metrics/dino"
    config.evaluation.clip = "{workdir}/random_weights/metrics/clip"

    for stage in (config.subject_tuning, config.proxy_tuning):
        stage.lora.rank = 4
        stage.lora.alpha = 4.0
        stage.training.steps = 8
        stage.training.batch_size = 8
        stage.training.accumulation = 2
        stage.training.checkpoint_every = 4
        stage.training.log_every = 2
        stage.training.preview_every = 4
    config.subject_tuning.prior.num_images = 8
    config.subject_tuning.prior.steps = 4
    config.proxy_generation.num_images = 16
    config.proxy_generation.steps = 4
    config.evaluation.supervisor.steps = 4
    config.evaluation.student.top_k = 100
    config.evaluation.num_prompts = 4
    config.evaluation.images_per_prompt = 2
    return config
