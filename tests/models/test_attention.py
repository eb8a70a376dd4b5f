"""Attention against its definition, and which calls may go to cuDNN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxy_jax.models.attention import attention, fits_cudnn


def reference(q, k, v, mask, bias, scale):
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) * scale + bias
    logits = np.where(mask, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_its_definition(causal):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 5, 3, 8)).astype(np.float32) for _ in range(3))
    mask = rng.random((2, 1, 5, 5)) < 0.6
    mask |= np.eye(5, dtype=bool)
    bias = rng.normal(size=(1, 3, 5, 5)).astype(np.float32)
    ours = attention(q, k, v, mask=jnp.asarray(mask), bias=jnp.asarray(bias), causal=causal, scale=0.7)
    seen = mask & np.tril(np.ones((5, 5), bool)) if causal else mask
    np.testing.assert_allclose(ours, reference(q, k, v, seen, bias, 0.7), atol=1e-5)
    np.testing.assert_allclose(attention(q, k, v), reference(q, k, v, True, 0.0, 8**-0.5), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"masked": True}, True),
        ({"q": 375, "masked": True}, False),  # LlamaGen's training: 120 captions and 255 tokens
        ({"q": 375}, True),
        ({"q": 1, "k": 376, "masked": True}, False),
        ({"biased": True}, False),
        ({"capability": 7.5}, False),  # Colab's T4
        ({"capability": 0.0}, False),
        ({"dtype": jnp.float32}, False),
        ({"width": 160}, False),
        ({"width": 100}, False),  # LlamaGen 3B
    ],
)
def test_what_goes_to_cudnn(changes, fits):
    call = {"q": 376, "k": 376, "masked": False, "biased": False, "capability": 9.0, "dtype": jnp.bfloat16, "width": 64} | changes
    q, k = (jax.ShapeDtypeStruct((1, call[name], 2, call["width"]), call["dtype"]) for name in ("q", "k"))
    assert fits_cudnn(q, k, masked=call["masked"], biased=call["biased"], capability=call["capability"]) is fits
