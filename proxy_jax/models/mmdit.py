"""MMDiT: the transformer of Stable Diffusion 3 and 3.5 (Esser et al., arXiv 2403.03206; diffusers' SD3Transformer2DModel).

Image tokens (img) and text tokens (txt) have weights of their own and meet in one joint attention. A vector (vec), of the
timestep and the pooled text, shifts, scales and gates every sublayer. SD3.5 adds normalised queries and keys and, in its
first layers, a second attention over the image tokens alone. The last block needs no text output.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from proxy_jax.models.attention import attention
from proxy_jax.models.layers import ACTIVATIONS, Buffer, Compute, Conv, Dense, LayerNorm, RMSNorm, scan_layers, sinusoid, stack, tokens
from proxy_jax.sharding import constrain

EPS = 1e-6
TIME_WIDTH = 256  # of the timestep's sinusoid


@dataclasses.dataclass(frozen=True)
class SD3Config:
    """Field names as in the official config.json. Raises ValueError for layer patterns that no stack of equal blocks can hold."""

    num_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    caption_projection_dim: int
    pooled_projection_dim: int
    pos_embed_max_size: int
    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int = 16
    qk_norm: str | None = None  # None (SD3) or "rms_norm" (SD3.5)
    dual_attention_layers: tuple[int, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "dual_attention_layers", tuple(self.dual_attention_layers))
        if self.qk_norm not in (None, "rms_norm"):
            raise ValueError(f"qk_norm is None or 'rms_norm', not {self.qk_norm!r}")
        if self.caption_projection_dim != self.dim:
            raise ValueError(f"caption_projection_dim is {self.caption_projection_dim}, but the blocks are {self.dim} wide")
        dual = self.dual_attention_layers
        if sorted(dual) != list(range(len(dual))) or len(dual) >= self.num_layers:
            raise ValueError(f"dual_attention_layers must be the first ones and not the last of {self.num_layers} layers, got {dual}")

    @property
    def dim(self) -> int:
        """Width of the image and text tokens."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def num_dual(self) -> int:
        """How many layers, the first ones, have a second attention."""
        return len(self.dual_attention_layers)


def position_table(config: SD3Config) -> jax.Array:
    """The fixed position embedding [1, pos_embed_max_size², dim]: sines and cosines of the column, then of the row.

    The table's whole side spans as many units as a `sample_size` latent has patches.
    """
    side, quarter = config.pos_embed_max_size, config.dim // 4
    positions = np.arange(side) * ((config.sample_size // config.patch_size) / side)
    angles = np.outer(positions, 10000.0 ** -(np.arange(quarter) / quarter))
    line = jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1), jnp.float32)
    # In jnp, so that an abstract model makes no table: it is 0.9 GB in SD3.5-medium.
    columns = jnp.broadcast_to(line[None], (side, side, 2 * quarter))
    rows = jnp.broadcast_to(line[:, None], (side, side, 2 * quarter))
    return jnp.concatenate([columns, rows], axis=-1).reshape(1, side * side, 4 * quarter)


