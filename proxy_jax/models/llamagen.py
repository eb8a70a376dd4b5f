"""LlamaGen: a Llama-style decoder that draws images token by token (Sun et al., arXiv 2406.06525; autoregressive/models/gpt.py).

The sequence is `cls_token_num` condition slots (120 projected T5 features, or 1 class embedding) followed by the image's
codes in raster order. Token 0 is predicted from the last condition slot. The 2-D rotary table covers image positions only:
condition slots have an all-zero table, so their queries and keys vanish. That is how the published weights were trained.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax.models import decoder, parameters
from proxy_jax.models.decoder import Block, Cache, segments_of
from proxy_jax.models.layers import Buffer, Compute, Dense, Embed, RMSNorm, dropout, rotate_pairs, split_keys, stack, tokens


@dataclasses.dataclass(frozen=True)
class LlamaGenConfig:
    """Field names as in the official ModelArgs."""

    dim: int
    n_layer: int
    n_head: int
    vocab_size: int = 16384
    model_type: str = "t2i"  # "t2i": T5 features; "c2i": a class label
    caption_dim: int = 2048
    cls_token_num: int = 120
    num_classes: int = 1000
    multiple_of: int = 256
    norm_eps: float = 1e-5
    rope_base: float = 10000.0

    def __post_init__(self):
        if self.model_type not in ("t2i", "c2i"):
            raise ValueError(f"model_type is 't2i' or 'c2i', not {self.model_type!r}")

    @property
    def hidden_dim(self) -> int:
        """Width of the SwiGLU: 2/3 of 4·dim, rounded up to `multiple_of`."""
        return self.multiple_of * math.ceil(int(2 * 4 * self.dim / 3) / self.multiple_of)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.n_head


VARIANTS = {
    name: LlamaGenConfig(dim=dim, n_layer=n_layer, n_head=n_head)
    for name, n_layer, n_head, dim in (("B", 12, 12, 768), ("L", 24, 16, 1024), ("XL", 36, 20, 1280), ("XXL", 48, 24, 1536), ("3B", 24, 32, 3200))
}


def rope_table(grid: int, head_dim: int, num_condition: int, base: float = 10000.0) -> jax.Array:
    """(cos, sin) for `num_condition` zero rows and grid² image rows: [num_condition + grid², head_dim/2, 2] in float32.

    The first half of the pairs turns with the row, the second with the column.
    """
    half = head_dim // 2
    frequencies = 1.0 / base ** (np.arange(0, half, 2, dtype=np.float32)[: half // 2] / half)
    angles = np.outer(np.arange(grid, dtype=np.float32), frequencies)
    rows, columns = np.broadcast_to(angles[:, None], (grid, grid, half // 2)), np.broadcast_to(angles[None], (grid, grid, half // 2))
    image = np.concatenate([rows, columns], axis=-1).reshape(grid * grid, half)
    table = np.stack([np.cos(image), np.sin(image)], axis=-1)
    return jnp.asarray(np.concatenate([np.zeros((num_condition, half, 2)), table]), jnp.float32)


class LlamaGen(nnx.Module):
    """The decoder with its condition embedder, token embedding and output head."""

    def __init__(self, config: LlamaGenConfig, *, compute: Compute = Compute(), rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        dim = config.dim
        if config.model_type == "t2i":
            self.caption_in = Dense(config.caption_dim, dim, bias=False, axes=("embed", "mlp"), rngs=rngs)
            self.caption_out = Dense(dim, dim, bias=False, axes=("mlp", "embed"), rngs=rngs)
            unconditional = parameters.initial(jax.random.normal, rngs, (config.cls_token_num, config.caption_dim)) / config.caption_dim**0.5
            self.unconditional = Buffer(unconditional, axes=("position", "embed"))
            self.subject_embed = nnx.data(None)
        else:
            self.class_embed = Embed(config.num_classes + 1, dim, rngs=rngs)
        self.token_embed = Embed(config.vocab_size, dim, rngs=rngs)
        self.blocks = stack(
            lambda rngs: Block(dim, config.hidden_dim, config.n_head, eps=config.norm_eps, rotate=rotate_pairs, rngs=rngs), config.n_layer, rngs
        )
        self.norm = RMSNorm(dim, eps=config.norm_eps)
        self.head = Dense(dim, config.vocab_size, bias=False, axes=("embed", "vocab"), rngs=rngs)

    def embed_condition(self, condition: jax.Array, drop: jax.Array | None = None) -> jax.Array:
        """[batch, cls_token_num, dim] from T5 features [batch, cls_token_num, caption_dim] or class labels [batch].

        drop [batch] (True): the unconditional embedding instead.
        """
        if self.config.model_type == "c2i":
            label = condition if drop is None else jnp.where(drop, self.config.num_classes, condition)
            return self.class_embed(label, self.compute.dtype)[:, None]
        if drop is not None:
            condition = jnp.where(drop[:, None, None], self.unconditional[...].astype(condition.dtype), condition)
        x = condition.astype(self.compute.dtype)
        return self.caption_out(jax.nn.gelu(self.caption_in(x), approximate=True))

    def rope(self, grid: int) -> jax.Array:
        """The rotary table of the whole sequence for a grid × grid image."""
        return rope_table(grid, self.config.head_dim, self.config.cls_token_num, self.config.rope_base)

    def hidden_states(
        self,
        condition: jax.Array,
        condition_mask: jax.Array,
        image_tokens: jax.Array,
        *,
        grid: int,
        drop: jax.Array | None = None,
        dropout_rate: float = 0.0,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Normed final states [batch, cls_token_num + n, dim] for a condition and the first n image tokens [batch, n].

        condition_mask [batch, cls_token_num]: 1 on valid slots. grid: side of the token grid. `drop` as in embed_condition.
        dropout_rate is the official resid/ffn/token dropout; no dropout without `keys` [batch].
        """
        keys_tokens, keys_layers = split_keys(keys, 2)
        x = jnp.concatenate([self.embed_condition(condition, drop), self.token_embed(image_tokens, self.compute.dtype)], axis=1)
        x = dropout(tokens(x), dropout_rate, keys_tokens)
        length = x.shape[1]
        segments = segments_of(condition_mask, length)
        x = decoder.run(self.blocks, x, self.rope(grid)[:length], segments, compute=self.compute, dropout_rate=dropout_rate, keys=keys_layers)
        return self.norm(x)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 next-token logits [..., vocab_size] of final states."""
        return self.head(hidden).astype(jnp.float32)

    def init_cache(self, batch: int, length: int) -> Cache:
        """Empty keys and values, each [layers, batch, length, heads, head_dim]."""
        return decoder.empty_cache(self.blocks, batch, length, self.compute.dtype)

    def extend(self, x: jax.Array, cache: Cache, position: jax.Array | int, rope: jax.Array, segments: jax.Array) -> tuple[jax.Array, Cache]:
        """Runs embedded slots x [batch, n, dim] at `position`.. against the cache; returns normed states and the cache with them in it.

        rope: the whole sequence's table; segments [batch, cache_length]: the whole sequence's too (decoder.segments_of).
        """
        rope = jax.lax.dynamic_slice_in_dim(rope, position, x.shape[1])
        x, cache = decoder.extend(self.blocks, x, cache, position, rope, segments, compute=self.compute)
        return self.norm(x), cache
