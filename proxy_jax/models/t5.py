"""T5's encoder, version 1.1 (Raffel et al., arXiv 1910.10683; Shazeer, arXiv 2002.05202 for the gated MLP), as transformers lays it out.

No position embedding, no biases, and attention without 1/sqrt(d): one table of relative-position biases serves every layer.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from proxy_jax.models.attention import Segments, attention, key_segments
from proxy_jax.models.layers import Compute, Dense, Embed, RMSNorm, scan_layers, stack, tokens
from proxy_jax.sharding import constrain


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Field names as in the official config.json. Raises ValueError unless feed_forward_proj is "gated-gelu"."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    feed_forward_proj: str
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    def __post_init__(self):
        if self.feed_forward_proj != "gated-gelu":
            raise ValueError(f"feed_forward_proj {self.feed_forward_proj!r}: only 'gated-gelu' (T5 1.1, flan-T5) is supported")


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket [query, key] of the distance key - query: keys after the query in the upper half, exact when near, then logarithmic."""
    half = num_buckets // 2
    exact = half // 2
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    size = np.abs(distance)
    # float32 throughout: a distance on a bucket's edge must fall on the side where the official code puts it
    ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(np.log(max_distance / exact))
    far = exact + (ratio * np.float32(half - exact)).astype(np.int32)
    return np.where(distance > 0, half, 0) + np.where(size < exact, size, np.minimum(far, half - 1))


class Block(nnx.Module):
    """Pre-norm attention and gated MLP; heads * d_kv may differ from d_model."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        width, inner = config.d_model, config.num_heads * config.d_kv
        self.attention_norm = RMSNorm(width, eps=config.layer_norm_epsilon)
        self.q = Dense(width, inner, bias=False, axes=("embed", "heads"), rngs=rngs)
        self.k = Dense(width, inner, bias=False, axes=("embed", "heads"), rngs=rngs)
        self.v = Dense(width, inner, bias=False, axes=("embed", "heads"), rngs=rngs)
        self.o = Dense(inner, width, bias=False, axes=("heads", "embed"), rngs=rngs)
        self.mlp_norm = RMSNorm(width, eps=config.layer_norm_epsilon)
        self.gate = Dense(width, config.d_ff, bias=False, axes=("embed", "mlp"), rngs=rngs)
        self.up = Dense(width, config.d_ff, bias=False, axes=("embed", "mlp"), rngs=rngs)
        self.down = Dense(config.d_ff, width, bias=False, axes=("mlp", "embed"), rngs=rngs)
        self.num_heads = config.num_heads

    def __call__(self, x: jax.Array, bias: jax.Array, segments: Segments | None) -> jax.Array:
        y = self.attention_norm(x)
        q, k, v = (rearrange(layer(y), "b l (h d) -> b l h d", h=self.num_heads) for layer in (self.q, self.k, self.v))
        q, k, v = (constrain(part, "batch", "length", "act_heads", "head_dim") for part in (q, k, v))
        x = x + self.o(rearrange(attention(q, k, v, bias=bias, segments=segments, scale=1.0), "b l h d -> b l (h d)"))
        y = self.mlp_norm(x)
        y = jax.nn.gelu(self.gate(y), approximate=True) * self.up(y)
        return tokens(x + self.down(constrain(y, "batch", "length", "act_mlp")))


class T5Encoder(nnx.Module):
    """The encoder half of T5."""

    def __init__(self, config: T5Config, *, compute: Compute = Compute(), rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        self.token_embed = Embed(config.vocab_size, config.d_model, rngs=rngs)
        self.relative_bias = Embed(config.relative_attention_num_buckets, config.num_heads, axes=("position", "heads"), rngs=rngs)
        self.blocks = stack(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs)
        self.norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon)

    def position_bias(self, length: int) -> jax.Array:
        """Float32 bias [1, heads, length, length] that every layer adds to its attention scores."""
        c = self.config
        buckets = relative_buckets(length, c.relative_attention_num_buckets, c.relative_attention_max_distance)
        return rearrange(self.relative_bias(jnp.asarray(buckets)), "q k h -> 1 h q k")

    def __call__(self, input_ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normed states [b, l, d_model] of input_ids [b, l]; mask [b, l]: 1 on the tokens to attend to, all by default (as SD3 calls it)."""
        x = tokens(self.token_embed(input_ids, self.compute.dtype))
        bias = self.position_bias(input_ids.shape[1])
        segments = None if mask is None else key_segments(mask, input_ids.shape[1])
        x, _ = scan_layers(self.blocks, lambda block, x, _: (block(x, bias, segments), None), x, compute=self.compute)
        return self.norm(x)
