"""Attention: one function for every model. Splash attention on TPUs and cuDNN's flash attention on GPUs where they can run, XLA everywhere else."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from proxy_jax import sharding

Segments = tuple[jax.Array, jax.Array]  # int32 ids of the queries [batch, q_length] and of the keys [batch, k_length]

SPLASH_BLOCKS = (512, 384, 256, 128)  # lengths of the pieces that splash works in, the fastest first
BLOCK_BYTES = 1 << 19  # of a piece, at most: more of them than a TPU's vector memory holds in the backward pass


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segments: Segments | None = None,
    start: jax.Array | int | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """softmax(scale · q kᵀ + bias) v, the softmax in float32.

    q [batch, q_length, heads, head_dim]; k, v [batch, k_length, heads, head_dim]. segments: a query attends only to keys of its own
    segment, of which there must be one. start: attention is causal, and the first query stands at key `start`. bias broadcasts to
    [batch, heads, q_length, k_length]; scale is head_dim**-0.5 by default. Returns q's shape and dtype.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    device = sharding.device()
    if device.platform == "tpu" and fits_splash(q, k, start=start, biased=bias is not None):
        return splash(q, k, v, segments=segments, start=start, scale=scale)
    nvidia = device.platform == "gpu" and "cuda" in device.client.platform_version
    capability = float(device.compute_capability) if nvidia else 0.0
    plainly_causal = segments is None and isinstance(start, int) and start == 0
    mask = None if plainly_causal else visible(segments, start, q.shape[1], k.shape[1])
    implementation = "cudnn" if fits_cudnn(q, k, biased=bias is not None, capability=capability) else "xla"
    options = dict(bias=bias, mask=mask, is_causal=plainly_causal, scale=scale, implementation=implementation)
    return jax.nn.dot_product_attention(q, k, v, **options)


def key_segments(mask: jax.Array, q_length: int) -> Segments:
    """The segments by which all `q_length` queries attend to the keys where mask [batch, k_length] is 1, and only to them."""
    return jnp.zeros((mask.shape[0], q_length), jnp.int32), 1 - mask.astype(jnp.int32)


def visible(segments: Segments | None, start: jax.Array | int | None, q_length: int, k_length: int) -> jax.Array | None:
    """`attention`'s segments and start as a mask that broadcasts to [batch, heads, q_length, k_length], True = attend; None: all."""
    masks = []
    if segments is not None:
        masks.append(segments[0][:, None, :, None] == segments[1][:, None, None, :])
    if start is not None:
        masks.append((start + jnp.arange(q_length)[:, None] >= jnp.arange(k_length))[None, None])
    return None if not masks else masks[0] if len(masks) == 1 else masks[0] & masks[1]


def fits_cudnn(q: jax.Array, k: jax.Array, *, biased: bool, capability: float) -> bool:
    """Whether cuDNN's flash attention takes q and k, forward and backward, on a GPU of this compute capability (0.0: no GPU).

    It wants half precision, Ampere (8.0) or later, heads of at most 128 in eights, and even lengths (backward, with a mask or without:
    jax refuses others). A learned bias is left to XLA, which gives its gradient; so are fewer than 256 queries (decoding, CLIP's texts),
    which have nothing to gain.
    """
    shapes = q.shape[-1] <= 128 and q.shape[-1] % 8 == 0 and q.shape[1] >= 256
    even = q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0
    return capability >= 8.0 and q.dtype in (jnp.bfloat16, jnp.float16) and shapes and even and not biased


def fits_splash(q: jax.Array, k: jax.Array, *, start: jax.Array | int | None, biased: bool) -> bool:
    """Whether splash attention takes q and k on a TPU and has something to gain.

    It has no bias, knows where a causal call starts when it is compiled, and pads both lengths to 128: with fewer than 256 queries or
    keys (CLIP's texts, decoding) the logits are small and XLA does without the padding.
    """
    static = start is None or isinstance(start, int)
    return static and not biased and min(q.shape[1], k.shape[1]) >= 256


def splash(
    q: jax.Array, k: jax.Array, v: jax.Array, *, segments: Segments | None, start: int | None, scale: float, interpret: bool = False
) -> jax.Array:
    """`attention` by jax's Pallas kernel for TPUs: each device of the mesh in use computes its own rows and heads.

    interpret: run the kernel on any device, slowly.
    """
    q = (q * scale).astype(q.dtype)

    def local(q, k, v, segments):
        return _splash_local(q, k, v, segments, start=start, interpret=interpret)

    mesh = sharding.current()
    if mesh is None:
        return local(q, k, v, segments)
    heads = sharding.spec(("batch", "length", "act_heads", "head_dim"), q.shape, mesh)
    rows = sharding.spec(("batch", "length"), q.shape[:2], mesh)
    return jax.shard_map(local, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)(q, k, v, segments)


def _splash_local(q: jax.Array, k: jax.Array, v: jax.Array, segments: Segments | None, *, start: int | None, interpret: bool) -> jax.Array:
    batch, q_length, heads, dim = q.shape
    k_length = k.shape[1]
    (q_block, q_padded), (k_block, k_padded) = (_blocks(length, dim * q.dtype.itemsize) for length in (q_length, k_length))
    if segments is None and (q_padded, k_padded) != (q_length, k_length):
        segments = jnp.zeros((batch, q_length), jnp.int32), jnp.zeros((batch, k_length), jnp.int32)

    def padded_ids(ids: jax.Array, padded: int) -> jax.Array:  # padding is a segment of its own
        return jnp.pad(ids, ((0, 0), (0, padded - ids.shape[1])), constant_values=-1)

    if segments is not None:
        segments = splash_attention_kernel.SegmentIds(padded_ids(segments[0], q_padded), padded_ids(segments[1], k_padded))

    def heads_first(x: jax.Array, padded: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, padded - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2)

    shape = q_padded, k_padded
    mask = splash_attention_mask.FullMask(shape) if start is None else splash_attention_mask.CausalMask(shape, offset=start)
    blocks = splash_attention_kernel.BlockSizes(
        **dict.fromkeys(("block_q", "block_q_dkv", "block_q_dq"), q_block),
        **dict.fromkeys(("block_kv", "block_kv_compute", "block_kv_dkv", "block_kv_dkv_compute", "block_kv_dq"), k_block),
    )
    masks = splash_attention_mask.MultiHeadMask([mask] * heads)
    kernel = splash_attention_kernel.make_splash_mha(masks, block_sizes=blocks, head_shards=1, q_seq_shards=1, interpret=interpret)
    out = jax.vmap(kernel)(heads_first(q, q_padded), heads_first(k, k_padded), heads_first(v, k_padded), segments)
    return out.swapaxes(1, 2)[:, :q_length]


def _blocks(length: int, row_bytes: int) -> tuple[int, int]:
    """The block and the padded length that pad `length` least."""
    fitting = [block for block in SPLASH_BLOCKS if block * row_bytes <= BLOCK_BYTES]
    return min(((block, -(-length // block) * block) for block in fitting), key=lambda pair: pair[1])