class MLP(nnx.Module):
    """Two dense layers with an activation (a key of layers.ACTIVATIONS) between."""

    def __init__(self, n_in: int, hidden: int, n_out: int, *, activation: str, rngs: nnx.Rngs):
        self.fc1 = Dense(n_in, hidden, axes=("embed", "mlp"), rngs=rngs)
        self.fc2 = Dense(hidden, n_out, axes=("mlp", "embed"), rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class Modulation(nnx.Module):
    """vec [batch, dim] -> `num` vectors, each [batch, 1, dim] in float32."""

    def __init__(self, dim: int, num: int, *, rngs: nnx.Rngs):
        self.dense = Dense(dim, num * dim, axes=("embed", "mlp"), rngs=rngs)
        self.num = num

    def __call__(self, vec: jax.Array) -> list[jax.Array]:
        # Layouts are fixed here and in `gated`: left to XLA's partitioner, their product came out wrong on a (2, 2, 2) mesh.
        return [tokens(part) for part in jnp.split(self.dense(jax.nn.silu(vec)).astype(jnp.float32)[:, None], self.num, axis=-1)]


def modulate(norm: Callable[[jax.Array], jax.Array], x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """norm(x) · (1 + scale) + shift, computed in float32, in x's dtype."""
    return (norm(x.astype(jnp.float32)) * (1 + scale) + shift).astype(x.dtype)


def gated(x: jax.Array, gate: jax.Array, y: jax.Array) -> jax.Array:
    """The residual x + gate · y, in x's dtype."""
    return tokens((x + gate * tokens(y)).astype(x.dtype))


class JointAttention(nnx.Module):
    """Multi-head attention over the image tokens and, if `txt`, the text tokens; `txt_out`: with an output for the text."""

    def __init__(self, config: SD3Config, *, txt: bool = True, txt_out: bool = True, rngs: nnx.Rngs):
        dim = config.dim
        self.heads = config.num_attention_heads

        def project() -> Dense:
            return Dense(dim, dim, axes=("embed", "heads"), rngs=rngs)

        def norm() -> RMSNorm | None:
            return RMSNorm(config.attention_head_dim, eps=EPS) if config.qk_norm else None

        self.img_q, self.img_k, self.img_v = project(), project(), project()
        self.img_q_norm, self.img_k_norm = norm(), norm()
        self.img_o = Dense(dim, dim, axes=("heads", "embed"), rngs=rngs)
        if txt:
            self.txt_q, self.txt_k, self.txt_v = project(), project(), project()
            self.txt_q_norm, self.txt_k_norm = norm(), norm()
        self.txt_o = Dense(dim, dim, axes=("heads", "embed"), rngs=rngs) if txt and txt_out else None

    def __call__(self, img: jax.Array, txt: jax.Array | None = None) -> tuple[jax.Array, jax.Array | None]:
        """img [b, n, dim], txt [b, l, dim] -> their updates; None for the text where it has no output."""
        q, k, v = self._heads(img, self.img_q, self.img_k, self.img_v, self.img_q_norm, self.img_k_norm)
        if txt is not None:
            txt_heads = self._heads(txt, self.txt_q, self.txt_k, self.txt_v, self.txt_q_norm, self.txt_k_norm)
            q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip((q, k, v), txt_heads, strict=True))
        x = rearrange(attention(q, k, v), "b l h d -> b l (h d)")
        n = img.shape[1]
        return self.img_o(x[:, :n]), None if self.txt_o is None else self.txt_o(x[:, n:])

    def _heads(self, x: jax.Array, q: Dense, k: Dense, v: Dense, q_norm: RMSNorm | None, k_norm: RMSNorm | None) -> list[jax.Array]:
        """Queries, keys and values [b, l, heads, head_dim] of tokens [b, l, dim]."""
        parts = []
        for dense, norm in ((q, q_norm), (k, k_norm), (v, None)):
            y = rearrange(dense(x), "b l (h d) -> b l h d", h=self.heads)
            y = constrain(y, "batch", "length", "act_heads", "head_dim")
            parts.append(y if norm is None else norm(y))
        return parts


class JointBlock(nnx.Module):
    """Joint attention and an MLP for each stream. dual: a second attention over the image. last: the text ends here."""

    def __init__(self, config: SD3Config, *, dual: bool = False, last: bool = False, rngs: nnx.Rngs):
        dim = config.dim
        self.dual, self.last = dual, last
        self.norm = LayerNorm(dim, eps=EPS, affine=False)
        self.img_modulation = Modulation(dim, 9 if dual else 6, rngs=rngs)
        self.txt_modulation = Modulation(dim, 2 if last else 6, rngs=rngs)
        self.attention = JointAttention(config, txt_out=not last, rngs=rngs)
        if dual:
            self.attention2 = JointAttention(config, txt=False, rngs=rngs)
        self.img_mlp = MLP(dim, 4 * dim, dim, activation="gelu_pytorch_tanh", rngs=rngs)
        if not last:
            self.txt_mlp = MLP(dim, 4 * dim, dim, activation="gelu_pytorch_tanh", rngs=rngs)

    def __call__(self, img: jax.Array, txt: jax.Array, vec: jax.Array) -> tuple[jax.Array, jax.Array]:
        """img [b, n, dim], txt [b, l, dim], vec [b, dim] -> the next img and txt (the last block returns txt as it came)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *second = self.img_modulation(vec)
        if self.last:
            txt_scale, txt_shift = self.txt_modulation(vec)
        else:
            txt_shift, txt_scale, txt_gate, txt_mlp_shift, txt_mlp_scale, txt_mlp_gate = self.txt_modulation(vec)
        img_update, txt_update = self.attention(modulate(self.norm, img, shift, scale), modulate(self.norm, txt, txt_shift, txt_scale))
        if self.dual:
            shift2, scale2, gate2 = second
            second_update, _ = self.attention2(modulate(self.norm, img, shift2, scale2))
        img = gated(img, gate, img_update)
        if self.dual:
            img = gated(img, gate2, second_update)
        img = gated(img, mlp_gate, self.img_mlp(modulate(self.norm, img, mlp_shift, mlp_scale)))
        if not self.last:
            txt = gated(txt, txt_gate, txt_update)
            txt = gated(txt, txt_mlp_gate, self.txt_mlp(modulate(self.norm, txt, txt_mlp_shift, txt_mlp_scale)))
        return img, txt


class SD3Transformer(nnx.Module):
    """Latents at a noise level, and a prompt -> the velocity of the flow."""

    def __init__(self, config: SD3Config, *, compute: Compute = Compute(), rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        c, dim = config, config.dim
        self.patch_in = Conv(c.in_channels, dim, c.patch_size, stride=c.patch_size, rngs=rngs)
        self.position = Buffer(position_table(c), axes=("scalar", "position", "embed"))
        self.time_in = MLP(TIME_WIDTH, dim, dim, activation="silu", rngs=rngs)
        self.pooled_in = MLP(c.pooled_projection_dim, dim, dim, activation="silu", rngs=rngs)
        self.txt_in = Dense(c.joint_attention_dim, dim, axes=("embed", "mlp"), rngs=rngs)
        joint = c.num_layers - c.num_dual - 1
        self.dual_blocks = stack(lambda rngs: JointBlock(c, dual=True, rngs=rngs), c.num_dual, rngs) if c.num_dual else None
        self.blocks = stack(lambda rngs: JointBlock(c, rngs=rngs), joint, rngs) if joint else None
        self.last_block = JointBlock(c, last=True, rngs=rngs)
        self.norm_out = LayerNorm(dim, eps=EPS, affine=False)
        self.modulation_out = Modulation(dim, 2, rngs=rngs)
        self.patch_out = Dense(dim, c.patch_size**2 * c.out_channels, axes=("embed", "mlp"), rngs=rngs)

    def embed_latents(self, latents: jax.Array) -> jax.Array:
        """Image tokens [b, n, dim] of latents [b, h, w, in_channels], row by row, with the centre of the position table added.

        Raises ValueError if h or w is not a multiple of the patch or is larger than the table.
        """
        c = self.config
        rows, columns = (size // c.patch_size for size in latents.shape[1:3])
        side = c.pos_embed_max_size
        if any(size % c.patch_size for size in latents.shape[1:3]) or max(rows, columns) > side:
            raise ValueError(f"latents of {latents.shape[1:3]} are not patches of {c.patch_size} or more than {side} of them")
        top, left = (side - rows) // 2, (side - columns) // 2
        table = self.position[...].reshape(side, side, c.dim)[top : top + rows, left : left + columns]
        x = self.patch_in(latents.astype(self.compute.dtype)).astype(jnp.float32) + table.astype(jnp.float32)
        return tokens(rearrange(x, "b h w c -> b (h w) c").astype(self.compute.dtype))

    def embed_time(self, timesteps: jax.Array, pooled: jax.Array) -> jax.Array:
        """vec [b, dim] in float32 of timesteps [b] in 0..1000 and pooled text [b, pooled_projection_dim]."""
        return self.time_in(sinusoid(timesteps, TIME_WIDTH)) + self.pooled_in(pooled.astype(jnp.float32))

    def __call__(self, latents: jax.Array, timesteps: jax.Array, prompt_embeds: jax.Array, pooled: jax.Array) -> jax.Array:
        """The velocity [b, h, w, out_channels] in float32.

        latents [b, h, w, in_channels]; timesteps [b] in 0..1000 (1000 · sigma); prompt_embeds [b, l, joint_attention_dim];
        pooled [b, pooled_projection_dim].
        """
        dtype, patch = self.compute.dtype, self.config.patch_size
        img = self.embed_latents(latents)
        txt = tokens(self.txt_in(prompt_embeds.astype(dtype)))
        vec = self.embed_time(timesteps, pooled).astype(dtype)

        def body(block: JointBlock, streams: tuple[jax.Array, jax.Array], _) -> tuple[tuple[jax.Array, jax.Array], None]:
            return block(*streams, vec), None

        streams = img, txt
        for blocks in (self.dual_blocks, self.blocks):
            if blocks is not None:
                streams, _ = scan_layers(blocks, body, streams, compute=self.compute)
        img, _ = self.last_block(*streams, vec)
        scale, shift = self.modulation_out(vec)
        x = self.patch_out(modulate(self.norm_out, img, shift, scale)).astype(jnp.float32)
        rows = latents.shape[1] // patch
        return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=rows, p=patch, q=patch)
