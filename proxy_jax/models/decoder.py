"""The Llama-style decoder that the autoregressive students are: pre-norm attention with rotary embeddings, SwiGLU, a key-value cache.

A model is a `stack` of Blocks between its own embeddings and head. Sequences begin with condition slots, some of which may be padding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.attention import attention
from proxy_jax.models.layers import Compute, Dense, LayerNorm, RMSNorm, dropout, scan_layers, split_keys, tokens
from proxy_jax.sharding import constrain

Cache = tuple[jax.Array, jax.Array]  # keys and values, each [layers, batch, length, heads, head_dim]


class HeadNorm(nnx.Module):
    """Layer normalisation of each head [..., heads, head_dim] over its own channels.

    rows: how many scales and biases there are; equal runs of heads share one (Chameleon has one for each shard it was trained in).
    """

    def __init__(self, rows: int, head_dim: int):
        self.norm = LayerNorm(head_dim, eps=1e-5, affine=False)
        self.scale = nnx.Param(jnp.ones((rows, head_dim)), axes=("scalar", "head_dim"))
        self.bias = nnx.Param(jnp.zeros((rows, head_dim)), axes=("scalar", "head_dim"))

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = (jnp.repeat(value[...], x.shape[-2] // value.shape[0], axis=0) for value in (self.scale, self.bias))
        return (self.norm(x.astype(jnp.float32)) * scale + bias).astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm attention and SwiGLU.

    rotate: the rotary embedding, a function of (x, table) in layers.py. head_norm_rows: of the HeadNorm of queries and keys; 0: there is none.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        n_head: int,
        *,
        eps: float,
        rotate: Callable[[jax.Array, jax.Array], jax.Array],
        head_norm_rows: int = 0,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = RMSNorm(dim, eps=eps)
        self.q = Dense(dim, dim, bias=False, axes=("embed", "heads"), rngs=rngs)
        self.k = Dense(dim, dim, bias=False, axes=("embed", "heads"), rngs=rngs)
        self.v = Dense(dim, dim, bias=False, axes=("embed", "heads"), rngs=rngs)
        self.q_norm = HeadNorm(head_norm_rows, dim // n_head) if head_norm_rows else None
        self.k_norm = HeadNorm(head_norm_rows, dim // n_head) if head_norm_rows else None
        self.o = Dense(dim, dim, bias=False, axes=("heads", "embed"), rngs=rngs)
        self.ffn_norm = RMSNorm(dim, eps=eps)
        self.gate = Dense(dim, hidden_dim, bias=False, axes=("embed", "mlp"), rngs=rngs)
        self.up = Dense(dim, hidden_dim, bias=False, axes=("embed", "mlp"), rngs=rngs)
        self.down = Dense(hidden_dim, dim, bias=False, axes=("mlp", "embed"), rngs=rngs)
        self.n_head, self.rotate = n_head, rotate

    def qkv(self, x: jax.Array, rope: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rotated queries, rotated keys and values, each [batch, length, heads, head_dim]."""
        x = self.attention_norm(x)
        q, k, v = (rearrange(layer(x), "b l (h d) -> b l h d", h=self.n_head) for layer in (self.q, self.k, self.v))
        q, k, v = (constrain(y, "batch", "length", "act_heads", "head_dim") for y in (q, k, v))
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return self.rotate(q, rope), self.rotate(k, rope), v

    def finish(self, x: jax.Array, attended: jax.Array, rate: float = 0.0, keys: jax.Array | None = None) -> jax.Array:
        """The residual stream after attention's output and the MLP."""
        keys_attention, keys_mlp = split_keys(keys, 2)
        x = tokens(x + dropout(tokens(self.o(rearrange(attended, "b l h d -> b l (h d)"))), rate, keys_attention))
        y = self.ffn_norm(x)
        y = constrain(jax.nn.silu(self.gate(y)) * self.up(y), "batch", "length", "act_mlp")
        return tokens(x + dropout(tokens(self.down(y)), rate, keys_mlp))


def segments_of(condition_mask: jax.Array, length: int) -> jax.Array:
    """Segment ids [batch, length] for `attention`: 0 on what is valid, and one of its own on each padded slot, which sees itself alone.

    condition_mask [batch, slots]: 1 on the valid ones of the first slots; all after them are valid.
    """
    padding = jnp.pad(~condition_mask.astype(bool), ((0, 0), (0, length - condition_mask.shape[1])))
    return jnp.where(padding, jnp.arange(1, length + 1, dtype=jnp.int32), 0)


def run(
    blocks: nnx.Module,
    x: jax.Array,
    rope: jax.Array,
    segments: jax.Array,
    *,
    compute: Compute,
    dropout_rate: float = 0.0,
    keys: jax.Array | None = None,
) -> jax.Array:
    """The residual stream [batch, length, dim] after all layers; segments [batch, length] as `segments_of` gives them.

    dropout_rate: of each branch's output; no dropout without `keys` [batch].
    """
    layer_keys = None if keys is None else split_keys(keys, _depth(blocks))

    def body(block: Block, x: jax.Array, keys: jax.Array | None):
        q, k, v = block.qkv(x, rope)
        return block.finish(x, attention(q, k, v, segments=(segments, segments), start=0), dropout_rate, keys), None

    return scan_layers(blocks, body, x, layer_keys, compute=compute)[0]


def empty_cache(blocks: nnx.Module, batch: int, length: int, dtype: Any) -> Cache:
    """Keys and values of no slot yet."""
    layers, _, dim = parameters.value(blocks.q.kernel).shape
    shape = (layers, batch, length, blocks.n_head, dim // blocks.n_head)
    empty = constrain(jnp.zeros(shape, dtype), "layers", "batch", "length", "act_heads", "head_dim")
    return empty, empty


def extend(
    blocks: nnx.Module, x: jax.Array, cache: Cache, position: jax.Array | int, rope: jax.Array, segments: jax.Array, *, compute: Compute
) -> tuple[jax.Array, Cache]:
    """Runs slots x [batch, n, dim] at `position`.. against the cache; returns the residual stream after all layers and the cache with them in it.

    rope: the table of the n slots; segments [batch, cache_length] as `segments_of` gives them.
    """
    n = x.shape[1]
    own = jax.lax.dynamic_slice_in_dim(segments, position, n, axis=1)
    seen = position + n if isinstance(position, int) else segments.shape[1]  # what comes later is not even read, where that is known

    def body(block: Block, carry, layer: jax.Array):
        x, keys, values = carry
        q, k, v = block.qkv(x, rope)
        keys = jax.lax.dynamic_update_slice(keys, k[None], (layer, 0, position, 0, 0))
        values = jax.lax.dynamic_update_slice(values, v[None], (layer, 0, position, 0, 0))
        attended = attention(q, keys[layer, :, :seen], values[layer, :, :seen], segments=(own, segments[:, :seen]), start=position)
        return (block.finish(x, attended), keys, values), None

    (x, *cache), _ = scan_layers(blocks, body, (x, *cache), jnp.arange(_depth(blocks)), compute=compute)
    return x, tuple(cache)


def _depth(blocks: nnx.Module) -> int:
    return parameters.value(blocks.q.kernel).shape[0]
