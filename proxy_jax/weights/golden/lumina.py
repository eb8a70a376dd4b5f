"""Golden kinds and manifests of Lumina-mGPT: the Chameleon decoder."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax.models import decoder
from proxy_jax.models.chameleon import Chameleon, ChameleonConfig, positions_of
from proxy_jax.models.decoder import attention_mask
from proxy_jax.weights import chameleon
from proxy_jax.weights.golden import Case, Comparison, Describe, Run
from proxy_jax.weights.hub import config_from
from proxy_jax.weights.table import load
from proxy_jax.weights.tensors import open_tensors

LOGITS_TOLERANCE = 2e-5
LOSS_TOLERANCE = 1e-5
TABLE_TOLERANCE = 1e-6


def load_decoder(case: Case) -> Chameleon:
    """The case's decoder."""
    tensors = open_tensors(case.weights)
    config = chameleon.read_config(case.config, tensors)
    return load(lambda: Chameleon(config, rngs=nnx.Rngs(0)), chameleon.table(config), tensors, source=str(case.weights))


@jax.jit
def _states(model: Chameleon, ids: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    x, length = model.embed(ids), ids.shape[1]
    graph, state = nnx.split(model.blocks)
    first = nnx.merge(graph, jax.tree.map(lambda array: array[:1], state))
    rope = model.rope(positions_of(mask, length))
    hidden = model.hidden_states(x, mask)
    return {
        "hidden_after_embed": x,
        "hidden_after_layer1": decoder.run(first, x, rope, attention_mask(mask, length), compute=model.compute),
        "hidden_final_normed": hidden,
        "logits": model.logits(hidden),
    }


def chameleon_lm(case: Case) -> list[Comparison]:
    """Logits of right- and left-padded sequences, states on the way, rotary tables, losses."""
    model, io = load_decoder(case), case.io
    valid, valid_left = io["attention_mask"].astype(bool), io["attention_mask_left"].astype(bool)
    right = _states(model, io["input_ids"], np.ones_like(valid))  # padding after a sequence changes nothing in it
    left = _states(model, io["input_ids_left"], valid_left)
    rope = model.rope(jnp.arange(io["rope_cos"].shape[1])[None])
    logits, targets = right["logits"][:, :-1], io["labels"][:, 1:]
    supervised = targets != -100
    partition = jax.nn.logsumexp(logits, axis=-1)
    entropy = partition - jnp.take_along_axis(logits, jnp.where(supervised, targets, 0)[..., None], axis=-1)[..., 0]
    losses = {"c_loss": entropy[supervised].mean(), "z_loss": jnp.square(partition)[supervised].mean()}
    losses["total_loss"] = losses["c_loss"] + case.config["z_loss_weight"] * losses["z_loss"]
    return [
        *(Comparison(name, array[valid], io[name][valid], LOGITS_TOLERANCE) for name, array in right.items()),
        Comparison("logits_left", left["logits"][valid_left], io["logits_left"][valid_left], LOGITS_TOLERANCE),
        *(Comparison(f"rope_{name}", jnp.tile(rope[..., i], 2), io[f"rope_{name}"], TABLE_TOLERANCE) for i, name in enumerate(("cos", "sin"))),
        *(Comparison(name, loss, io[name], LOSS_TOLERANCE) for name, loss in losses.items()),
    ]


def _describe(official: dict):
    config = config_from(ChameleonConfig, official | {"qk_norm_rows": official["model_parallel_size"]})
    return lambda: Chameleon(config, rngs=nnx.Rngs(0)), chameleon.table(config)


KINDS: dict[str, Run] = {"chameleon_lm": chameleon_lm}
MANIFESTS: dict[str, Describe] = {r"lumina_mgpt_.*": _describe}
