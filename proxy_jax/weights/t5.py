"""T5's tensor names (transformers' T5EncoderModel, or the encoder half of a whole T5)."""

from collections.abc import Collection

from proxy_jax.models.t5 import T5Config
from proxy_jax.weights.table import Table, embed, layers, linear, norm

SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"


def table(config: T5Config, *, names: Collection[str] = ()) -> Table:
    """The name table of a `T5Encoder`. A whole T5's decoder and head are passed over.

    The token embedding has two names. It is read as shared.weight and written under both; a file that holds it only as
    encoder.embed_tokens.weight needs `names`, the file's tensor names.
    """
    source, copy = (TIED, SHARED) if TIED in names and SHARED not in names else (SHARED, TIED)
    attention, mlp = "encoder.block.{l}.layer.0.", "encoder.block.{l}.layer.1."
    blocks = [
        *norm(f"{attention}layer_norm", "blocks.attention_norm", bias=False),
        *(e for name in "qkvo" for e in linear(f"{attention}SelfAttention.{name}", f"blocks.{name}", bias=False)),
        *norm(f"{mlp}layer_norm", "blocks.mlp_norm", bias=False),
        *linear(f"{mlp}DenseReluDense.wi_0", "blocks.gate", bias=False),
        *linear(f"{mlp}DenseReluDense.wi_1", "blocks.up", bias=False),
        *linear(f"{mlp}DenseReluDense.wo", "blocks.down", bias=False),
    ]
    entries = [
        *embed(source.removesuffix(".weight"), "token_embed"),
        *embed("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "relative_bias"),
        *layers(range(config.num_layers), blocks),
        *norm("encoder.final_layer_norm", "norm", bias=False),
    ]
    return Table(tuple(entries), ignored=(r"decoder\..*", r"lm_head\.weight"), copies={copy: source})
