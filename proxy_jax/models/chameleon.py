"""Chameleon: a decoder over text and image tokens alike (Meta, arXiv 2405.09818), whose tuned form is Lumina-mGPT (arXiv 2408.02657).

As in the official code, queries and keys are normalised per head before they are rotated. Sequences may begin with padding: positions
count from the first valid token, and padding is attended to by itself alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax.models import decoder
from proxy_jax.models.decoder import Block, Cache, segments_of
from proxy_jax.models.layers import Compute, Dense, Embed, RMSNorm, rotate_halves, stack, tokens, with_subjects


@dataclasses.dataclass(frozen=True)
class ChameleonConfig:
    """Field names as in the official config.json, but the last, which no official config tells (weights/chameleon.py)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None  # None: as many as there are heads
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    attention_bias: bool = False
    mlp_bias: bool = False
    swin_norm: bool = False
    tie_word_embeddings: bool = False
    qk_norm_rows: int = 1  # of the norms of queries and keys: 1 in Lumina-mGPT 7B, one a head in transformers

    def __post_init__(self):
        known = dict(num_key_value_heads=self.num_attention_heads, hidden_act="silu")
        known |= dict(attention_bias=False, mlp_bias=False, swin_norm=False, tie_word_embeddings=False)
        other = {name: getattr(self, name) for name, value in known.items() if getattr(self, name) not in (value, None)}
        if other:
            raise ValueError(f"Chameleon 7B is known, which has {known}; this one has {other}")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads


def rope_table(positions: jax.Array, head_dim: int, theta: float) -> jax.Array:
    """(cos, sin) of positions [..., length]: [..., length, head_dim/2, 2] in float32."""
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def positions_of(prompt_mask: jax.Array, length: int) -> jax.Array:
    """Positions [batch, length], counted from the first valid token; prompt_mask [batch, slots]: 1 on the valid slots, which come last."""
    padding = prompt_mask.shape[1] - prompt_mask.astype(jnp.int32).sum(1)
    return jnp.maximum(jnp.arange(length) - padding[:, None], 0)


class Chameleon(nnx.Module):
    """The decoder with its token embedding and output head."""

    def __init__(self, config: ChameleonConfig, *, compute: Compute = Compute(), rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        c = config

        def block(rngs: nnx.Rngs) -> Block:
            options = dict(eps=c.rms_norm_eps, rotate=rotate_halves, head_norm_rows=c.qk_norm_rows)
            return Block(c.hidden_size, c.intermediate_size, c.num_attention_heads, **options, rngs=rngs)

        self.token_embed = Embed(c.vocab_size, c.hidden_size, rngs=rngs)
        self.subject_embed = nnx.data(None)
        self.blocks = stack(block, c.num_hidden_layers, rngs)
        self.norm = RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.head = Dense(c.hidden_size, c.vocab_size, bias=False, axes=("embed", "vocab"), rngs=rngs)

    def embed(self, ids: jax.Array, subject_rows: jax.Array | None = None) -> jax.Array:
        """[batch, length, hidden_size] of token ids [batch, length]; subject_rows: as in `with_subjects`, where the model has learned any."""
        x = self.token_embed(ids, self.compute.dtype)
        learned = self.subject_embed is not None and subject_rows is not None
        return tokens(with_subjects(x, self.subject_embed, subject_rows) if learned else x)

    def rope(self, positions: jax.Array) -> jax.Array:
        """The rotary table of positions [batch, length]."""
        return rope_table(positions, self.config.head_dim, self.config.rope_theta)

    def hidden_states(self, x: jax.Array, prompt_mask: jax.Array, *, dropout_rate: float = 0.0, keys: jax.Array | None = None) -> jax.Array:
        """Normed final states [batch, length, hidden_size] of embedded tokens x, of the same shape.

        prompt_mask [batch, slots]: 1 on the valid ones of the first slots; padding comes before them. dropout_rate is the official
        residual dropout (0.05 in Lumina-mGPT's training); none without `keys` [batch].
        """
        length = x.shape[1]
        rope, segments = self.rope(positions_of(prompt_mask, length)), segments_of(prompt_mask, length)
        return self.norm(decoder.run(self.blocks, x, rope, segments, compute=self.compute, dropout_rate=dropout_rate, keys=keys))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 next-token logits [..., vocab_size] of final states."""
        return self.head(hidden).astype(jnp.float32)

    def init_cache(self, batch: int, length: int) -> Cache:
        """Empty keys and values, each [layers, batch, length, heads, head_dim]."""
        return decoder.empty_cache(self.blocks, batch, length, self.compute.dtype)

    def extend(self, x: jax.Array, cache: Cache, slot: jax.Array | int, prompt_mask: jax.Array) -> tuple[jax.Array, Cache]:
        """Runs embedded tokens x [batch, n, hidden_size] in the cache's slots `slot`..; returns normed states and the cache with them in it.

        prompt_mask: as in `hidden_states`.
        """
        length, rows = cache[0].shape[2], slot + jnp.arange(x.shape[1])
        rope = self.rope(positions_of(prompt_mask, length)[:, rows])
        x, cache = decoder.extend(self.blocks, x, cache, slot, rope, segments_of(prompt_mask, length), compute=self.compute)
        return self.norm(x), cache
