"""The convolutional blocks that the autoencoders (and a UNet) share: residual block, spatial attention, resampling, encoder, decoder.

They come from latent diffusion's autoencoder (Rombach et al., arXiv 2112.10752), as do the official AutoencoderKL, LlamaGen's
and Chameleon's tokenizers; those differ in names, in where attention stands and in what follows the encoder.
Images are [batch, height, width, channels]. 1 × 1 convolutions are Dense layers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from proxy_jax.models.attention import attention
from proxy_jax.models.layers import Conv, Dense, GroupNorm
from proxy_jax.sharding import constrain

POINTWISE = ("conv_in", "conv_out")


def image(x: jax.Array) -> jax.Array:
    """`x` [batch, height, width, channels] laid out as activations are: batch split."""
    return constrain(x, "batch", "height", "width", "act_embed")


class ResnetBlock(nnx.Module):
    """Twice norm, SiLU, 3 × 3 convolution, beside a shortcut (a projection where the width changes).

    time_dim: width of a time embedding added between the convolutions; None: there is none.
    """

    def __init__(self, n_in: int, n_out: int, *, groups: int = 32, eps: float = 1e-6, time_dim: int | None = None, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(n_in, groups, eps=eps)
        self.conv1 = Conv(n_in, n_out, 3, padding=1, rngs=rngs)
        self.time = None if time_dim is None else Dense(time_dim, n_out, axes=("embed", "mlp"), rngs=rngs)
        self.norm2 = GroupNorm(n_out, groups, eps=eps)
        self.conv2 = Conv(n_out, n_out, 3, padding=1, rngs=rngs)
        self.shortcut = None if n_in == n_out else Dense(n_in, n_out, axes=POINTWISE, rngs=rngs)

    def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
        """x [b, h, w, n_in], time [b, time_dim] -> [b, h, w, n_out]."""
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        if self.time is not None:
            y = y + self.time(jax.nn.silu(time))[:, None, None]
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return image(y + (x if self.shortcut is None else self.shortcut(x)))


class SpatialAttention(nnx.Module):
    """One-head self-attention over all positions, with a residual."""

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-6, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, groups, eps=eps)
        self.q = Dense(channels, channels, axes=POINTWISE, rngs=rngs)
        self.k = Dense(channels, channels, axes=POINTWISE, rngs=rngs)
        self.v = Dense(channels, channels, axes=POINTWISE, rngs=rngs)
        self.o = Dense(channels, channels, axes=POINTWISE, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = self.norm(x).reshape(b, h * w, 1, c)
        y = attention(self.q(y), self.k(y), self.v(y))
        return image(x + self.o(y).reshape(b, h, w, c))


class Downsample(nnx.Module):
    """Halves the height and width by a 3 × 3 convolution of stride 2.

    symmetric: one pixel of padding on every side (a UNet's rule); else on the right and bottom only (the autoencoders').
    """

    def __init__(self, channels: int, *, symmetric: bool = False, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, 3, stride=2, padding=1 if symmetric else ((0, 1), (0, 1)), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return image(self.conv(x))


class Upsample(nnx.Module):
    """Doubles the height and width: nearest neighbour, then a 3 × 3 convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, 3, padding=1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        return image(self.conv(x))


class Level(nnx.Module):
    """The residual blocks of one resolution, each followed by attention if `attention`, then `resample` if it is not None."""

    def __init__(self, n_in: int, n_out: int, num_blocks: int, *, groups: int, attention: bool, resample: nnx.Module | None, rngs: nnx.Rngs):
        self.blocks = nnx.List([ResnetBlock(n_in if i == 0 else n_out, n_out, groups=groups, rngs=rngs) for i in range(num_blocks)])
        self.attentions = nnx.List([SpatialAttention(n_out, groups=groups, rngs=rngs) for _ in range(num_blocks if attention else 0)])
        self.resample = resample

    def __call__(self, x: jax.Array) -> jax.Array:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attentions) > 0:
                x = self.attentions[i](x)
        return x if self.resample is None else self.resample(x)


class Middle(nnx.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, *, groups: int, rngs: nnx.Rngs):
        self.block1 = ResnetBlock(channels, channels, groups=groups, rngs=rngs)
        self.attention = SpatialAttention(channels, groups=groups, rngs=rngs)
        self.block2 = ResnetBlock(channels, channels, groups=groups, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.block2(self.attention(self.block1(x)))


class Encoder(nnx.Module):
    """[b, h, w, n_in] -> [b, h/f, w/f, n_out] with f = 2**(levels - 1).

    widths: channels of each level, full resolution first. attention: the levels that have it too, not only the middle (0: full resolution,
    -1: the lowest).
    """

    def __init__(
        self, n_in: int, n_out: int, widths: Sequence[int], num_blocks: int, *, groups: int = 32, attention: Sequence[int] = (), rngs: nnx.Rngs
    ):
        last, attention = len(widths) - 1, {range(len(widths))[level] for level in attention}
        self.conv_in = Conv(n_in, widths[0], 3, padding=1, rngs=rngs)
        self.levels = nnx.List(
            [
                Level(
                    widths[max(i - 1, 0)],
                    width,
                    num_blocks,
                    groups=groups,
                    attention=i in attention,
                    resample=None if i == last else Downsample(width, rngs=rngs),
                    rngs=rngs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.middle = Middle(widths[-1], groups=groups, rngs=rngs)
        self.norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = Conv(widths[-1], n_out, 3, padding=1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = image(self.conv_in(x))
        for level in self.levels:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))


class Decoder(nnx.Module):
    """[b, h, w, n_in] -> [b, f·h, f·w, n_out] with f = 2**(levels - 1); `levels` run from the lowest resolution to the full one.

    widths, attention: as in the Encoder. Each level has num_blocks + 1 residual blocks.
    """

    def __init__(
        self, n_in: int, n_out: int, widths: Sequence[int], num_blocks: int, *, groups: int = 32, attention: Sequence[int] = (), rngs: nnx.Rngs
    ):
        last, attention = len(widths) - 1, {range(len(widths))[level] for level in attention}
        widths = tuple(reversed(widths))
        self.conv_in = Conv(n_in, widths[0], 3, padding=1, rngs=rngs)
        self.middle = Middle(widths[0], groups=groups, rngs=rngs)
        self.levels = nnx.List(
            [
                Level(
                    widths[max(i - 1, 0)],
                    width,
                    num_blocks + 1,
                    groups=groups,
                    attention=last - i in attention,
                    resample=None if i == last else Upsample(width, rngs=rngs),
                    rngs=rngs,
                )
                for i, width in enumerate(widths)
            ]
        )
        self.norm_out = GroupNorm(widths[-1], groups)
        self.conv_out = Conv(widths[-1], n_out, 3, padding=1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.middle(image(self.conv_in(x)))
        for level in self.levels:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))
