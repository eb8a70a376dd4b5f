"""Layers: a product in half precision on a CPU, forward and backward; models of shapes alone, and with their first values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.layers import Conv, Dense, Embed, matmul, stack


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)], ids=["vector", "rows", "batch"])
def test_matmul_in_bfloat16_rounds_only_its_results(leading):
    rng = np.random.default_rng(0)
    x, kernel, gradient = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((*leading, 64), (64, 32), (*leading, 32)))
    y, backward = jax.vjp(jax.jit(matmul), x, kernel)
    rows, along = np.asarray(x, np.float64).reshape(-1, 64), np.asarray(gradient, np.float64).reshape(-1, 32)
    weights = np.asarray(kernel, np.float64)
    wanted = rows @ weights, along @ weights.T, rows.T @ along
    for found, exact, like in zip((y, *backward(gradient)), wanted, (gradient, x, kernel), strict=True):
        assert found.shape == like.shape and found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float64), exact.reshape(like.shape), rtol=2**-8, atol=1e-5)


def test_matmul_casts_the_kernel_to_the_input():
    x, kernel = jnp.ones((2, 8), jnp.bfloat16), jnp.full((8, 4), 0.5, jnp.float32)
    y, backward = jax.vjp(matmul, x, kernel)
    assert y.dtype == jnp.bfloat16 and backward(y)[1].dtype == jnp.float32
    assert np.asarray(y, np.float32).tolist() == [[4.0] * 4] * 2


class Small(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.blocks = stack(lambda rngs: Dense(4, 4, rngs=rngs), 2, rngs)
        self.conv, self.embed = Conv(3, 4, rngs=rngs), Embed(5, 4, rngs=rngs)


def test_a_skeleton_has_the_shapes_of_the_model_and_leaves_it_as_it_is():
    def make() -> Small:
        return Small(nnx.Rngs(0))

    before = parameters.arrays(make())
    shapes = parameters.arrays(parameters.skeleton(make))
    assert all(isinstance(shape, jax.ShapeDtypeStruct) for shape in shapes.values())
    assert {name: (shape.shape, shape.dtype) for name, shape in shapes.items()} == {name: (x.shape, x.dtype) for name, x in before.items()}
    with pytest.raises(ZeroDivisionError):
        parameters.skeleton(lambda: 1 // 0)
    after = parameters.arrays(make())
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert all(before[name].std() > 0 for name in ("blocks.kernel", "conv.kernel", "embed.embedding"))
