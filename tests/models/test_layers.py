"""Layers: a product in half precision on a CPU, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxy_jax.models.layers import matmul


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
