"""A model's variables as a flat dict {"blocks.q.kernel": array}, and back: what weights, LoRA, training and checkpoints work on."""

import contextvars
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax import sharding

_SHAPES_ALONE = contextvars.ContextVar("shapes_alone", default=False)


def name_of(path: tuple) -> str:
    """The dotted name of an nnx path: ("blocks", "q", "kernel") -> "blocks.q.kernel"."""
    return ".".join(str(part) for part in path)


def variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Every variable of `model` by its dotted name, in a fixed order. The values may be arrays or shapes (`skeleton`)."""
    return {name_of(path): variable for path, variable in nnx.to_flat_state(nnx.state(model))}


def value(variable: nnx.Variable) -> jax.Array | jax.ShapeDtypeStruct:
    """What a variable holds: its array, or its shape in an abstract model."""
    return jax.tree.leaves(variable)[0]


def arrays(model: nnx.Module, keep: Callable[[str, nnx.Variable], bool] = lambda name, variable: True) -> dict[str, jax.Array]:
    """The values of the variables for which keep(name, variable) holds."""
    return {name: value(variable) for name, variable in variables(model).items() if keep(name, variable)}


def axes(variable: nnx.Variable) -> tuple[str, ...]:
    """The logical axes that a variable was declared with, one a dimension (see proxy_jax/sharding.py)."""
    return variable.get_metadata()["axes"]


def with_arrays(model: nnx.Module, values: Mapping[str, jax.Array]) -> nnx.Module:
    """A copy of `model` in which the named variables hold `values`; the others are kept. Traceable: no value is read.

    Raises KeyError if a name is not one of the model's.
    """
    graph, state = nnx.split(model)
    unknown = set(values) - {name_of(path) for path, _ in nnx.to_flat_state(state)}
    if unknown:
        raise KeyError(f"the model has no variable {sorted(unknown)[:5]}")

    def replace(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        name = name_of(path)
        return variable.replace(values[name]) if name in values else variable

    return nnx.merge(graph, nnx.map_state(replace, state))


def skeleton(make_model: Callable[[], nnx.Module]) -> nnx.Module:
    """The model of make_model with shapes in place of arrays: it is traced, and nothing is computed.

    make_model must not have a jitted function make parameters: jax would keep what it traced here, the zeros of `initial`.
    """
    before = _SHAPES_ALONE.set(True)
    try:
        return nnx.eval_shape(make_model)
    finally:
        _SHAPES_ALONE.reset(before)


def initial(draw: Callable[[jax.Array, Sequence[int]], jax.Array], rngs: nnx.Rngs, shape: Sequence[int]) -> jax.Array:
    """The array that a parameter begins with: draw(key, shape). In a `skeleton` zeros, as tracing random numbers takes most of its time."""
    return jnp.zeros(shape) if _SHAPES_ALONE.get() else draw(rngs.params(), shape)


def abstract(model: nnx.Module) -> nnx.Module:
    """The same model with shapes in place of arrays: a skeleton for `with_arrays` that holds no memory."""
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays(model).items()}
    return with_arrays(model, shapes)


def random(make_model: Callable[[], nnx.Module], seed: int) -> nnx.Module:
    """A model with random parameters drawn on the host: a function of the seed and each parameter's name, quick for small models.

    Kernels are normal with variance 1 / fan-in, embeddings and the like normal with deviation 0.02, norms 1 and biases 0. Buffers
    and scalars are what `make_model` makes. (Making the model itself compiles a program for every shape of parameter.)
    """
    model, values = skeleton(make_model), {}
    for name, variable in variables(model).items():
        shape, kind = value(variable).shape, name.rpartition(".")[2]
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if kind == "kernel":
            fan_in = math.prod(size for size, axis in zip(shape[:-1], axes(variable), strict=False) if axis != "layers")
            values[name] = rng.normal(size=shape) * fan_in**-0.5
        elif isinstance(variable, nnx.Param) and shape:
            values[name] = {"scale": np.ones, "bias": np.zeros}[kind](shape) if kind in ("scale", "bias") else 0.02 * rng.normal(size=shape)
        else:
            values[name] = jax.jit(lambda name=name: value(variables(make_model())[name]))()
    return with_arrays(model, {name: jnp.asarray(array, jnp.float32) for name, array in values.items()})


def jit(function: Callable[..., Any], static_argnames: tuple[str, ...] = ()) -> Callable[..., Any]:
    """jax.jit for function(model, *args, **kwargs): the model's arrays are arguments, so tuning them compiles nothing anew.

    Each mesh in use has a program of its own, since layouts are part of it.
    """

    @functools.partial(jax.jit, static_argnums=(0, 1), static_argnames=static_argnames)
    def run(graph, mesh, state, *args, **kwargs):
        return function(nnx.merge(graph, state), *args, **kwargs)

    @functools.wraps(function)
    def call(model: nnx.Module, *args, **kwargs):
        graph, state = nnx.split(model)
        arguments = (graph, sharding.current(), state, *args)
        record = sharding.recorder()
        if record is not None and any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
            return record(f"{type(model).__name__}.{function.__name__.strip('_')}", run, arguments, kwargs)
        return run(*arguments, **kwargs)

    return call
