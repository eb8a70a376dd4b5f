"""FLUX.1's transformer (Black Forest Labs; diffusers' FluxTransformer2DModel).

Double blocks keep text tokens (txt) and image tokens (img), with weights of their own, that meet in one attention; single blocks run
attention and MLP side by side on both in one sequence, text first. Rotary embeddings tell where an image token is. A vector (vec), of
the timestep, the pooled text and, in the distilled model, the guidance scale, shifts, scales and gates every sublayer.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from proxy_jax.models.attention import attention
from proxy_jax.models.layers import ACTIVATIONS, Compute, Dense, LayerNorm, RMSNorm, rotate_pairs, scan_layers, sinusoid, stack, tokens
from proxy_jax.models.mmdit import EPS, MLP, TIME_WIDTH, Modulation, gated, modulate
from proxy_jax.sharding import constrain

PATCH = 2  # an image token is a patch of 2 × 2 latents
THETA = 10000.0  # of the rotary embedding
ACTIVATION = "gelu_pytorch_tanh"
Heads = tuple[jax.Array, jax.Array, jax.Array]  # queries, keys, values [batch, length, heads, head_dim]


@dataclasses.dataclass(frozen=True)
class FluxConfig:
    """Field names and defaults as in the official config.json. Raises ValueError for variants that are not supported."""

    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    in_channels: int = 64  # of a patch
    out_channels: int | None = None  # None: as many as come in
    patch_size: int = 1  # of what is already in patches
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)  # of a head: time (0 in a picture), row, column

    def __post_init__(self):
        object.__setattr__(self, "axes_dims_rope", tuple(self.axes_dims_rope))
        if self.patch_size != 1 or self.in_channels % PATCH**2:
            raise ValueError(f"patch_size is 1 and in_channels a multiple of {PATCH**2}, not {self.patch_size} and {self.in_channels}")
        if self.out_channels not in (None, self.in_channels):
            raise ValueError(f"out_channels is {self.out_channels}, but latents of {self.in_channels} channels are to be denoised")
        axes = self.axes_dims_rope
        if len(axes) != 3 or sum(axes) != self.attention_head_dim or any(size % 2 for size in axes):
            raise ValueError(f"axes_dims_rope are three even numbers that sum to attention_head_dim {self.attention_head_dim}, not {axes}")

    @property
    def dim(self) -> int:
        """Width of the image and text tokens."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def latent_channels(self) -> int:
        """Channels of the autoencoder's latents."""
        return self.in_channels // PATCH**2


def pack(latents: jax.Array) -> jax.Array:
    """Patches [b, n, 4 c], row by row, of latents [b, h, w, c]. Raises ValueError if h or w is odd."""
    if any(size % PATCH for size in latents.shape[1:3]):
        raise ValueError(f"latents of {latents.shape[1:3]} are not patches of {PATCH}")
    return rearrange(latents, "b (h p) (w q) c -> b (h w) (c p q)", p=PATCH, q=PATCH)


