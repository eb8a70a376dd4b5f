"""ViT's and DINOv2's tensor names (transformers' ViTModel and Dinov2Model)."""

from proxy_jax.models.vit import ViTConfig
from proxy_jax.weights.table import Entry, Table, conv, layers, linear, norm, param


def table(config: ViTConfig) -> Table:
    """The name table of a `ViT`: DINOv2's names where the config has a layerscale_value. A pooler is passed over."""
    dinov2 = config.layerscale_value is not None
    entries = [
        *param("embeddings.cls_token", "class_embed"),
        *param("embeddings.position_embeddings", "position_embed"),
        *conv("embeddings.patch_embeddings.projection", "patch"),
        *layers(range(config.num_hidden_layers), _attention(config) + (_dinov2() if dinov2 else _vit())),
        *norm("layernorm", "norm"),
    ]
    if dinov2:
        entries += param("embeddings.mask_token", "mask_token")
    return Table(tuple(entries), ignored=(r"pooler\..*",), renames=((r"^dinov2\." if dinov2 else r"^vit\.", ""),))


def _attention(config: ViTConfig) -> list[Entry]:
    attention = "encoder.layer.{l}.attention."
    qkv = [e for name in ("query", "key", "value") for e in linear(f"{attention}attention.{name}", f"blocks.{name[0]}", bias=config.qkv_bias)]
    return qkv + linear(f"{attention}output.dense", "blocks.o")


def _vit() -> list[Entry]:
    return [
        *norm("encoder.layer.{l}.layernorm_before", "blocks.attention_norm"),
        *norm("encoder.layer.{l}.layernorm_after", "blocks.mlp_norm"),
        *linear("encoder.layer.{l}.intermediate.dense", "blocks.fc1"),
        *linear("encoder.layer.{l}.output.dense", "blocks.fc2"),
    ]


def _dinov2() -> list[Entry]:
    return [
        *norm("encoder.layer.{l}.norm1", "blocks.attention_norm"),
        *norm("encoder.layer.{l}.norm2", "blocks.mlp_norm"),
        *linear("encoder.layer.{l}.mlp.fc1", "blocks.fc1"),
        *linear("encoder.layer.{l}.mlp.fc2", "blocks.fc2"),
        *param("encoder.layer.{l}.layer_scale1.lambda1", "blocks.attention_scale"),
        *param("encoder.layer.{l}.layer_scale2.lambda1", "blocks.mlp_scale"),
    ]
