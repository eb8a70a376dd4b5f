"""Training the two autoencoders: LlamaGen's VQ tokenizer and AutoencoderKL, by pixels alone (no adversary, no perceptual network)."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from proxy_jax import sharding
from proxy_jax.data import loader
from proxy_jax.models import parameters
from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.students import vq
from proxy_jax.supervisors import latent
from proxy_jax.training import lora
from proxy_jax.training.loop import fit

KL_WEIGHT = 1e-4
CENTRE_WEIGHT, CENTRE_RADIUS = 3.0, 0.42
CODEBOOK_PICTURES, KMEANS_ROUNDS = 2048, 12
BATCH_SIZE = 64  # of encoding and decoding


def to_pixels(pictures: jax.Array) -> jax.Array:
    """uint8 as float32 in [-1, 1]."""
    return pictures.astype(jnp.float32) / 127.5 - 1.0


def reconstruction_loss(reconstructed: jax.Array, pixels: jax.Array) -> jax.Array:
    """L1 + 2 · L2 + 0.5 · L1 of the differences between neighbours (edges), each a weighted mean: [rows] for images [rows, h, w, 3].

    The middle, where subjects stand, counts CENTRE_WEIGHT times: the few backgrounds are learned soon, subjects never repeat.
    """
    error = reconstructed - pixels
    weight = _centre(pixels.shape[1])

    def mean(values: jax.Array) -> jax.Array:
        own = weight[: values.shape[1], : values.shape[2], None]
        return (values * own).sum((1, 2, 3)) / (own.sum() * values.shape[3])

    edges = [mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2)]
    return mean(jnp.abs(error)) + 2.0 * mean(jnp.square(error)) + 0.5 * (edges[0] + edges[1])


def _centre(size: int) -> np.ndarray:
    """CENTRE_WEIGHT within CENTRE_RADIUS (of a picture's side) of the middle, else 1: [size, size] float32."""
    offsets = (np.arange(size) + 0.5) / size - 0.5
    inside = np.hypot(offsets[:, None], offsets[None]) < CENTRE_RADIUS
    return np.where(inside, CENTRE_WEIGHT, 1.0).astype(np.float32)


def unquantised_loss(model: VQModel, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
    """The VQ model as a plain autoencoder, its latents on the unit sphere as codes will be; batch: pictures, uint8."""
    pixels = to_pixels(batch["pictures"])
    return reconstruction_loss(model.decode_codes(model.codebook.project(model.latents(pixels))), pixels)


def vq_loss(model: VQModel, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
    """Reconstruction through the codebook, plus the codebook's and the commitment loss."""
    pixels = to_pixels(batch["pictures"])
    quantized = model.codebook.quantize(model.latents(pixels))
    return reconstruction_loss(model.decode_codes(quantized.codes), pixels) + quantized.codebook_loss + quantized.commitment_loss


def kl_loss(model: AutoencoderKL, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
    """Reconstruction from a drawn latent, plus KL_WEIGHT · the mean KL divergence of a latent's distribution from the standard normal's."""
    pixels = to_pixels(batch["pictures"])
    mean, logvar = model.moments(pixels)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["row_index"])
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).mean((1, 2, 3))
    return reconstruction_loss(model.decode(mean + jnp.exp(0.5 * logvar) * noise), pixels) + KL_WEIGHT * divergence


def train_vq(config: VQConfig, pictures: np.ndarray, stage: ConfigDict, *, start: nnx.Module | None, seed: int, folder: Path) -> VQModel:
    """A tokenizer trained on pictures [n, size, size, 3] uint8: first without quantisation, then with a codebook of the latents' centres.

    stage: fields unquantised and training, each as `fit` takes them. start: see `begun_as`.
    """
    model = begun_as(parameters.random(lambda: VQModel(config, rngs=nnx.Rngs(0)), seed), start)
    common = dict(trainable=lora.is_parameter, seed=seed)
    batches = _batches(pictures, stage.unquantised, seed)
    model = fit(model, unquantised_loss, batches, config=stage.unquantised, directory=folder / "unquantised", **common)
    rows = np.random.default_rng(seed).choice(len(pictures), min(CODEBOOK_PICTURES, len(pictures)), replace=False)
    codes = sphere_centres(_latents(model, pictures[np.sort(rows)]), config.codebook_size, seed)
    model = parameters.with_arrays(model, {"codebook.embedding": jnp.asarray(codes)})
    return fit(model, vq_loss, _batches(pictures, stage.training, seed + 1), config=stage.training, directory=folder, **common)


def train_kl(config: AutoencoderKLConfig, pictures: np.ndarray, stage: ConfigDict, *, start: nnx.Module | None, seed: int, folder: Path):
    """An autoencoder and its config, whose shift and scale make the latents of the pictures mean 0, deviation 1. start: see `begun_as`."""
    model = begun_as(parameters.random(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0)), seed), start)
    batches = _batches(pictures, stage.training, seed)
    model = fit(model, kl_loss, batches, config=stage.training, trainable=lora.is_parameter, directory=folder, seed=seed)
    latents = _in_batches(lambda rows: latent.encode(model, rows)[0], pictures[:CODEBOOK_PICTURES])
    shift, scale = float(latents.mean()), float(1.0 / latents.std())
    return model, dataclasses.replace(config, shift_factor=round(shift, 4), scaling_factor=round(scale, 4))


