"""Attention against its definition, splash's kernel against XLA, what a TPU's compiler makes of it, and which calls may go where."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from proxy_jax import sharding
from proxy_jax.models import attention as module
from proxy_jax.models.attention import attention, fits_cudnn, fits_splash, key_segments, splash


def reference(q, k, v, mask, bias, scale):
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) * scale + bias
    logits = np.where(mask, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("start", [None, 0, 2])
def test_attention_is_its_definition(start):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, length, 3, 8)).astype(np.float32) for length in (5, 7, 7))
    segments = np.asarray([[1, 0, 0, 2, 0], [1, 1, 0, 0, 0]]), np.asarray([[1, 0, 2, 2, 0, 0, 1], [0, 1, 0, 0, 0, 1, 0]])
    if start == 0:
        segments[1][:, :5] = segments[0]  # so that every query has a key
    bias = rng.normal(size=(1, 3, 5, 7)).astype(np.float32)
    seen = (segments[0][:, :, None] == segments[1][:, None])[:, None]
    if start is not None:
        seen = seen & (np.arange(7) <= np.arange(5)[:, None] + start)
    ours = attention(q, k, v, segments=segments, start=start, bias=jnp.asarray(bias), scale=0.7)
    np.testing.assert_allclose(ours, reference(q, k, v, seen, bias, 0.7), atol=1e-5)
    plain = np.ones((5, 7), bool) if start is None else np.arange(7) <= np.arange(5)[:, None] + start
    np.testing.assert_allclose(attention(q, k, v, start=start), reference(q, k, v, plain, 0.0, 8**-0.5), atol=1e-5)


def test_key_segments_hide_keys_from_all_queries():
    mask = jnp.asarray([[1, 1, 0, 1], [0, 1, 1, 1]])
    np.testing.assert_array_equal(module.visible(key_segments(mask, 3), None, 3, 4), np.tile(np.asarray(mask, bool)[:, None, None], (1, 1, 3, 1)))


def padded_prefix(batch: int, length: int, slots: int) -> jax.Array:
    """Segments of a decoder's sequences, which begin with padding: `slots` of it in the second, more in those after it."""
    return jnp.where(jnp.arange(length) < jnp.arange(batch)[:, None] * slots, jnp.arange(1, length + 1), 0)


# kind -> lengths of queries and keys, segments, start
KINDS = {
    "joint": (200, 200, None, None),
    "cross": (130, 256, key_segments(jnp.arange(256) < jnp.asarray([[256], [70]]), 130), None),
    "causal": (256, 256, None, 0),
    "prefix": (130, 200, (padded_prefix(2, 200, 40)[:, 70:], padded_prefix(2, 200, 40)), 70),
}


