"""Training a checkpoint of the micro-world from nothing, by the same loop as all else, into its official layout, with a model card.

    python -m proxy_jax.main --config configs/micro/vq.py --workdir runs/micro/vq
"""

import importlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from proxy_jax.data import cache
from proxy_jax.models.autoencoder_kl import AutoencoderKLConfig
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.pretraining import autoencoders
from proxy_jax.stages import contract, files, learners
from proxy_jax.weights import autoencoder_kl, hub, vqgan
from proxy_jax.weights.table import load, save
from proxy_jax.weights.tensors import open_tensors

NAME = "pretraining"
OUTPUTS = ("weights", "card.json", "README.md")
HALF = jnp.float16
CURVE_POINTS = 100

# What a recipe does: reads the config and the caches, writes folder/weights, returns scores on held-out subjects.
Recipe = Callable[[ConfigDict, Path], dict[str, Any]]


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: its fields and the checkpoints it starts from."""
    locate = learners.locate(workdir)
    parts = {name: cache.fingerprint(locate(value)) for name, value in config.pretraining.parts.items() if value}
    return contract.fields(config, "seed", "compute", NAME) | {"parts": parts}


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains by the recipe; writes weights/, card.json and README.md (the model card)."""
    folder = workdir / NAME
    scores = RECIPES[config.pretraining.recipe](config, workdir)
    card = _card(config, folder, scores)
    files.write_json(folder / "card.json", card)
    files.write_bytes(folder / "README.md", card_text(card).encode())
    return scores


def _drawn() -> ModuleType:
    """proxy_jax.data.microworld.dataset. Raises StageError if skia, which draws it, is not installed: only this stage needs it."""
    try:
        return importlib.import_module("proxy_jax.data.microworld.dataset")
    except ImportError as error:
        raise contract.StageError(f'the micro-world is drawn with skia ({error}); pip install "skia-python>=138"') from error


def _world(config: ConfigDict) -> Any:
    fields = config.pretraining
    return _drawn().world(config.seed, fields.pictures, fields.resolution, Path(fields.pictures_cache).expanduser())


def vq(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """LlamaGen's tokenizer: weights/vq.safetensors and its sizes."""
    fields, folder = config.pretraining, workdir / NAME
    sizes = fields.model.to_dict()
    model_config = hub.config_from(VQConfig, sizes)
    model = autoencoders.train_vq(model_config, _world(config).pictures, fields, seed=config.seed, folder=folder)
    save(model, vqgan.table(model_config), folder / "weights" / "vq.safetensors", dtype=HALF)
    files.write_json(folder / "weights" / "vq.json", sizes)
    return autoencoders.vq_scores(model, _drawn().held_out(fields.resolution).pictures)


def kl(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """AutoencoderKL in a diffusers folder, weights/vae; it may begin as a tokenizer (parts.start)."""
    fields, folder = config.pretraining, workdir / NAME
    model_config = hub.config_from(AutoencoderKLConfig, fields.model.to_dict())
    start = None
    if fields.parts.start:
        path = learners.locate(workdir)(fields.parts.start)
        start_config = hub.vq_config(open_tensors(path), path)
        start = load(lambda: VQModel(start_config, rngs=nnx.Rngs(0)), vqgan.table(start_config), open_tensors(path), source=str(path))
    pictures = _world(config).pictures
    model, found = autoencoders.train_kl(model_config, pictures, fields, start=start, seed=config.seed, folder=folder)
    content = fields.model.to_dict() | {"_class_name": "AutoencoderKL", "shift_factor": found.shift_factor, "scaling_factor": found.scaling_factor}
    table = autoencoder_kl.table(found)
    hub.save_pretrained(model, table, folder / "weights" / "vae", config=content, filename="diffusion_pytorch_model.safetensors", dtype=HALF)
    return autoencoders.kl_scores(model, _drawn().held_out(fields.resolution).pictures)


RECIPES: dict[str, Recipe] = {"vq": vq, "kl": kl}


def _card(config: ConfigDict, folder: Path, scores: dict[str, Any]) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    every = max(1, len(lines) // CURVE_POINTS)
    means = [sum(line["loss"] for line in lines[i : i + every]) / len(lines[i : i + every]) for i in range(0, len(lines), every)]
    started = (folder / "STARTED.json").stat().st_mtime
    return {
        "recipe": config.pretraining.recipe,
        "seed": config.seed,
        "pictures": config.pretraining.pictures,
        "resolution": config.pretraining.resolution,
        "config": contract.fields(config, NAME)[NAME],
        "steps": config.pretraining.training.steps,
        "hours": round(((folder / "metrics.jsonl").stat().st_mtime - started) / 3600, 3),
        "hardware": hardware(),
        "versions": contract.versions(),
        "loss": {"steps": [i + 1 for i in range(0, len(lines), every)], "means": [round(mean, 5) for mean in means]},
        "scores": scores,
    }


def hardware() -> str:
    """Devices and processor, in words."""
    devices = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind} ({jax.default_backend()}), {os.cpu_count()} cores {platform.machine()}"


def card_text(card: dict[str, Any]) -> str:
    """The model card in Markdown."""
    loss = card["loss"]
    rows = [f"| {step} | {mean:.4f} |" for step, mean in list(zip(loss["steps"], loss["means"], strict=True))[:: max(1, len(loss["steps"]) // 12)]]
    return "\n".join(
        [
            f"# Micro checkpoint: {card['recipe']}",
            "",
            f"Trained from seed {card['seed']} on {card['pictures']} pictures of the micro-world at {card['resolution']} px, none of a held-out subject.",
            f"{card['steps']} steps in {card['hours']} hours on {card['hardware']}, jax {card['versions']['jax']}.",
            "",
            "| on held-out subjects | |",
            "|---|---|",
            *(f"| {name} | {value:.4g} |" for name, value in card["scores"].items()),
            "",
            "| from step | mean loss |",
            "|---|---|",
            *rows,
            "",
        ]
    )

