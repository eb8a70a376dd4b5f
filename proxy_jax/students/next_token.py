"""The next-token loss, for any vocabulary: logits exist for one chunk of positions at a time."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange

from proxy_jax import sharding
from proxy_jax.models import parameters
from proxy_jax.models.layers import Dense

CHUNK_ELEMENTS = 1 << 25  # logits in flight at a time on a device: 128 MiB in float32


def next_token_loss(hidden: jax.Array, head: Dense, targets: jax.Array, chunk: int | None = None, *, z_loss: float = 0.0) -> jax.Array:
    """Cross entropy of targets [batch, length] under head(hidden [batch, length, dim]), in float32: [batch, length].

    The positions run in chunks whose logits are made anew in the backward pass, so memory does not grow with length × vocabulary.
    z_loss: the weight of the squared logarithm of the softmax's normaliser, which is added to each position's.
    chunk: positions at a time; None: as many as 128 MiB of logits a device allow.
    """
    batch, length, _ = hidden.shape
    vocab = head.kernel.shape[-1]
    mesh = sharding.current()
    limit = chunk or max(1, CHUNK_ELEMENTS * (1 if mesh is None else mesh.size) // (batch * vocab))
    chunk = max(n for n in range(1, min(limit, length) + 1) if length % n == 0)
    if chunk < min(limit, length) // 4:  # a length with no good divisor: pad it
        chunk = min(limit, length)
    padded = math.ceil(length / chunk) * chunk
    if mesh is not None and mesh.size > 1:
        head = _gathered(head, hidden.dtype)
    hidden = jnp.pad(hidden, ((0, 0), (0, padded - length), (0, 0)))
    labels = jnp.pad(targets, ((0, 0), (0, padded - length)))

    @jax.checkpoint
    def losses(hidden: jax.Array, labels: jax.Array) -> jax.Array:
        logits = sharding.constrain(head(hidden).astype(jnp.float32), "batch", "length", "act_vocab")
        picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        partition = jax.nn.logsumexp(logits, axis=-1)
        return partition - picked + z_loss * jnp.square(partition)

    pieces = (rearrange(hidden, "b (n c) d -> n b c d", c=chunk), rearrange(labels, "b (n c) -> n b c", c=chunk))
    _, out = jax.lax.scan(lambda carry, piece: (carry, losses(*piece)), None, pieces)
    return rearrange(out, "n b c -> b (n c)")[:, :length]


def _gathered(head: Dense, dtype: jnp.dtype) -> Dense:
    """The head with its kernel split over the vocabulary alone, gathered once and not for every chunk; XLA would rather gather logits."""
    kernel = head.kernel[...]
    kernel = kernel if kernel.dtype == jnp.int8 else kernel.astype(dtype)
    return parameters.with_arrays(head, {"kernel": sharding.constrain(kernel, None, parameters.axes(head.kernel)[-1])})
