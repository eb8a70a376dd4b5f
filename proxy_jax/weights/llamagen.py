"""LlamaGen's tensor names (autoregressive/models/gpt.py)."""

from proxy_jax.models.llamagen import LlamaGenConfig
from proxy_jax.weights.table import Table, embed, layers, linear, norm, param


def table(config: LlamaGenConfig) -> Table:
    """The name table of a LlamaGen of any size."""
    if config.model_type == "t2i":
        condition = [
            *linear("cls_embedding.cap_proj.fc1", "caption_in", bias=False),
            *linear("cls_embedding.cap_proj.fc2", "caption_out", bias=False),
            *param("cls_embedding.uncond_embedding", "unconditional"),
        ]
    else:
        condition = embed("cls_embedding.embedding_table", "class_embed")
    blocks = [
        *norm("layers.{l}.attention_norm", "blocks.attention_norm", bias=False),
        *(e for i, name in enumerate("qkv") for e in linear("layers.{l}.attention.wqkv", f"blocks.{name}", bias=False, part=(i, 3))),
        *linear("layers.{l}.attention.wo", "blocks.o", bias=False),
        *norm("layers.{l}.ffn_norm", "blocks.ffn_norm", bias=False),
        *linear("layers.{l}.feed_forward.w1", "blocks.gate", bias=False),
        *linear("layers.{l}.feed_forward.w3", "blocks.up", bias=False),
        *linear("layers.{l}.feed_forward.w2", "blocks.down", bias=False),
    ]
    entries = [
        *condition,
        *embed("tok_embeddings", "token_embed"),
        *layers(range(config.n_layer), blocks),
        *norm("norm", "norm", bias=False),
        *linear("output", "head", bias=False),
    ]
    return Table(tuple(entries), ignored=("freqs_cis", r"layers\.\d+\.attention\.kv_cache\..*", "causal_mask"))
