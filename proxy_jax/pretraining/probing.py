"""Training the probe: a classifier of everything that the renderer knows about a picture."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from proxy_jax.metrics.probes import Probe, Probes

TRUTH = "truth."  # prefix of the columns that hold the attributes' true values


def probe_loss(model: Probe, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
    """The mean cross entropy over all attributes [rows]; batch: pictures (uint8) and truth.<attribute> (numbers of the values)."""
    logits = model(batch["pictures"])
    losses = []
    for name, values in model.config.attributes().items():
        own = jax.nn.log_softmax(logits[:, jnp.asarray(list(values.values()))], axis=-1)
        losses.append(-jnp.take_along_axis(own, batch[TRUTH + name][:, None], axis=-1)[:, 0])
    return sum(losses) / len(losses)


def accuracies(probes: Probes, pictures: np.ndarray, truths: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The share of pictures of which each attribute's likeliest value is the true one."""
    found = probes.probabilities(pictures)
    return {name: float((found[name].argmax(-1) == truths[name]).mean()) for name in found}