def begun_as(model: nnx.Module, start: nnx.Module | None) -> nnx.Module:
    """The model with the tensors of `start`, another autoencoder, that have the same name and shape; itself without one."""
    if start is None:
        return model
    shapes, given = {name: array.shape for name, array in parameters.arrays(model).items()}, parameters.arrays(start)
    taken = {name: array for name, array in given.items() if name in shapes and shapes[name] == array.shape}
    logging.info("%d of %d tensors begin as those of the %s", len(taken), len(shapes), type(start).__name__)
    return parameters.with_arrays(model, taken)


def _batches(pictures: np.ndarray, training: ConfigDict, seed: int) -> loader.Batches:
    processes = dict(process_index=jax.process_index(), process_count=jax.process_count())
    return loader.batches({"pictures": pictures}, batch_size=training.batch_size, seed=seed, **processes)


@parameters.jit
def _project(model: VQModel, pictures: jax.Array) -> jax.Array:
    with jax.default_matmul_precision("highest"):  # accelerators round float32 products otherwise, and codes flip
        return model.codebook.project(model.latents(to_pixels(pictures)))


def _in_batches(run: Callable[[jax.Array], jax.Array], values: np.ndarray) -> np.ndarray:
    """run() of batches of one shape, the rows put together on the host."""
    parts, mesh = [], sharding.current()
    for rows, kept in sharding.row_batches(len(values), BATCH_SIZE):
        parts.append(sharding.to_host(run(sharding.put_batch(values[rows], mesh)))[:kept])
    return np.concatenate(parts)


def through_vq(model: VQModel, pictures: np.ndarray) -> np.ndarray:
    """Pictures [n, size, size, 3] uint8 encoded to codes and decoded, uint8."""
    return _in_batches(lambda rows: vq.decode(model, vq.encode(model, rows)), pictures)


def through_kl(model: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """Pictures [n, size, size, 3] uint8 encoded to latents' means and decoded, uint8."""
    return _in_batches(lambda rows: latent.decode(model, model.scale(latent.encode(model, rows)[0])), pictures)


def _latents(model: VQModel, pictures: np.ndarray) -> np.ndarray:
    return _in_batches(lambda rows: _project(model, rows), pictures).reshape(-1, model.config.codebook_embed_dim)


def sphere_centres(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means on the unit sphere: `count` centres [count, width] of points [n, width] of length 1. An empty cluster is given a random point.

    Raises ValueError if there are fewer points than centres.
    """
    rng = np.random.default_rng(seed)
    centres = points[rng.choice(len(points), count, replace=False)]

    @jax.jit
    def assign(centres: jax.Array, points: jax.Array) -> jax.Array:
        return jnp.argmax(points @ centres.T, axis=1)

    for _ in range(KMEANS_ROUNDS):
        nearest = np.concatenate([np.asarray(assign(centres, points[begin : begin + 16384])) for begin in range(0, len(points), 16384)])
        sums = np.stack([np.bincount(nearest, points[:, column], count) for column in range(points.shape[1])], axis=1)
        empty = np.bincount(nearest, minlength=count) == 0
        sums[empty] = points[rng.choice(len(points), int(empty.sum()))]
        centres = (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return centres


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal to noise ratio in dB of each of two rows of pictures, [n, h, w, 3] uint8 -> [n]."""
    squared = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(squared, 1e-6))


def vq_scores(model: VQModel, pictures: np.ndarray) -> dict[str, float]:
    """Reconstruction PSNR in dB (the mean over pictures) and the share of codes in use on pictures [n, size, size, 3] uint8."""
    codes = _in_batches(lambda rows: vq.encode(model, rows), pictures)
    drawn = _in_batches(lambda rows: vq.decode(model, rows), codes)
    return {"psnr": float(psnr(drawn, pictures).mean()), "codes_in_use": len(np.unique(codes)) / model.config.codebook_size}


def kl_scores(model: AutoencoderKL, pictures: np.ndarray) -> dict[str, float]:
    """Reconstruction PSNR in dB, the mean over pictures [n, size, size, 3] uint8."""
    return {"psnr": float(psnr(through_kl(model, pictures), pictures).mean())}
