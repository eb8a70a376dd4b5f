"""The UNet of Stable Diffusion XL (Podell et al., arXiv 2307.01952; diffusers' UNet2DConditionModel with text_time embedding).

Residual blocks at several resolutions on the way down and, with what each left there, on the way up. In some levels a transformer
follows each: self-attention over the positions, cross-attention to the text, a gated MLP. A vector (time) made of the timestep, the
pooled text and six numbers on how the picture was cropped goes into every residual block.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from proxy_jax.models.attention import attention
from proxy_jax.models.conv_blocks import POINTWISE, Downsample, ResnetBlock, Upsample, image
from proxy_jax.models.layers import ACTIVATIONS, REMAT, Compute, Conv, Dense, GroupNorm, LayerNorm, scan_layers, sinusoid, stack, tokens
from proxy_jax.models.mmdit import MLP
from proxy_jax.sharding import constrain

DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}  # block type -> whether it has attention
UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}


class LevelPlan(NamedTuple):
    """The sizes of one level: what each residual block takes in, the width of all, the layers of each transformer (0: none), its heads."""

    widths_in: tuple[int, ...]
    width: int
    depth: int
    heads: int


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Field names and defaults as in the official config.json. Raises ValueError for variants that are not supported."""

    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    cross_attention_dim: int
    attention_head_dim: int | tuple[int, ...]  # the NUMBER of heads of each level: the name is older than its meaning
    transformer_layers_per_block: int | tuple[int, ...]
    addition_time_embed_dim: int
    projection_class_embeddings_input_dim: int  # the pooled text and the embedded time ids
    addition_embed_type: str | None = None
    use_linear_projection: bool = False
    layers_per_block: int = 2
    in_channels: int = 4
    out_channels: int = 4
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    sample_size: int = 128  # the latents' side in training; not a limit
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    resnet_time_scale_shift: str = "default"
    act_fn: str = "silu"
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    center_input_sample: bool = False

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name in ("block_out_channels", "down_block_types", "up_block_types", "attention_head_dim", "transformer_layers_per_block"):
            value = getattr(self, name)
            value = (value,) * levels if isinstance(value, int) else tuple(value)
            if len(value) != levels:
                raise ValueError(f"{name} is {value}, but there are {levels} levels")
            object.__setattr__(self, name, value)
        built = dict(addition_embed_type="text_time", use_linear_projection=True, mid_block_type="UNetMidBlock2DCrossAttn", act_fn="silu")
        built |= dict(resnet_time_scale_shift="default", flip_sin_to_cos=True, freq_shift=0, center_input_sample=False)
        if other := {name: getattr(self, name) for name, value in built.items() if getattr(self, name) != value}:
            raise ValueError(f"this UNet is built with {', '.join(f'{name} {built[name]!r}' for name in other)}, not {other}")
        if unknown := [kind for kind in self.down_block_types if kind not in DOWN] + [kind for kind in self.up_block_types if kind not in UP]:
            raise ValueError(f"unknown block types {unknown}; known: {', '.join([*DOWN, *UP])}")

    @property
    def time_dim(self) -> int:
        """Width of the vector that goes into every residual block."""
        return 4 * self.block_out_channels[0]

    @property
    def middle(self) -> LevelPlan:
        """The two blocks at the lowest resolution, with a transformer between."""
        width = self.block_out_channels[-1]
        return LevelPlan((width, width), width, self.transformer_layers_per_block[-1], self.attention_head_dim[-1])

    @property
    def down(self) -> list[LevelPlan]:
        """The levels from the full resolution to the lowest."""
        plans, before = [], self.block_out_channels[0]
        for i, width in enumerate(self.block_out_channels):
            widths_in = (before,) + (width,) * (self.layers_per_block - 1)
            plans.append(LevelPlan(widths_in, width, self._depth(i, DOWN[self.down_block_types[i]]), self.attention_head_dim[i]))
            before = width
        return plans

    @property
    def up(self) -> list[LevelPlan]:
        """The levels from the lowest resolution to the full one; each block also takes what was kept on the way down, the last kept first."""
        kept = [self.block_out_channels[0]]
        for i, plan in enumerate(self.down):
            kept += [plan.width] * (self.layers_per_block + (i < len(self.block_out_channels) - 1))
        plans, before = [], self.block_out_channels[-1]
        for i, kind in zip(reversed(range(len(self.block_out_channels))), self.up_block_types, strict=True):
            width = self.block_out_channels[i]
            widths_in = tuple((before if j == 0 else width) + kept.pop() for j in range(self.layers_per_block + 1))
            plans.append(LevelPlan(widths_in, width, self._depth(i, UP[kind]), self.attention_head_dim[i]))
            before = width
        return plans

    def _depth(self, level: int, attends: bool) -> int:
        return self.transformer_layers_per_block[level] if attends else 0


