"""Golden kinds and manifests of the LlamaGen decoder (its decoding and its image tokenizer are elsewhere)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax.models.attention import visible
from proxy_jax.models.decoder import segments_of
from proxy_jax.models.llamagen import LlamaGen, LlamaGenConfig
from proxy_jax.weights import llamagen
from proxy_jax.weights.golden import Case, Comparison, Describe, Run
from proxy_jax.weights.hub import config_from
from proxy_jax.weights.table import load
from proxy_jax.weights.tensors import open_tensors

LOGITS_TOLERANCE = 2e-5
LOSS_TOLERANCE = 1e-5
TABLE_TOLERANCE = 1e-6


def _load(case: Case) -> LlamaGen:
    config = config_from(LlamaGenConfig, case.config)
    return load(lambda: LlamaGen(config, rngs=nnx.Rngs(0)), llamagen.table(config), open_tensors(case.weights), source=str(case.weights))


@jax.jit
def _logits(model: LlamaGen, condition: jax.Array, mask: jax.Array, image_tokens: jax.Array, drop: jax.Array) -> jax.Array:
    grid = round(image_tokens.shape[1] ** 0.5)
    return model.logits(model.hidden_states(condition, mask, image_tokens[:, :-1], grid=grid, drop=drop))


def _cross_entropy(logits: jax.Array, image_tokens: np.ndarray) -> jax.Array:
    """-log p of each image token [batch, n]; logits hold the condition's positions too, the last of which predicts token 0."""
    scores = jax.nn.log_softmax(logits[:, -image_tokens.shape[1] :])
    return -jnp.take_along_axis(scores, image_tokens[..., None], axis=-1)[..., 0]


def llamagen_gpt_t2i(case: Case) -> list[Comparison]:
    """Text to image: rotary table, mask, condition, logits with and without the caption, losses."""
    model, io = _load(case), case.io
    caption, image_tokens, valid = io["caption_leftpad"], io["image_tokens"], io["valid"].astype(bool)
    mask = np.where(valid[:, None], io["emb_mask"], 1)  # an unreadable example has a plain causal mask
    batch, slots = mask.shape
    nobody, everybody = jnp.zeros(batch, bool), jnp.ones(batch, bool)
    rope = model.rope(round(image_tokens.shape[1] ** 0.5))
    logits = _logits(model, caption, mask, image_tokens, nobody)
    unconditional = _logits(model, caption, mask, image_tokens, everybody)
    dropped = _logits(model, caption, mask, image_tokens, io["drop_ids"] == 1)
    entropy, entropy_dropped = _cross_entropy(logits, image_tokens), _cross_entropy(dropped, image_tokens)
    weight = jnp.broadcast_to(valid[:, None], entropy.shape)
    losses = {
        "loss_valid": (entropy * weight).sum() / jnp.maximum(weight.sum(), 1),
        "loss_no_valid": entropy.mean(),
        "loss_with_drop": (entropy_dropped * weight).sum() / jnp.maximum(weight.sum(), 1),
    }
    length = slots + image_tokens.shape[1]
    segments = segments_of(jnp.asarray(mask), length)
    return [
        Comparison("freqs_cis", rope, io["freqs_cis"], TABLE_TOLERANCE),
        Comparison("attn_mask", visible((segments, segments), 0, length, length)[:, 0], io["attn_mask"], 0),
        Comparison("cond_embeddings", model.embed_condition(jnp.asarray(caption)), io["cond_embeddings"], LOGITS_TOLERANCE),
        Comparison("logits", logits, io["logits"], LOGITS_TOLERANCE),
        Comparison("logits_uncond", unconditional, io["logits_uncond"], LOGITS_TOLERANCE),
        *(Comparison(name, loss, io[name], LOSS_TOLERANCE) for name, loss in losses.items()),
    ]


def llamagen_gpt_c2i(case: Case) -> list[Comparison]:
    """Class to image: rotary table, logits with and without the class, loss."""
    model, io = _load(case), case.io
    labels, image_tokens = jnp.asarray(io["labels"]), io["image_tokens"]
    mask, drop = np.ones((len(labels), 1)), jnp.zeros(len(labels), bool)
    logits = _logits(model, labels, mask, image_tokens, drop)
    return [
        Comparison("freqs_cis", model.rope(round(image_tokens.shape[1] ** 0.5)), io["freqs_cis"], TABLE_TOLERANCE),
        Comparison("logits", logits, io["logits"], LOGITS_TOLERANCE),
        Comparison("logits_uncond", _logits(model, labels, mask, image_tokens, ~drop), io["logits_uncond"], LOGITS_TOLERANCE),
        Comparison("loss", _cross_entropy(logits, image_tokens).mean(), io["loss"], LOSS_TOLERANCE),
    ]


def _describe(official: dict):
    config = config_from(LlamaGenConfig, official)
    return lambda: LlamaGen(config, rngs=nnx.Rngs(0)), llamagen.table(config)


KINDS: dict[str, Run] = {"llamagen_gpt_t2i": llamagen_gpt_t2i, "llamagen_gpt_c2i": llamagen_gpt_c2i}
MANIFESTS: dict[str, Describe] = {r"llamagen_(t2i|c2i)_.*": _describe}
