"""Filters against brute force, and that sampling follows the distribution and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from proxy_jax.students.decoding import Sampling, choose, decode, filter_logits, guide


def kept(logits, **changes) -> list[set[int]]:
    filtered = filter_logits(jnp.asarray(logits, jnp.float32), Sampling(**({"top_k": 0} | changes)))
    return [set(np.flatnonzero(np.isfinite(row)).tolist()) for row in np.asarray(filtered)]


@pytest.mark.parametrize("top_k", [1, 3, 7, 50])
def test_top_k_keeps_the_largest(top_k):
    logits = np.random.default_rng(0).normal(size=(5, 12))
    assert kept(logits, top_k=top_k) == [set(np.argsort(-row)[:top_k].tolist()) for row in logits]


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_top_p_keeps_the_smallest_nucleus(top_p):
    logits = np.random.default_rng(1).normal(size=(5, 12)) * 2
    for row, found in zip(logits, kept(logits, top_p=top_p), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        order = np.argsort(-p)
        size = int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1
        assert found == set(order[:size].tolist())


def test_temperature_scales_before_the_nucleus():
    logits = np.asarray([[2.0, 1.0, 0.0]])
    assert kept(logits, top_p=0.6, temperature=0.1) == [{0}] and len(kept(logits, top_p=0.6, temperature=10.0)[0]) == 2


def test_choice_follows_the_distribution():
    logits = jnp.asarray([1.0, 0.0, -1.0, 2.0])
    n = 40000
    tokens = np.asarray(choose(jnp.broadcast_to(logits, (n, 4)), jax.random.key(5), jnp.arange(n), 3, Sampling(top_k=3)))
    expected = np.exp([1.0, 0.0, 2.0]) / np.exp([1.0, 0.0, 2.0]).sum()
    counts = np.bincount(tokens, minlength=4) / n
    np.testing.assert_allclose(counts[[0, 1, 3]], expected, atol=0.01)
    assert counts[2] == 0


def test_choice_depends_on_seed_index_and_position_alone():
    logits = jax.random.normal(jax.random.key(0), (6, 50))
    whole = choose(logits, jax.random.key(1), jnp.arange(6), 2, Sampling(top_k=0))
    part = choose(logits[4:5], jax.random.key(1), jnp.asarray([4]), 2, Sampling(top_k=0))
    assert part[0] == whole[4]
    flat = jnp.zeros((200, 50))
    draws = [choose(flat, jax.random.key(seed), jnp.arange(200), position, Sampling(top_k=0)) for seed, position in ((1, 0), (1, 1), (2, 0))]
    assert not np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])


def test_greedy_and_guidance():
    logits = jnp.asarray([[0.0, 3.0, 1.0]])
    assert choose(logits, jax.random.key(0), jnp.arange(1), 0, Sampling(temperature=0))[0] == 1
    np.testing.assert_allclose(guide(jnp.asarray(3.0), jnp.asarray(1.0), 7.5), 16.0)


def test_decode_feeds_each_token_back():
    """A toy model whose next token is the last one plus one."""

    def logits_for(token):
        return jax.nn.one_hot((token + 1) % 10, 10) * 100.0

    tokens, logits = decode(
        lambda: (logits_for(jnp.asarray([2, 6])), jnp.zeros((), jnp.int32)),
        lambda token, position, cache: (logits_for(token), cache + position),
        5,
        jax.random.key(0),
        jnp.arange(2),
        Sampling(temperature=0),
        collect_logits=True,
    )
    np.testing.assert_array_equal(tokens, [[3, 4, 5, 6, 7], [7, 8, 9, 0, 1]])
    np.testing.assert_array_equal(np.argmax(logits, -1), tokens)


@pytest.mark.parametrize("bad", [dict(temperature=-1.0), dict(top_p=0.0), dict(top_k=-3)])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match="top_p"):
        Sampling(**bad)
