"""The layers all models share: dense, convolution, norms, embeddings, rotary tables, and stacks of blocks run by one scan.

Arrays are channels-last: tokens [batch, length, width], images [batch, height, width, channels]. A layer computes in the
dtype of its input (parameters are cast on the way), norms and rotary embeddings in float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from proxy_jax import sharding
from proxy_jax.models import parameters
from proxy_jax.sharding import constrain

Axes = tuple[str, ...]
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model computes, whatever its size: activation dtype, what the backward pass keeps, loop or unrolled layers."""

    dtype: Any = jnp.float32
    remat: str = "full"  # a key of REMAT
    unroll: bool = False  # run the stacked layers as straight code: faster on CPU for few layers, slower to compile


class Buffer(nnx.Variable):
    """A value that checkpoints hold and training never changes."""


class LoRAParam(nnx.Param):
    """A low-rank adapter's parameter."""


class SubjectEmbed(nnx.Variable):
    """Learned features of subjects' tokens [rows, width].

    Of a student the text features (Sun et al., arXiv 2504.13162), of a CLIP text encoder embeddings of new tokens (textual inversion, Gal et
    al., arXiv 2208.01618).
    """


def subject_embed(features: Any) -> SubjectEmbed:
    """Features [rows, width] to learn, or that were learned, as a model holds them: in float32."""
    return SubjectEmbed(jnp.asarray(features, jnp.float32), axes=("position", "embed"))


def with_subjects(x: jax.Array, learned: SubjectEmbed, rows: jax.Array) -> jax.Array:
    """x [batch, length, width] with row r - 1 of `learned` where rows [batch, length] is r > 0."""
    chosen = learned[...].astype(x.dtype)[jnp.maximum(rows - 1, 0)]
    return jnp.where(rows[..., None] > 0, chosen, x)


class Adapter(nnx.Module):
    """A LoRA of rank r beside a kernel: a maps the input to r channels (with the kernel's window), b maps them to the output."""

    def __init__(self, a: LoRAParam, b: LoRAParam, scale: float):
        self.a, self.b, self.scale = a, b, scale


def scaled(y: jax.Array, scale: Buffer | None) -> jax.Array:
    """What a kernel has made, times the scale of each output channel if the kernel is int8 (proxy_jax/weights/table.py)."""
    return y if scale is None else (y * scale[...]).astype(y.dtype)


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] · kernel [in, out], in the dtype of x; the kernel is cast to it."""
    kernel = kernel.astype(x.dtype)
    if x.dtype == jnp.bfloat16 and sharding.device().platform == "cpu":
        return _cpu_matmul(x, kernel)
    return x @ kernel


@jax.custom_vjp
def _cpu_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same, forward and backward in bfloat16 instructions: XLA uses a CPU's only where a product leaves as float32, and converts otherwise."""
    return _product(x, kernel, (x.ndim - 1,), (0,))


def _product(left: jax.Array, right: jax.Array, *contracted: tuple[int, ...]) -> jax.Array:
    return jax.lax.dot_general(left, right, (contracted, ((), ())), preferred_element_type=jnp.float32).astype(left.dtype)


def _cpu_matmul_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    return _product(gradient, kernel, (x.ndim - 1,), (1,)), _product(x, gradient, rows, rows)


_cpu_matmul.defvjp(lambda x, kernel: (_cpu_matmul(x, kernel), (x, kernel)), _cpu_matmul_backward)


class Dense(nnx.Module):
    """y = x · kernel + bias, kernel [in, out], plus the adapter when one is attached (proxy_jax/training/lora.py)."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True, axes: Axes = ("embed", "mlp"), rngs: nnx.Rngs):
        kernel = parameters.initial(jax.nn.initializers.lecun_normal(), rngs, (n_in, n_out))
        self.kernel = nnx.Param(kernel, axes=axes)
        self.kernel_scale = nnx.data(None)
        self.bias = nnx.Param(jnp.zeros(n_out), axes=axes[1:]) if bias else None
        self.lora = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = scaled(matmul(x, self.kernel[...]), self.kernel_scale)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.lora is not None:
            y = y + matmul(matmul(x, self.lora.a[...]), self.lora.b[...]) * self.lora.scale
        return y


class Conv(nnx.Module):
    """2-D convolution of [batch, height, width, in] with kernel [window, window, in, out].

    padding: pixels added on every side, or ((top, bottom), (left, right)).
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        window: int = 3,
        *,
        stride: int = 1,
        padding: int | tuple[tuple[int, int], tuple[int, int]] = 0,
        bias: bool = True,
        axes: Axes = ("conv_window", "conv_window", "conv_in", "conv_out"),
        rngs: nnx.Rngs,
    ):
        kernel = parameters.initial(jax.nn.initializers.lecun_normal(), rngs, (window, window, n_in, n_out))
        self.kernel = nnx.Param(kernel, axes=axes)
        self.kernel_scale = nnx.data(None)
        self.bias = nnx.Param(jnp.zeros(n_out), axes=axes[3:]) if bias else None
        self.stride = stride
        self.padding = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
        self.lora = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = scaled(self._convolve(x, self.kernel[...]), self.kernel_scale)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.lora is not None:
            y = y + self._convolve(x, self.lora.a[...]) @ self.lora.b[...].astype(x.dtype) * self.lora.scale
        return y

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def layers_of(model: nnx.Module) -> dict[str, Dense | Conv]:
    """Every Dense and Conv of `model` by its dotted path."""
    return {parameters.name_of(path): node for path, node in nnx.iter_graph(model) if isinstance(node, (Dense, Conv))}


