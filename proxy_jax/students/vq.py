"""Pictures to codes and back by a student's image tokenizer, in full precision: accelerators round float32 products otherwise, and codes flip."""

import functools

import jax
import jax.numpy as jnp

from proxy_jax.models import parameters
from proxy_jax.models.vqgan import VQModel


@parameters.jit
def encode(vq: VQModel, images: jax.Array) -> jax.Array:
    """Codes [n, h, w] int32 of images [n, f·h, f·w, 3] uint8."""
    with jax.default_matmul_precision("highest"):
        return vq.encode(images.astype(jnp.float32) / 127.5 - 1)


@functools.partial(parameters.jit, static_argnames=("truncate",))
def decode(vq: VQModel, codes: jax.Array, *, truncate: bool = False) -> jax.Array:
    """Pictures [n, f·h, f·w, 3] uint8 of codes [n, h, w]; truncate: fractions of a grey value are cut off, not rounded."""
    with jax.default_matmul_precision("highest"):
        pixels = jnp.clip(vq.decode(codes).astype(jnp.float32), -1, 1)
    levels = (pixels + 1) * 127.5
    return (jnp.floor(levels) if truncate else jnp.round(levels)).astype(jnp.uint8)
