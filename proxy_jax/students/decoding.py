"""Autoregressive decoding: guided, filtered, seeded sampling of a fixed number of tokens in one compiled loop.

A token's randomness is a function of (seed, sample index, position) alone (Gumbel noise from counter-based keys), so a prompt
gives the same tokens by itself, in a batch, or on another mesh.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """guidance_scale: 1 is off. top_k: 0 keeps all. top_p: 1 keeps all. temperature: 0 is greedy."""

    guidance_scale: float = 7.5
    top_k: int = 1000
    top_p: float = 1.0
    temperature: float = 1.0

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"temperature >= 0, top_k >= 0 and 0 < top_p <= 1 are needed, got {self}")


def guide(conditional: jax.Array, unconditional: jax.Array, scale: float) -> jax.Array:
    """Classifier-free guidance: unconditional + scale · (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)


def keep_top_k(logits: jax.Array, top_k: int) -> jax.Array:
    """Logits [batch, vocab], all but the top_k largest (and ties with the last of them) at -inf; 0 keeps all."""
    if not 0 < top_k < logits.shape[-1]:
        return logits
    return jnp.where(logits < jax.lax.top_k(logits, top_k)[0][:, -1:], -jnp.inf, logits)


def filter_logits(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits [batch, vocab] at the temperature, those outside the top k and the top-p nucleus at -inf.

    Ties with the k-th largest are kept. The nucleus is the smallest set of most likely tokens whose probability reaches top_p.
    """
    logits = keep_top_k(logits.astype(jnp.float32) / sampling.temperature, sampling.top_k)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        threshold = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < threshold, -jnp.inf, logits)
    return logits


def choose(logits: jax.Array, seed: jax.Array, indices: jax.Array, position: jax.Array | int, sampling: Sampling) -> jax.Array:
    """One token a row [batch] from logits [batch, vocab]: the Gumbel-argmax trick, or plain argmax at temperature 0."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    filtered = filter_logits(logits, sampling)

    def gumbel(index: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(seed, index), position), filtered.shape[1:])

    return jnp.argmax(filtered + jax.vmap(gumbel)(indices), axis=-1).astype(jnp.int32)


def decode(
    prefill: Callable[[], tuple[jax.Array, Any]],
    extend: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
    num_tokens: int,
    seed: jax.Array,
    indices: jax.Array,
    sampling: Sampling,
    collect_logits: bool = False,
    constrain: Callable[[jax.Array, jax.Array | int], jax.Array] = lambda logits, position: logits,
) -> tuple[jax.Array, jax.Array | None]:
    """Draws tokens [batch, num_tokens] (and, if asked for, the logits [batch, num_tokens, vocab] they were drawn from).

    prefill() gives the logits [batch, vocab] of the first token and a cache; extend(tokens [batch], position, cache) those of
    token position + 1 and the cache with the token in it. Guidance is theirs: they return guided logits.
    constrain(logits, position): the logits with those of tokens that cannot stand at a position at -inf.
    """

    def step(carry, position):
        logits, cache = carry
        logits = constrain(logits, position)
        token = choose(logits, seed, indices, position, sampling)
        return extend(token, position, cache), (token, logits if collect_logits else None)

    # The last token needs no forward pass after it, so it is drawn outside of the loop.
    (last_logits, _), (tokens, logits) = jax.lax.scan(step, prefill(), jnp.arange(num_tokens - 1))
    last_logits = constrain(last_logits, num_tokens - 1)
    last = choose(last_logits, seed, indices, num_tokens - 1, sampling)
    tokens = jnp.concatenate([tokens.swapaxes(0, 1), last[:, None]], axis=1)
    if collect_logits:
        logits = jnp.concatenate([logits.swapaxes(0, 1), last_logits[:, None]], axis=1)
    return tokens, logits
