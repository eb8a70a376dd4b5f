"""The students' image tokenizers, VQGANs (Esser et al., arXiv 2012.09841): images ↔ grids of discrete codes.

LlamaGen's (Sun et al., arXiv 2406.06525; tokenizer/tokenizer_image/vq_model.py) compares short codes on the unit sphere. Chameleon's (Meta,
arXiv 2405.09818), which Lumina-mGPT uses, compares long ones as they are, and has attention in the middle alone.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.conv_blocks import POINTWISE, Decoder, Encoder
from proxy_jax.models.layers import Compute, Dense


@dataclasses.dataclass(frozen=True)
class VQConfig:
    """Field names as in LlamaGen's ModelArgs, and the Encoder's and Decoder's arguments."""

    ch_mult: tuple[int, ...]
    ch: int = 128
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_embed_dim: int = 8
    num_res_blocks: int = 2
    codebook_l2_norm: bool = True
    in_channels: int = 3
    out_channels: int = 3
    attention_levels: tuple[int, ...] = (-1,)  # besides the middle; 0: full resolution, -1: the lowest
    decoder: bool = True  # False: what encodes alone, as transformers keeps it in its Chameleon

    def __post_init__(self):
        object.__setattr__(self, "ch_mult", tuple(self.ch_mult))
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))

    @property
    def downsample(self) -> int:
        """Pixels along one side of a code."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.ch * multiple for multiple in self.ch_mult)


VARIANTS = {"VQ-16": VQConfig(ch_mult=(1, 1, 2, 2, 4)), "VQ-8": VQConfig(ch_mult=(1, 2, 2, 4))}
CHAMELEON = VQConfig(ch_mult=(1, 1, 2, 2, 4), codebook_size=8192, codebook_embed_dim=256, codebook_l2_norm=False, attention_levels=())


class Quantized(NamedTuple):
    """What training a quantizer needs."""

    indices: jax.Array  # [b, h, w] int32
    codes: jax.Array  # [b, h, w, d]: the chosen codes; their gradient goes to the latents, unchanged (straight-through)
    codebook_loss: jax.Array  # moves the codes to the latents
    commitment_loss: jax.Array  # moves the latents to the codes


class Codebook(nnx.Module):
    """`num` vectors [num, width] and the nearest-neighbour lookup, in float32. l2_norm: latents and codes are compared on the unit sphere."""

    def __init__(self, num: int, width: int, *, l2_norm: bool, rngs: nnx.Rngs):
        vectors = parameters.initial(lambda key, shape: jax.random.uniform(key, shape, minval=-1.0 / num, maxval=1.0 / num), rngs, (num, width))
        self.embedding = nnx.Param(_unit(vectors) if l2_norm else vectors, axes=("vocab", "embed"))
        self.l2_norm = l2_norm

    def project(self, latents: jax.Array) -> jax.Array:
        """Latents [..., width] where they are compared: float32, of unit length if `l2_norm`."""
        latents = latents.astype(jnp.float32)
        return _unit(latents) if self.l2_norm else latents

    def vectors(self) -> jax.Array:
        """The codes [num, width] where they are compared."""
        return self.project(self.embedding[...])

    def lookup(self, indices: jax.Array) -> jax.Array:
        """The codes [..., width] of indices [...]."""
        return self.project(jnp.take(self.embedding[...], indices, axis=0))

    def nearest(self, latents: jax.Array) -> jax.Array:
        """The index [...] int32 of the code nearest to each of latents [..., width] (the first of equals)."""
        codes, latents = self.vectors(), self.project(latents)
        # |z - e|² without |z|², which is the same for every code. A TPU would multiply in bfloat16 without the precision.
        products = jnp.einsum("... d, k d -> ... k", latents, codes, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(jnp.square(codes).sum(-1) - 2.0 * products, axis=-1).astype(jnp.int32)

    def quantize(self, latents: jax.Array, commitment: float = 0.25) -> Quantized:
        """Quantises latents [b, h, w, width] for training; `commitment` is the commitment loss's weight (0.25 in LlamaGen).

        The losses are means of squared distances, as in van den Oord et al., arXiv 1711.00937, eq. 3.
        """
        indices, latents = self.nearest(jax.lax.stop_gradient(latents)), self.project(latents)
        codes = self.lookup(indices)
        codebook_loss = jnp.square(codes - jax.lax.stop_gradient(latents)).mean()
        commitment_loss = commitment * jnp.square(latents - jax.lax.stop_gradient(codes)).mean()
        straight_through = latents + jax.lax.stop_gradient(codes - latents)
        return Quantized(indices, straight_through, codebook_loss, commitment_loss)


def _unit(x: jax.Array) -> jax.Array:
    # The root is taken after the maximum: its gradient at a zero vector is then 0, not NaN.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


class VQModel(nnx.Module):
    """The encoder, the codebook and the decoder."""

    def __init__(self, config: VQConfig, *, compute: Compute = Compute(), rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        c = config
        self.encoder = Encoder(c.in_channels, c.z_channels, c.widths, c.num_res_blocks, attention=c.attention_levels, rngs=rngs)
        self.quant_conv = Dense(c.z_channels, c.codebook_embed_dim, axes=POINTWISE, rngs=rngs)
        self.codebook = Codebook(c.codebook_size, c.codebook_embed_dim, l2_norm=c.codebook_l2_norm, rngs=rngs)
        self.post_quant_conv = Dense(c.codebook_embed_dim, c.z_channels, axes=POINTWISE, rngs=rngs)
        sizes = c.z_channels, c.out_channels, c.widths, c.num_res_blocks
        self.decoder = Decoder(*sizes, attention=c.attention_levels, rngs=rngs) if c.decoder else None

    def latents(self, images: jax.Array) -> jax.Array:
        """What is quantised: [b, h/f, w/f, codebook_embed_dim] of images [b, h, w, in_channels] in [-1, 1], f = config.downsample."""
        return self.quant_conv(self.encoder(images.astype(self.compute.dtype)))

    def quantize(self, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The indices [b, h, w] int32 of the codes nearest to latents [b, h, w, codebook_embed_dim], and those codes in float32.

        For training see `codebook.quantize`.
        """
        indices = self.codebook.nearest(latents)
        return indices, self.codebook.lookup(indices)

    def encode(self, images: jax.Array) -> jax.Array:
        """The codes' indices [b, h/f, w/f] int32 of images [b, h, w, in_channels] in [-1, 1]."""
        return self.codebook.nearest(self.latents(images))

    def lookup(self, indices: jax.Array) -> jax.Array:
        """The codes [b, h, w, codebook_embed_dim] of indices [b, h, w], of unit length with codebook_l2_norm."""
        return self.codebook.lookup(indices)

    def decode_codes(self, codes: jax.Array) -> jax.Array:
        """Images [b, f·h, f·w, out_channels] in float32, nominally in [-1, 1] but not clamped, of codes [b, h, w, codebook_embed_dim]."""
        return self.decoder(self.post_quant_conv(codes.astype(self.compute.dtype))).astype(jnp.float32)

    def decode(self, indices: jax.Array) -> jax.Array:
        """Images, as `decode_codes` gives them, of the codes' indices [b, h, w]."""
        return self.decode_codes(self.lookup(indices))