class Embed(nnx.Module):
    """A table [num, width] read by index."""

    def __init__(self, num: int, width: int, *, axes: Axes = ("vocab", "embed"), rngs: nnx.Rngs):
        self.embedding = nnx.Param(parameters.initial(jax.nn.initializers.normal(0.02), rngs, (num, width)), axes=axes)

    def __call__(self, index: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.take(self.embedding[...], index, axis=0).astype(dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis in float32; `affine=False` has no scale and bias."""

    def __init__(self, width: int, *, eps: float = 1e-5, affine: bool = True):
        self.scale = nnx.Param(jnp.ones(width), axes=("scalar",)) if affine else None
        self.bias = nnx.Param(jnp.zeros(width), axes=("scalar",)) if affine else None
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        if self.scale is not None:
            y = y * self.scale[...] + self.bias[...]
        return y.astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) · scale over the last axis in float32, without mean or bias."""

    def __init__(self, width: int, *, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(width), axes=("scalar",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation of [batch, height, width, channels] in float32."""

    def __init__(self, channels: int, groups: int = 32, *, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(channels), axes=("scalar",))
        self.bias = nnx.Param(jnp.zeros(channels), axes=("scalar",))
        self.groups, self.eps = groups, eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y - self._group_mean(y)
        y = y * (jax.lax.rsqrt(self._group_mean(jnp.square(y)) + self.eps) * self.scale[...])
        return (y + self.bias[...]).astype(x.dtype)

    def _group_mean(self, y: jax.Array) -> jax.Array:
        """Each channel's group's mean [batch, 1, 1, channels]. Channels first, then groups: on CPU 2 to 3 times faster than both at once."""
        b, _, _, c = y.shape
        means = y.mean((1, 2)).reshape(b, self.groups, c // self.groups).mean(-1)
        return jnp.repeat(means, c // self.groups, axis=-1)[:, None, None]


def quick_gelu(x: jax.Array) -> jax.Array:
    """x · sigmoid(1.702 x), OpenAI CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def split_keys(keys: jax.Array | None, num: int) -> jax.Array | tuple[None, ...]:
    """`num` new keys for each of `keys` [batch]: [num, batch]; without keys, `num` times None."""
    return (None,) * num if keys is None else jax.vmap(lambda key: jax.random.split(key, num), out_axes=1)(keys)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """`x` with each element zeroed with probability `rate` and the rest scaled by 1/(1-rate); `x` itself without keys.

    keys [batch]: one an example, so that what an example loses does not depend on the batch around it.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def rotate_pairs(x: jax.Array, table: jax.Array) -> jax.Array:
    """Rotary embedding of interleaved pairs (x0, x1), (x2, x3), ...: x [batch, length, heads, head_dim], table [length, head_dim/2, 2] (cos, sin)."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    return jnp.stack(_rotated(pairs[..., 0], pairs[..., 1], table), axis=-1).reshape(x.shape).astype(x.dtype)


def rotate_halves(x: jax.Array, table: jax.Array) -> jax.Array:
    """Rotary embedding of the pairs (x0, x_d/2), (x1, x_d/2+1), ...: as `rotate_pairs`; the table may also be [batch, length, head_dim/2, 2]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(_rotated(first, second, table), axis=-1).astype(x.dtype)


def _rotated(first: jax.Array, second: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
    cos, sin = table[..., None, :, 0], table[..., None, :, 1]
    return first * cos - second * sin, first * sin + second * cos


def sinusoid(timesteps: jax.Array, width: int, *, max_period: float = 10000.0) -> jax.Array:
    """Sinusoidal embedding [batch, width] in float32 of timesteps [batch]: cosines first, then sines (diffusers' flip_sin_to_cos)."""
    half = width // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def stack(make_block: Callable[[nnx.Rngs], nnx.Module], num: int, rngs: nnx.Rngs) -> nnx.Module:
    """`num` blocks as one module whose variables carry a leading "layers" axis; run it with `scan_layers`."""

    @nnx.split_rngs(splits=num)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return make_block(rngs)

    blocks = make(rngs)
    for variable in parameters.variables(blocks).values():
        variable.set_metadata(axes=("layers", *parameters.axes(variable)))
    return blocks


def scan_layers(
    blocks: nnx.Module, body: Callable[[nnx.Module, Any, Any], tuple[Any, Any]], carry: Any, xs: Any = None, *, compute: Compute
) -> tuple[Any, Any]:
    """Runs body(block, carry, x) -> (carry, y) over a `stack`'s layers in order, rematerialised as `compute.remat` says.

    xs: a pytree with a leading layer axis, or None. Returns the last carry and the ys stacked on a leading layer axis.
    """
    graph, state = nnx.split(blocks)

    def step(carry, layer):
        layer_state, x = layer
        return body(nnx.merge(graph, layer_state), carry, x)

    if compute.remat != "none":
        step = jax.checkpoint(step, policy=REMAT[compute.remat], prevent_cse=compute.unroll)
    return jax.lax.scan(step, carry, (state, xs), unroll=True if compute.unroll else 1)


def tokens(x: jax.Array) -> jax.Array:
    """`x` [batch, length, width] laid out as activations are: batch split, width whole."""
    return constrain(x, "batch", "length", "act_embed")
