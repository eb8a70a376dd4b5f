"""Probes: what a picture of the micro-world shows, read from its pixels (class, colours, pattern, parts, setting, outfit, surface).

A probe is the convolutional encoder of diffusers' AutoencoderKL (its names, and its fields in config.json) with an output for each value of
each attribute, averaged over the picture. `id2label` of config.json says which output is which, "primary=red", as transformers' classifiers do.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax import sharding
from proxy_jax.models import parameters
from proxy_jax.models.conv_blocks import Encoder
from proxy_jax.weights import autoencoder_kl, hub
from proxy_jax.weights.table import Table, load
from proxy_jax.weights.tensors import open_tensors


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """An encoder's sizes, the pixels a side of the pictures that it learned from, and the names of its outputs in their order, "primary=red"."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    norm_num_groups: int
    sample_size: int
    labels: tuple[str, ...]

    def attributes(self) -> dict[str, dict[str, int]]:
        """Attribute -> its values -> their outputs' numbers."""
        found: dict[str, dict[str, int]] = {}
        for number, label in enumerate(self.labels):
            name, _, value = label.partition("=")
            found.setdefault(name, {})[value] = number
        return found


class Probe(nnx.Module):
    """The encoder, averaged over all positions."""

    def __init__(self, config: ProbeConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths, blocks = config.block_out_channels, config.layers_per_block
        self.encoder = Encoder(3, len(config.labels), widths, blocks, groups=config.norm_num_groups, rngs=rngs)

    def __call__(self, pictures: jax.Array) -> jax.Array:
        """Logits [b, outputs] of pictures [b, height, width, 3] uint8."""
        return self.encoder(pictures.astype(jnp.float32) / 127.5 - 1).mean((1, 2))


def labels(attributes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The id2label of a probe of these attributes and their values."""
    names = [f"{name}={value}" for name, values in attributes.items() for value in values]
    return {str(number): name for number, name in enumerate(names)}


def table(config: ProbeConfig) -> Table:
    """The name table of a Probe."""
    return Table(tuple(autoencoder_kl.encoder(config.block_out_channels, config.layers_per_block)))


def config_of(content: Mapping) -> ProbeConfig:
    """From the content of a config.json. Raises CheckpointError if sizes are missing."""
    labels = content["id2label"]
    return hub.config_from(ProbeConfig, content | {"labels": tuple(labels[str(number)] for number in range(len(labels)))})


@parameters.jit
def _logits(model: Probe, pictures: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):  # accelerators round float32 products otherwise, and readings move
        return model(pictures)


class Probes:
    """A trained probe, ready to read pictures."""

    def __init__(self, model: Probe, batch_size: int = 64):
        self.model, self.attributes, self.batch_size = model, model.config.attributes(), batch_size

    @classmethod
    def load(cls, folder: Path) -> "Probes":
        """From a folder in transformers' layout. Raises CheckpointError or WeightsError."""
        config = config_of(hub.read_json(folder / "config.json"))
        model = load(lambda: Probe(config, rngs=nnx.Rngs(0)), table(config), open_tensors(folder), source=str(folder))
        return cls(model)

    def probabilities(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """Attribute -> probabilities [n, values] of pictures [n, height, width, 3] uint8."""
        parts = []
        for rows, kept in sharding.row_batches(len(pictures), self.batch_size):
            parts.append(sharding.to_host(_logits(self.model, sharding.put_batch(pictures[rows], sharding.current())))[:kept])
        logits = np.concatenate(parts)
        return {name: np.asarray(jax.nn.softmax(logits[:, list(values.values())], axis=-1)) for name, values in self.attributes.items()}

    def read(self, pictures: np.ndarray) -> dict[str, list[str]]:
        """Attribute -> the likeliest value of each picture."""
        found = self.probabilities(pictures)
        return {name: [list(self.attributes[name])[i] for i in values.argmax(-1)] for name, values in found.items()}