class Attention(nnx.Module):
    """Multi-head attention of tokens [b, n, width] to `context` [b, l, context_width]; only the output has a bias."""

    def __init__(self, width: int, context_width: int, heads: int, *, rngs: nnx.Rngs):
        self.q = Dense(width, width, bias=False, axes=("embed", "heads"), rngs=rngs)
        self.k = Dense(context_width, width, bias=False, axes=("embed", "heads"), rngs=rngs)
        self.v = Dense(context_width, width, bias=False, axes=("embed", "heads"), rngs=rngs)
        self.o = Dense(width, width, axes=("heads", "embed"), rngs=rngs)
        self.heads = heads

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        q, k, v = (rearrange(y, "b l (h d) -> b l h d", h=self.heads) for y in (self.q(x), self.k(context), self.v(context)))
        q, k, v = (constrain(y, "batch", "length", "act_heads", "head_dim") for y in (q, k, v))
        return tokens(self.o(rearrange(attention(q, k, v), "b l h d -> b l (h d)")))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention to the text, and an MLP whose hidden layer is gated by the exact GELU (GEGLU)."""

    def __init__(self, width: int, txt_width: int, heads: int, *, rngs: nnx.Rngs):
        self.norm1, self.norm2, self.norm3 = LayerNorm(width), LayerNorm(width), LayerNorm(width)
        self.self_attention = Attention(width, width, heads, rngs=rngs)
        self.cross_attention = Attention(width, txt_width, heads, rngs=rngs)
        self.value = Dense(width, 4 * width, axes=("embed", "mlp"), rngs=rngs)
        self.gate = Dense(width, 4 * width, axes=("embed", "mlp"), rngs=rngs)
        self.out = Dense(4 * width, width, axes=("mlp", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array, txt: jax.Array) -> jax.Array:
        """x [b, n, width], txt [b, l, txt_width] -> the next x."""
        y = self.norm1(x)
        x = x + self.self_attention(y, y)
        x = x + self.cross_attention(self.norm2(x), txt)
        y = self.norm3(x)
        y = constrain(self.value(y) * ACTIVATIONS["gelu"](self.gate(y)), "batch", "length", "act_mlp")
        return tokens(x + tokens(self.out(y)))


class SpatialTransformer(nnx.Module):
    """Transformer blocks over the positions of an image, between two projections, with a residual (diffusers' Transformer2DModel)."""

    def __init__(self, width: int, txt_width: int, heads: int, depth: int, *, groups: int, compute: Compute, rngs: nnx.Rngs):
        self.norm = GroupNorm(width, groups)
        self.proj_in = Dense(width, width, axes=POINTWISE, rngs=rngs)
        self.blocks = stack(lambda rngs: TransformerBlock(width, txt_width, heads, rngs=rngs), depth, rngs)
        self.proj_out = Dense(width, width, axes=POINTWISE, rngs=rngs)
        self.compute = compute

    def __call__(self, x: jax.Array, txt: jax.Array) -> jax.Array:
        """x [b, h, w, width], txt [b, l, txt_width] -> the next x."""
        y = tokens(rearrange(self.proj_in(self.norm(x)), "b h w c -> b (h w) c"))
        y, _ = scan_layers(self.blocks, lambda block, y, _: (block(y, txt), None), y, compute=self.compute)
        return image(x + rearrange(self.proj_out(y), "b (h w) c -> b h w c", h=x.shape[1]))


def remat(block: nnx.Module, *args: jax.Array, compute: Compute) -> jax.Array:
    """block(*args), rematerialised as `compute.remat` says: for blocks that no stack holds."""
    if compute.remat == "none":
        return block(*args)
    graph, state = nnx.split(block)

    def run(state, *args):
        return nnx.merge(graph, state)(*args)

    return jax.checkpoint(run, policy=REMAT[compute.remat])(state, *args)


class Level(nnx.Module):
    """The residual blocks of one resolution, each followed by a transformer where the plan has such; then `resample` if it is not None."""

    def __init__(self, plan: LevelPlan, config: UNetConfig, *, resample: nnx.Module | None, compute: Compute, rngs: nnx.Rngs):
        width, groups = plan.width, config.norm_num_groups
        options = dict(groups=groups, eps=config.norm_eps, time_dim=config.time_dim)
        self.blocks = nnx.List([ResnetBlock(n_in, width, **options, rngs=rngs) for n_in in plan.widths_in])
        transformers = len(plan.widths_in) if plan.depth else 0
        self.transformers = nnx.List(
            [
                SpatialTransformer(width, config.cross_attention_dim, plan.heads, plan.depth, groups=groups, compute=compute, rngs=rngs)
                for _ in range(transformers)
            ]
        )
        self.resample = resample
        self.compute = compute

    def block(self, i: int, x: jax.Array, time: jax.Array, txt: jax.Array) -> jax.Array:
        """The i-th residual block and its transformer."""
        x = remat(self.blocks[i], x, time, compute=self.compute)
        return self.transformers[i](x, txt) if len(self.transformers) > 0 else x


class Middle(nnx.Module):
    """Residual block, transformer, residual block."""

    def __init__(self, config: UNetConfig, *, compute: Compute, rngs: nnx.Rngs):
        _, width, depth, heads = config.middle
        groups = config.norm_num_groups
        options = dict(groups=groups, eps=config.norm_eps, time_dim=config.time_dim)
        self.block1 = ResnetBlock(width, width, **options, rngs=rngs)
        self.transformer = SpatialTransformer(width, config.cross_attention_dim, heads, depth, groups=groups, compute=compute, rngs=rngs)
        self.block2 = ResnetBlock(width, width, **options, rngs=rngs)
        self.compute = compute

    def __call__(self, x: jax.Array, time: jax.Array, txt: jax.Array) -> jax.Array:
        x = self.transformer(remat(self.block1, x, time, compute=self.compute), txt)
        return remat(self.block2, x, time, compute=self.compute)


class UNet(nnx.Module):
    """Noisy latents and a prompt -> what the scheduler's prediction_type says: the noise, or the velocity."""

    def __init__(self, config: UNetConfig, *, compute: Compute = Compute(), rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        c, first, time_dim = config, config.block_out_channels[0], config.time_dim
        options: dict[str, Any] = dict(compute=compute, rngs=rngs)
        last = len(c.block_out_channels) - 1
        self.conv_in = Conv(c.in_channels, first, 3, padding=1, rngs=rngs)
        self.time_in = MLP(first, time_dim, time_dim, activation="silu", rngs=rngs)
        self.added_in = MLP(c.projection_class_embeddings_input_dim, time_dim, time_dim, activation="silu", rngs=rngs)
        self.down = nnx.List(
            [
                Level(plan, c, resample=Downsample(plan.width, symmetric=True, rngs=rngs) if i < last else None, **options)
                for i, plan in enumerate(c.down)
            ]
        )
        self.middle = Middle(c, **options)
        self.up = nnx.List([Level(plan, c, resample=Upsample(plan.width, rngs=rngs) if i < last else None, **options) for i, plan in enumerate(c.up)])
        self.norm_out = GroupNorm(first, c.norm_num_groups, eps=c.norm_eps)
        self.conv_out = Conv(first, c.out_channels, 3, padding=1, rngs=rngs)

    def embed_time(self, timesteps: jax.Array) -> jax.Array:
        """[b, time_dim] in float32 of timesteps [b] in 0..999."""
        return self.time_in(sinusoid(timesteps, self.config.block_out_channels[0]))

    def embed_time_ids(self, time_ids: jax.Array) -> jax.Array:
        """[b, ids · addition_time_embed_dim] in float32 of time ids [b, ids], each embedded as a timestep is."""
        each = sinusoid(time_ids.reshape(-1), self.config.addition_time_embed_dim)
        return each.reshape(len(time_ids), -1)

    def embed_added(self, pooled: jax.Array, time_ids: jax.Array) -> jax.Array:
        """[b, time_dim] in float32 of the pooled text [b, width] and the time ids."""
        return self.added_in(jnp.concatenate([pooled.astype(jnp.float32), self.embed_time_ids(time_ids)], axis=-1))

    def __call__(self, latents: jax.Array, timesteps: jax.Array, prompt_embeds: jax.Array, pooled: jax.Array, time_ids: jax.Array) -> jax.Array:
        """The prediction [b, h, w, out_channels] in float32.

        latents [b, h, w, in_channels]; timesteps [b] in 0..999; prompt_embeds [b, l, cross_attention_dim]; pooled [b, width];
        time_ids [b, 6]: original height and width, crop top and left, target height and width, in pixels.
        Raises ValueError if h or w cannot be halved as often as there are levels below the first.
        """
        dtype, multiple = self.compute.dtype, 2 ** (len(self.down) - 1)
        if any(size % multiple for size in latents.shape[1:3]):
            raise ValueError(f"latents of {latents.shape[1:3]}: this UNet takes multiples of {multiple}")
        time = (self.embed_time(timesteps) + self.embed_added(pooled, time_ids)).astype(dtype)
        txt = tokens(prompt_embeds.astype(dtype))
        x = image(self.conv_in(latents.astype(dtype)))
        kept = [x]
        for level in self.down:
            for i in range(len(level.blocks)):
                x = level.block(i, x, time, txt)
                kept.append(x)
            if level.resample is not None:
                x = level.resample(x)
                kept.append(x)
        x = self.middle(x, time, txt)
        for level in self.up:
            for i in range(len(level.blocks)):
                x = level.block(i, jnp.concatenate([x, kept.pop()], axis=-1), time, txt)
            if level.resample is not None:
                x = level.resample(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x))).astype(jnp.float32)