def rope_table(config: FluxConfig, txt_length: int, rows: int, columns: int) -> np.ndarray:
    """Cosines and sines [txt_length + rows · columns, head_dim / 2, 2], float32: text is at (0, 0, 0), a patch at (0, row, column)."""
    grid = np.stack(np.meshgrid([0], np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 3)
    positions = np.concatenate([np.zeros((txt_length, 3)), grid])
    angles = [np.outer(place, THETA ** -(np.arange(0, size, 2) / size)) for place, size in zip(positions.T, config.axes_dims_rope, strict=True)]
    angles = np.concatenate(angles, axis=-1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


class QKV(nnx.Module):
    """Tokens [b, l, dim] -> queries and keys, both normalised, and values."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        self.q, self.k, self.v = (Dense(config.dim, config.dim, axes=("embed", "heads"), rngs=rngs) for _ in range(3))
        self.q_norm, self.k_norm = (RMSNorm(config.attention_head_dim, eps=EPS) for _ in range(2))
        self.num_heads = config.num_attention_heads

    def __call__(self, x: jax.Array) -> Heads:
        q, k, v = (rearrange(dense(x), "b l (h d) -> b l h d", h=self.num_heads) for dense in (self.q, self.k, self.v))
        q, k, v = (constrain(part, "batch", "length", "act_heads", "head_dim") for part in (q, k, v))
        return self.q_norm(q), self.k_norm(k), v


def attend(heads: Heads, rope: jax.Array) -> jax.Array:
    """Rotary attention of every token to every token: [b, l, dim]."""
    q, k, v = heads
    return rearrange(attention(rotate_pairs(q, rope), rotate_pairs(k, rope), v), "b l h d -> b l (h d)")


class Stream(nnx.Module):
    """The weights of one stream in a double block."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.modulation = Modulation(dim, 6, rngs=rngs)
        self.norm = LayerNorm(dim, eps=EPS, affine=False)
        self.qkv = QKV(config, rngs=rngs)
        self.o = Dense(dim, dim, axes=("heads", "embed"), rngs=rngs)
        self.mlp = MLP(dim, 4 * dim, dim, activation=ACTIVATION, rngs=rngs)

    def heads(self, x: jax.Array, modulation: list[jax.Array]) -> Heads:
        """The stream's part of the joint attention."""
        shift, scale, *_ = modulation
        return self.qkv(modulate(self.norm, x, shift, scale))

    def update(self, x: jax.Array, attended: jax.Array, modulation: list[jax.Array]) -> jax.Array:
        """The next x [b, l, dim] after attention's output for it and the MLP."""
        _, _, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        x = gated(x, gate, self.o(attended))
        return gated(x, mlp_gate, self.mlp(modulate(self.norm, x, mlp_shift, mlp_scale)))


class DoubleBlock(nnx.Module):
    """Joint attention over the text and the image, and an MLP for each."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        self.img, self.txt = Stream(config, rngs=rngs), Stream(config, rngs=rngs)

    def __call__(self, img: jax.Array, txt: jax.Array, vec: jax.Array, rope: jax.Array) -> tuple[jax.Array, jax.Array]:
        """img [b, n, dim], txt [b, l, dim], vec [b, dim], rope [l + n, head_dim / 2, 2] -> the next img and txt."""
        img_modulation, txt_modulation = self.img.modulation(vec), self.txt.modulation(vec)
        pairs = zip(self.txt.heads(txt, txt_modulation), self.img.heads(img, img_modulation), strict=True)
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in pairs)
        x, length = attend((q, k, v), rope), txt.shape[1]
        return self.img.update(img, x[:, length:], img_modulation), self.txt.update(txt, x[:, :length], txt_modulation)


class SingleBlock(nnx.Module):
    """Attention and MLP side by side, with one modulation and one projection back."""

    def __init__(self, config: FluxConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.modulation = Modulation(dim, 3, rngs=rngs)
        self.norm = LayerNorm(dim, eps=EPS, affine=False)
        self.qkv = QKV(config, rngs=rngs)
        self.mlp = Dense(dim, 4 * dim, axes=("embed", "mlp"), rngs=rngs)
        self.out = Dense(dim + 4 * dim, dim, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array, vec: jax.Array, rope: jax.Array) -> jax.Array:
        """x [b, l, dim], vec [b, dim], rope [l, head_dim / 2, 2] -> the next x."""
        shift, scale, gate = self.modulation(vec)
        y = modulate(self.norm, x, shift, scale)
        hidden = constrain(ACTIVATIONS[ACTIVATION](self.mlp(y)), "batch", "length", "act_mlp")
        return gated(x, gate, self.out(jnp.concatenate([attend(self.qkv(y), rope), hidden], axis=-1)))


class FluxTransformer(nnx.Module):
    """Latents at a noise level, a prompt and a guidance scale -> the velocity of the flow."""

    def __init__(self, config: FluxConfig, *, compute: Compute = Compute(), rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        c, dim = config, config.dim
        self.img_in = Dense(c.in_channels, dim, rngs=rngs)
        self.txt_in = Dense(c.joint_attention_dim, dim, rngs=rngs)
        self.time_in = MLP(TIME_WIDTH, dim, dim, activation="silu", rngs=rngs)
        self.guidance_in = MLP(TIME_WIDTH, dim, dim, activation="silu", rngs=rngs) if c.guidance_embeds else None
        self.pooled_in = MLP(c.pooled_projection_dim, dim, dim, activation="silu", rngs=rngs)
        self.double_blocks = stack(lambda rngs: DoubleBlock(c, rngs=rngs), c.num_layers, rngs)
        self.single_blocks = stack(lambda rngs: SingleBlock(c, rngs=rngs), c.num_single_layers, rngs)
        self.norm_out = LayerNorm(dim, eps=EPS, affine=False)
        self.modulation_out = Modulation(dim, 2, rngs=rngs)
        self.out = Dense(dim, c.in_channels, rngs=rngs)

    def embed_vec(self, timesteps: jax.Array, guidance: jax.Array | None, pooled: jax.Array) -> jax.Array:
        """vec [b, dim] in float32 of timesteps [b] in 0..1000, guidance scales [b] (None: of a model without them) and pooled text.

        Raises ValueError if the model has a guidance embedding and no scale is given, or the other way round.
        """
        if (guidance is None) != (self.guidance_in is None):
            raise ValueError(f"guidance_embeds is {self.config.guidance_embeds}, guidance is {guidance}")
        vec = self.time_in(sinusoid(timesteps, TIME_WIDTH)) + self.pooled_in(pooled.astype(jnp.float32))
        return vec if guidance is None else vec + self.guidance_in(sinusoid(1000.0 * guidance, TIME_WIDTH))

    def __call__(
        self, latents: jax.Array, timesteps: jax.Array, prompt_embeds: jax.Array, pooled: jax.Array, guidance: jax.Array | None
    ) -> jax.Array:
        """The velocity [b, h, w, channels] in float32.

        latents [b, h, w, channels]; timesteps [b] in 0..1000 (1000 · sigma); prompt_embeds [b, l, joint_attention_dim];
        pooled [b, pooled_projection_dim]; guidance [b]: the guidance scale that the model is to imitate, None without guidance_embeds.
        """
        dtype, (rows, columns) = self.compute.dtype, (size // PATCH for size in latents.shape[1:3])
        img = tokens(self.img_in(pack(latents).astype(dtype)))
        txt = tokens(self.txt_in(prompt_embeds.astype(dtype)))
        vec = self.embed_vec(timesteps, guidance, pooled).astype(dtype)
        rope = jnp.asarray(rope_table(self.config, txt.shape[1], rows, columns))

        def double(block: DoubleBlock, streams: tuple[jax.Array, jax.Array], _) -> tuple[tuple[jax.Array, jax.Array], None]:
            return block(*streams, vec, rope), None

        def single(block: SingleBlock, x: jax.Array, _) -> tuple[jax.Array, None]:
            return block(x, vec, rope), None

        (img, txt), _ = scan_layers(self.double_blocks, double, (img, txt), compute=self.compute)
        x, _ = scan_layers(self.single_blocks, single, tokens(jnp.concatenate([txt, img], axis=1)), compute=self.compute)
        scale, shift = self.modulation_out(vec)
        x = self.out(modulate(self.norm_out, x[:, txt.shape[1] :], shift, scale)).astype(jnp.float32)
        return rearrange(x, "b (h w) (c p q) -> b (h p) (w q) c", h=rows, p=PATCH, q=PATCH)
