"""Chameleon's tensor names: Lumina-mGPT's and transformers' ChameleonForConditionalGeneration, which differ in the norms of queries and keys."""

from collections.abc import Mapping
from typing import Any

from proxy_jax.models.chameleon import ChameleonConfig
from proxy_jax.weights.hub import config_from
from proxy_jax.weights.region import CheckpointError
from proxy_jax.weights.table import Table, Tensors, embed, layers, linear, norm

VQ_PREFIX = "model.vqmodel."  # the image tokenizer's encoder, which transformers keeps beside the decoder (weights/chameleon_vqgan.py)


def table(config: ChameleonConfig) -> Table:
    """The name table of a Chameleon of any size."""
    attention, mlp = "model.layers.{l}.self_attn.", "model.layers.{l}.mlp."
    blocks = [
        *norm("model.layers.{l}.input_layernorm", "blocks.attention_norm", bias=False),
        *(entry for name in "qkvo" for entry in linear(f"{attention}{name}_proj", f"blocks.{name}", bias=False)),
        *norm(f"{attention}q_norm", "blocks.q_norm"),
        *norm(f"{attention}k_norm", "blocks.k_norm"),
        *norm("model.layers.{l}.post_attention_layernorm", "blocks.ffn_norm", bias=False),
        *(entry for name in ("gate", "up", "down") for entry in linear(f"{mlp}{name}_proj", f"blocks.{name}", bias=False)),
    ]
    entries = [
        *embed("model.embed_tokens", "token_embed"),
        *layers(range(config.num_hidden_layers), blocks),
        *norm("model.norm", "norm", bias=False),
        *linear("lm_head", "head", bias=False),
    ]
    return Table(tuple(entries), ignored=(r"model\.vqmodel\..*", r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"))


def read_config(content: Mapping[str, Any], tensors: Tensors) -> ChameleonConfig:
    """The sizes from an official config.json's content and, for the number of rows of the norms of queries and keys, the weights.

    Lumina-mGPT stores a row for each shard it was trained in (1 at 7B), transformers one for each head.
    """
    shapes, name = tensors.shapes(), "model.layers.0.self_attn.q_norm.weight"
    if name not in shapes:
        raise CheckpointError(f"no Chameleon decoder: it has no {name} but {', '.join(list(shapes)[:5])}, ...")
    rope = content.get("rope_parameters") or content  # transformers 5 and 4
    if content.get("rope_scaling") or rope.get("rope_type", "default") != "default":
        raise CheckpointError(f"a Chameleon with scaled rotary embeddings, which are not known: {content.get('rope_scaling') or rope}")
    return config_from(ChameleonConfig, {**content, "rope_theta": rope["rope_theta"], "qk_norm_rows": shapes[name][0]})
