"""Golden kinds and manifests of the text and vision encoders. Official pixels are NCHW; ours are NHWC."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax.models.clip import CLIP, CLIPConfig, CLIPText, CLIPTextConfig
from proxy_jax.models.t5 import T5Config, T5Encoder
from proxy_jax.models.vit import ViT, ViTConfig
from proxy_jax.weights import clip, t5, vit
from proxy_jax.weights.golden import Case, Comparison, Describe, Run, nhwc
from proxy_jax.weights.hub import config_from
from proxy_jax.weights.table import Table, load
from proxy_jax.weights.tensors import open_tensors

TOLERANCE = 2e-5
T5_TOLERANCE = 3e-5
LOGITS_TOLERANCE = 1e-4
INTERPOLATED_TOLERANCE = 5e-5
BIAS_ROW_STEP = 37  # the T5 case keeps every 37th query row of the first head's bias


def _load(case: Case, model_class: type[nnx.Module], config, table: Table, **options) -> nnx.Module:
    return load(lambda: model_class(config, rngs=nnx.Rngs(0), **options), table, open_tensors(case.weights), source=str(case.weights))


def _comparisons(io: dict[str, np.ndarray], ours: dict[str, jax.Array], tolerance: float) -> list[Comparison]:
    return [Comparison(name, np.asarray(value), io[name], tolerance) for name, value in ours.items()]


def clip_text(case: Case) -> list[Comparison]:
    """CLIPTextModelWithProjection, called without a mask as diffusers does."""
    config, io = config_from(CLIPTextConfig, case.config), case.io
    model = _load(case, CLIPText, config, clip.text_table(config))
    out = model(io["input_ids"])
    ours = {
        "hidden_0": model.embed(io["input_ids"]),
        "hidden_penultimate": out.penultimate,
        "last_hidden_state": out.last_hidden,
        "pooled": out.pooled,
        "text_embeds": out.text_embeds,
    }
    return _comparisons(io, ours, TOLERANCE)


def clip_model(case: Case) -> list[Comparison]:
    """CLIPModel: the vision tower, both features, and the similarity logits."""
    config, io = config_from(CLIPConfig, case.config), case.io
    model = _load(case, CLIP, config, clip.table(config))
    vision = model.vision(nhwc(io["pixel_values"]))
    image = model.vision_projection(vision.pooled)
    text = model.text_features(io["input_ids"], io["attention_mask"])
    image_embeds, text_embeds = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    ours = {
        "vision_last_hidden": vision.last_hidden,
        "vision_pooled": vision.pooled,
        "image_features": image,
        "text_features": text,
        "image_embeds": image_embeds,
        "text_embeds": text_embeds,
    }
    logits = jnp.exp(model.logit_scale[...]) * image_embeds @ text_embeds.T
    return _comparisons(io, ours, TOLERANCE) + _comparisons(io, {"logits_per_image": logits}, LOGITS_TOLERANCE)


def t5_encoder(case: Case) -> list[Comparison]:
    """T5EncoderModel with its mask (LlamaGen) and without (SD3)."""
    config, io = config_from(T5Config, case.config), case.io
    model = _load(case, T5Encoder, config, t5.table(config))
    ids = io["input_ids"]
    ours = {
        "out_mask": model(ids, io["attention_mask"]),
        "out_nomask": model(ids),
        "position_bias": model.position_bias(ids.shape[1])[:, :1, ::BIAS_ROW_STEP],
    }
    return _comparisons(io, ours, T5_TOLERANCE)


def _vit(case: Case, rules: dict[str, str], rest: dict[str, str]) -> list[Comparison]:
    """rules: the array of the class row at the other image size -> the interpolation rule; rest: the same for all rows."""
    config, io = config_from(ViTConfig, case.config), case.io
    models = {rule: _load(case, ViT, config, vit.table(config), interpolation=rule) for rule in rules.values()}
    native = next(iter(models.values()))(nhwc(io["pixels_native"]))
    other = {rule: model(nhwc(io["pixels_other"])) for rule, model in models.items()}
    interpolated = {name: other[rule][:, 0] for name, rule in rules.items()} | {name: other[rule] for name, rule in rest.items()}
    comparisons = _comparisons(io, {"last_hidden_native": native, "cls_native": native[:, 0]}, TOLERANCE)
    # The official code has had two rules of interpolation, and a case may hold what either gives; of one it must.
    held = {name: array for name, array in interpolated.items() if name in io}
    return comparisons + _comparisons(io, held or interpolated, INTERPOLATED_TOLERANCE)


def dino_vit(case: Case) -> list[Comparison]:
    """ViTModel at its own image size, and at another one by both interpolation rules."""
    return _vit(case, {"cls_other_size": "size", "cls_other_dino": "scale"}, {"last_hidden_other_dino": "scale"})


def dinov2(case: Case) -> list[Comparison]:
    """Dinov2Model at its own image size, and at another one by both interpolation rules."""
    return _vit(case, {"cls_other_size": "size", "cls_other_scale": "scale"}, {})


KINDS: dict[str, Run] = {
    "clip_text_l": clip_text,
    "clip_text_g": clip_text,
    "clip_model": clip_model,
    "t5_encoder": t5_encoder,
    "dino_vit": dino_vit,
    "dinov2": dinov2,
}


def describe_clip_text(values: dict, *, projection: bool):
    """The CLIP text tower of a full-size listing."""
    config = config_from(CLIPTextConfig, values)
    return lambda: CLIPText(config, projection=projection, rngs=nnx.Rngs(0)), clip.text_table(config, projection=projection)


def describe_clip(values: dict):
    """The CLIP of a full-size listing."""
    config = config_from(CLIPConfig, values)
    return lambda: CLIP(config, rngs=nnx.Rngs(0)), clip.table(config)


def describe_t5(values: dict):
    """The T5 encoder of a full-size listing."""
    config = config_from(T5Config, values)
    return lambda: T5Encoder(config, rngs=nnx.Rngs(0)), t5.table(config)


def describe_vit(values: dict):
    """The ViT or DINOv2 of a full-size listing."""
    config = config_from(ViTConfig, values)
    return lambda: ViT(config, rngs=nnx.Rngs(0)), vit.table(config)


# SDXL's first text encoder is a CLIPTextModel; SD3's, and the second of both, have a projection. Nothing in their configs says so.
MANIFESTS: dict[str, Describe] = {
    r"sdxl_text_encoder": functools.partial(describe_clip_text, projection=False),
    r"sd3_text_encoder|sd(3|xl)_text_encoder_2": functools.partial(describe_clip_text, projection=True),
    r"sd3_text_encoder_3|.*t5.*_encoder": describe_t5,
    r"clip_vit_.*": describe_clip,
    r"dino_vits?.*|dinov2_.*": describe_vit,
}
