"""Attention: one function for every model. cuDNN's flash attention on GPUs where it can run, XLA everywhere else."""

import jax
import jax.numpy as jnp


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> jax.Array:
    """softmax(scale · q kᵀ + bias) v, the softmax in float32.

    q [batch, q_length, heads, head_dim]; k, v [batch, k_length, heads, head_dim]; mask (True = attend) and bias
    broadcast to [batch, heads, q_length, k_length]; scale is head_dim**-0.5 by default. Returns q's shape and dtype.
    """
    device = jax.devices()[0]
    nvidia = device.platform == "gpu" and "cuda" in device.client.platform_version
    capability = float(device.compute_capability) if nvidia else 0.0
    implementation = "cudnn" if fits_cudnn(q, k, masked=mask is not None, biased=bias is not None, capability=capability) else "xla"
    return jax.nn.dot_product_attention(q, k, v, bias=bias, mask=mask, is_causal=causal, scale=scale, implementation=implementation)


def fits_cudnn(q: jax.Array, k: jax.Array, *, masked: bool, biased: bool, capability: float) -> bool:
    """Whether cuDNN's flash attention takes q and k, forward and backward, on a GPU of this compute capability (0.0: no GPU).

    It wants half precision, Ampere (8.0) or later, heads of at most 128 in eights, and with a mask even lengths. A learned bias is
    left to XLA, which gives its gradient; so is decoding, whose one query has nothing to gain.
    """
    shapes = q.shape[-1] <= 128 and q.shape[-1] % 8 == 0 and q.shape[1] > 1
    even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    return capability >= 8.0 and q.dtype in (jnp.bfloat16, jnp.float16) and shapes and not biased and (even or not masked)
