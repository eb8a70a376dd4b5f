"""Attention: one function for every model. XLA on CPU, TPU and wherever a bias is needed; cuDNN on GPU in half precision."""

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
    on_gpu = jax.default_backend() == "gpu"
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    cudnn = on_gpu and half and bias is None and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0 and q.shape[1] > 1
    return jax.nn.dot_product_attention(
        q, k, v, bias=bias, mask=mask, is_causal=causal, scale=scale, implementation="cudnn" if cudnn else "xla"
    )