CUDNN_KINDS = {
    "joint": (376, 376, None, None),
    "cross": (1024, 78, None, None),
    "causal": (376, 376, None, 0),
    "masked": (256, 300, key_segments(jnp.arange(300) < jnp.asarray([[300], [70]]), 256), None),
    "prefix": (376, 376, (padded_prefix(2, 376, 40), padded_prefix(2, 376, 40)), 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_splash_equals_xla(kind, monkeypatch):
    monkeypatch.setattr(module, "SPLASH_BLOCKS", (128,))  # several blocks in small shapes
    q_length, k_length, segments, start = KINDS[kind]
    rng = np.random.default_rng(0)
    q, k, v, out = (rng.normal(size=(2, length, 2, 8)).astype(np.float32) for length in (q_length, k_length, k_length, q_length))
    call = dict(segments=segments, start=start, scale=0.4)

    @functools.partial(jax.jit, static_argnums=0)
    def both(function, q, k, v):
        result, vjp = jax.vjp(lambda *qkv: function(*qkv, **call), q, k, v)
        return result, vjp(out)

    with sharding.use(sharding.make_mesh(devices=jax.devices()[:1])):
        ours = both(functools.partial(splash, interpret=True), q, k, v)
    for name, a, b in zip(("out", "dq", "dk", "dv"), *map(jax.tree.leaves, (ours, both(attention, q, k, v))), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module")
def tpus():
    """A (data 2, tensor 2) mesh of four chips that are only compiled for."""
    pytest.importorskip("libtpu", reason="TPU programs are compiled by libtpu")
    return sharding.make_mesh(2, 1, 2, devices=topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)


@pytest.mark.parametrize(("kind", "dim"), [("joint", 64), ("cross", 100), ("prefix", 128), ("wide", 512)])
def test_tpus_compile_splash(kind, dim, tpus):
    """Chosen by the mesh's devices, forward and backward, each device its own rows and heads: no collective."""
    lengths = {"joint": (4250, 4250), "cross": (1024, 300), "prefix": (375, 375), "wide": (1024, 1024)}[kind]

    def array(length, *shape, dtype=jnp.float32 if kind == "wide" else jnp.bfloat16):
        spec = PartitionSpec(("data", "fsdp"), None, *(("tensor",) if shape else ()))
        return jax.ShapeDtypeStruct((2, length, *shape), dtype, sharding=NamedSharding(tpus, spec))

    def loss(q, k, v, segments):
        return attention(q, k, v, segments=segments, start=0 if kind == "prefix" else None).astype(jnp.float32).sum()

    segments = tuple(array(length, dtype=jnp.int32) for length in lengths) if kind in ("cross", "prefix") else None
    qkv = (array(length, 4, dim) for length in (*lengths, lengths[1]))
    with sharding.use(tpus), jax.default_matmul_precision("highest" if kind == "wide" else None):  # as autoencoders are run
        text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*qkv, segments).compile().as_text()
    assert "splash_mha_fwd" in text and "splash_mha_dkv" in text and "splash_mha_dq" in text
    assert not any(collective in text for collective in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"q": 375, "k": 375}, False),  # LlamaGen's training: 120 captions and 255 tokens
        ({"q": 1}, False),
        ({"q": 78, "k": 78}, False),
        ({"q": 1024, "k": 77}, False),  # the UNet's cross attention to CLIP's texts
        ({"biased": True}, False),
        ({"capability": 7.5}, False),  # Colab's T4
        ({"capability": 0.0}, False),
        ({"dtype": jnp.float32}, False),
        ({"width": 160}, False),
        ({"width": 100}, False),  # LlamaGen 3B
    ],
)
def test_what_goes_to_cudnn(changes, fits):
    call = {"q": 376, "k": 376, "biased": False, "capability": 9.0, "dtype": jnp.bfloat16, "width": 64} | changes
    q, k = (jax.ShapeDtypeStruct((1, call[name], 2, call["width"]), call["dtype"]) for name in ("q", "k"))
    assert fits_cudnn(q, k, biased=call["biased"], capability=call["capability"]) is fits


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU here: JAX_PLATFORMS=cuda python -m pytest tests/models/test_attention.py on one")
@pytest.mark.parametrize("dim", [40, 64, 128])
@pytest.mark.parametrize("kind", CUDNN_KINDS)
def test_cudnn_equals_xla_on_a_gpu(kind, dim):
    """Forward and backward, against XLA's attention of the same bfloat16 numbers in float32."""
    q_length, k_length, segments, start = CUDNN_KINDS[kind]
    rng = np.random.default_rng(0)
    shapes = ((2, length, 2, dim) for length in (q_length, k_length, k_length, q_length))
    q, k, v, out = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes)

    def both(q, k, v, out):
        result, vjp = jax.vjp(functools.partial(attention, segments=segments, start=start), q, k, v)
        return result, vjp(out)

    ours = jax.jit(both).lower(q, k, v, out).compile()
    assert "fmha" in ours.as_text(), "it did not go to cuDNN"
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(both)(*(array.astype(jnp.float32) for array in (q, k, v, out)))
    for name, a, b in zip(("out", "dq", "dk", "dv"), *map(jax.tree.leaves, (ours(q, k, v, out), exact)), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.02 * float(jnp.abs(b).max()), err_msg=name)


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"start": 0}, True),
        ({"start": jnp.asarray(3)}, False),  # decoding: where it stands is known only when it runs
        ({"q": 1}, False),
        ({"k": 77}, False),  # the UNet's cross attention to CLIP's texts
        ({"biased": True}, False),
    ],
)
def test_what_goes_to_splash(changes, fits):
    call = {"q": 375, "k": 375, "start": None, "biased": False} | changes
    q, k = (jax.ShapeDtypeStruct((1, call[name], 2, 64), jnp.bfloat16) for name in ("q", "k"))
    assert fits_splash(q, k, start=call["start"], biased=call["biased"]) is fits
