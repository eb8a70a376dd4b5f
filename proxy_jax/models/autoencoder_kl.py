"""AutoencoderKL: images ↔ continuous latents (Rombach et al., arXiv 2112.10752), as SDXL, SD3, SD3.5 and FLUX.1 use it.

4 channels with convolutions around the latents (SDXL), or 16 without (SD3, SD3.5, FLUX.1).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from proxy_jax.models.conv_blocks import POINTWISE, Decoder, Encoder
from proxy_jax.models.layers import Compute, Dense


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig:
    """Field names and defaults as in the official config.json (diffusers). Raises ValueError for variants that are not supported."""

    block_out_channels: tuple[int, ...]
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None  # None: 0
    in_channels: int = 3
    out_channels: int = 3
    sample_size: int = 32  # the resolution of training; not a limit
    act_fn: str = "silu"
    mid_block_add_attention: bool = True

    def __post_init__(self):
        object.__setattr__(self, "block_out_channels", tuple(self.block_out_channels))
        if self.act_fn != "silu" or not self.mid_block_add_attention:
            raise ValueError(f"AutoencoderKL is built with act_fn 'silu' and attention in the middle only, not {self}")

    @property
    def downsample(self) -> int:
        """Pixels along one side of a latent position."""
        return 2 ** (len(self.block_out_channels) - 1)


class AutoencoderKL(nnx.Module):
    """The encoder, the decoder and the scaling between latents and what diffusion models see."""

    def __init__(self, config: AutoencoderKLConfig, *, compute: Compute = Compute(), rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        c, z = config, config.latent_channels
        self.encoder = Encoder(c.in_channels, 2 * z, c.block_out_channels, c.layers_per_block, groups=c.norm_num_groups, rngs=rngs)
        self.decoder = Decoder(z, c.out_channels, c.block_out_channels, c.layers_per_block, groups=c.norm_num_groups, rngs=rngs)
        self.quant_conv = Dense(2 * z, 2 * z, axes=POINTWISE, rngs=rngs) if c.use_quant_conv else None
        self.post_quant_conv = Dense(z, z, axes=POINTWISE, rngs=rngs) if c.use_post_quant_conv else None

    def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance (clamped to [-30, 20]) of the latents of images [b, h, w, in_channels] in [-1, 1].

        Each [b, h/f, w/f, latent_channels] in float32, with f = config.downsample.
        """
        x = self.encoder(images.astype(self.compute.dtype))
        x = (x if self.quant_conv is None else self.quant_conv(x)).astype(jnp.float32)
        mean, logvar = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images [b, f·h, f·w, out_channels] in float32, nominally in [-1, 1] but not clamped, of unscaled latents [b, h, w, latent_channels]."""
        x = latents.astype(self.compute.dtype)
        x = x if self.post_quant_conv is None else self.post_quant_conv(x)
        return self.decoder(x).astype(jnp.float32)

    def scale(self, latents: jax.Array) -> jax.Array:
        """Latents as the diffusion model sees them: (latents - shift_factor) · scaling_factor."""
        return (latents - (self.config.shift_factor or 0.0)) * self.config.scaling_factor

    def unscale(self, latents: jax.Array) -> jax.Array:
        """The inverse of `scale`."""
        return latents / self.config.scaling_factor + (self.config.shift_factor or 0.0)
