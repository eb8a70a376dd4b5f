"""Training a checkpoint of the micro-world from nothing, by the same loop as all else, into its official layout, with a model card.

python -m proxy_jax.main --config configs/micro/vq.py --workdir runs/micro/vq
"""

import importlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from proxy_jax.data import cache, loader
from proxy_jax.data.microworld import attributes, vocabulary
from proxy_jax.metrics import encoders
from proxy_jax.metrics.probes import Probe, Probes, config_of, labels
from proxy_jax.metrics.probes import table as probe_table
from proxy_jax.models import parameters
from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.clip import CLIP, CLIPConfig, CLIPTextConfig
from proxy_jax.models.layers import Compute
from proxy_jax.models.t5 import T5Config
from proxy_jax.models.vit import ViT, ViTConfig
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.pretraining import autoencoders, contrast, probing
from proxy_jax.stages import contract, files, learners, random_weights
from proxy_jax.stages.tuning import Learner, tune
from proxy_jax.training import lora
from proxy_jax.training.loop import fit
from proxy_jax.weights import autoencoder_kl, clip, hub, t5, vit, vqgan
from proxy_jax.weights.table import load, save
from proxy_jax.weights.tensors import open_tensors, write_safetensors

NAME = "pretraining"
OUTPUTS = ("weights", "card.json", "README.md")
HALF = jnp.float16
CURVE_POINTS = 100
RARE_WORD_SHARE = 0.1  # of captions get a word that means nothing, so that an unknown one does not hide the class

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
    """LlamaGen's tokenizer: weights/vq.safetensors and its sizes; it may begin as an AutoencoderKL (parts.start)."""
    fields, folder = config.pretraining, workdir / NAME
    sizes = fields.model.to_dict()
    model_config = hub.config_from(VQConfig, sizes)
    start = _autoencoder(config, workdir)
    model = autoencoders.train_vq(model_config, _world(config).pictures, fields, start=start, seed=config.seed, folder=folder)
    save(model, vqgan.table(model_config), folder / "weights" / "vq.safetensors", dtype=HALF)
    files.write_json(folder / "weights" / "vq.json", sizes)
    return autoencoders.vq_scores(model, _drawn().held_out(fields.resolution).pictures)


def kl(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """AutoencoderKL in a diffusers folder, weights/vae; it may begin as another (parts.start)."""
    fields, folder = config.pretraining, workdir / NAME
    model_config = hub.config_from(AutoencoderKLConfig, fields.model.to_dict())
    start = _autoencoder(config, workdir)
    pictures = _world(config).pictures
    model, found = autoencoders.train_kl(model_config, pictures, fields, start=start, seed=config.seed, folder=folder)
    content = fields.model.to_dict() | {"_class_name": "AutoencoderKL", "shift_factor": found.shift_factor, "scaling_factor": found.scaling_factor}
    table = autoencoder_kl.table(found)
    hub.save_pretrained(model, table, folder / "weights" / "vae", config=content, filename="diffusion_pytorch_model.safetensors", dtype=HALF)
    return autoencoders.kl_scores(model, _drawn().held_out(fields.resolution).pictures)


def _distinct(captions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different captions, sorted, and which of them each picture has, [n] int32."""
    unique = sorted(set(captions))
    numbers = {caption: number for number, caption in enumerate(unique)}
    return unique, np.array([numbers[caption] for caption in captions], np.int32)


def _fit(make: Callable[[], nnx.Module], loss: Any, columns: dict[str, np.ndarray], config: ConfigDict, folder: Path, tables=None) -> nnx.Module:
    """A model of random parameters trained by the stage's `training` fields."""
    model, training = parameters.random(make, config.seed), config.pretraining.training
    processes = dict(process_index=jax.process_index(), process_count=jax.process_count())
    batches = loader.batches(columns, batch_size=training.batch_size, seed=config.seed, tables=tables, **processes)
    return fit(model, loss, batches, config=training, trainable=lora.is_parameter, directory=folder, seed=config.seed)


def _captioned(world: Any, tokenizers: Mapping[str, Any], length: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Columns of pictures and the numbers of their captions, and tables of the captions' tokens, "<name>_ids" and "<name>_mask"."""
    captions, rows = _distinct(world.captions)
    options = dict(padding="max_length", max_length=length, truncation=True, return_attention_mask=True, return_tensors="np")
    tables = {}
    for name, tokenizer in tokenizers.items():
        batch = tokenizer(captions, **options)
        tables |= {f"{name}_ids": batch["input_ids"].astype(np.int32), f"{name}_mask": batch["attention_mask"].astype(np.int32)}
    return {"pictures": world.pictures, "caption": rows, loader.TABLE_INDEX: rows}, tables


def text_encoders(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """SD3's three text encoders with their tokenizers, in a diffusers pipeline's folders; the picture tower they learn with is left behind."""
    fields, folder = config.pretraining, workdir / NAME
    sizes, weights = fields.model.to_dict(), folder / "weights"
    first = CLIPConfig(sizes["text_encoder"], sizes["vision"], sizes["text_encoder"]["projection_dim"])
    second, third = hub.config_from(CLIPTextConfig, sizes["text_encoder_2"]), hub.config_from(T5Config, sizes["text_encoder_3"])
    length = first.text_config.max_position_embeddings
    tokenizers = {"clip": vocabulary.clip_tokenizer(length), "t5": vocabulary.t5_tokenizer(length)}
    columns, tables = _captioned(_world(config), tokenizers, length)

    def make() -> contrast.TextEncoders:
        return contrast.TextEncoders(first, second, third, rngs=nnx.Rngs(0))

    model = _fit(make, contrast.text_encoders_loss, columns, config, folder, tables)
    parts = {
        "text_encoder": (model.clip.text, clip.text_table(first.text_config), "CLIPTextModelWithProjection", "clip_text_model"),
        "text_encoder_2": (model.second, clip.text_table(second), "CLIPTextModelWithProjection", "clip_text_model"),
        "text_encoder_3": (model.t5, t5.table(third), "T5EncoderModel", "t5"),
    }
    for name, (part, table, kind, model_type) in parts.items():
        hub.save_pretrained(part, table, weights / name, config=sizes[name] | {"architectures": [kind], "model_type": model_type}, dtype=HALF)
    for name, kind in (("tokenizer", "clip"), ("tokenizer_2", "clip"), ("tokenizer_3", "t5")):
        tokenizers[kind].save_pretrained(weights / name)
    return {}


def metrics(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The metric encoders: weights/dino, a ViT by instance contrast, and weights/clip, both towers with their tokenizer."""
    fields, folder = config.pretraining, workdir / NAME
    sizes, weights = fields.model.to_dict(), folder / "weights"
    dino_config, clip_config = hub.config_from(ViTConfig, sizes["dino"]), hub.config_from(CLIPConfig, sizes["clip"])
    views = _drawn().instances(config.seed, fields.pictures // 2, 2, fields.resolution, Path(fields.pictures_cache).expanduser())
    views = _as_scored(views, encoders.dreambench(dino_config.image_size))
    dino = _fit(lambda: ViT(dino_config, rngs=nnx.Rngs(0)), contrast.instance_loss, {"views": views}, config, folder / "dino")
    content = sizes["dino"] | {"architectures": ["ViTModel"], "model_type": "vit"}
    hub.save_pretrained(dino, vit.table(dino_config), weights / "dino", config=content, dtype=HALF)

    length = clip_config.text_config.max_position_embeddings
    tokenizer = vocabulary.clip_tokenizer(length)
    columns, tables = _captioned(_world(config), {"clip": tokenizer}, length)
    model = _fit(lambda: CLIP(clip_config, rngs=nnx.Rngs(0)), contrast.clip_loss, columns, config, folder, tables)
    content = sizes["clip"] | {"architectures": ["CLIPModel"], "model_type": "clip"}
    hub.save_pretrained(model, clip.table(clip_config), weights / "clip", config=content, dtype=HALF)
    tokenizer.save_pretrained(weights / "clip")
    found = encoders.MetricEncoders.load(weights / "dino", weights / "clip", compute=Compute(), batch_size=64, dino_preprocessing="dreambench")
    return contrast.metric_scores(found, _drawn().held_out(fields.resolution), _drawn().photos(fields.resolution))


def _as_scored(pictures: np.ndarray, preprocessing: encoders.Preprocessing) -> np.ndarray:
    """Pictures [..., h, w, 3] uint8 resized and cropped as the metric will see them, uint8."""
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    seen = np.empty((len(flat), *preprocessing.size, 3), np.uint8)
    for row, picture in enumerate(flat):
        seen[row] = np.rint((preprocessing(picture) * np.float32(preprocessing.std) + np.float32(preprocessing.mean)) * 255)
    return seen.reshape(*pictures.shape[:-3], *seen.shape[1:])


def probes(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The probe, weights/probes. A quarter of its pictures have gone through the tokenizer (parts.vq), as generated ones have."""
    fields, folder = config.pretraining, workdir / NAME
    world = _world(config)
    content = fields.model.to_dict() | {"id2label": labels(attributes.ATTRIBUTES)}
    probe_config = config_of(content)
    alone = np.flatnonzero(~world.paired)
    pictures = world.pictures[alone]
    quarter = len(pictures) // 4
    pictures = np.concatenate([autoencoders.reconstructions(_vq_model(config, workdir), pictures[:quarter]), pictures[quarter:]])
    columns = {"pictures": pictures} | {probing.TRUTH + name: values[alone] for name, values in world.truths.items()}
    model = _fit(lambda: Probe(probe_config, rngs=nnx.Rngs(0)), probing.probe_loss, columns, config, folder)
    content |= {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "label2id": {name: int(n) for n, name in content["id2label"].items()},
    }
    hub.save_pretrained(model, probe_table(probe_config), folder / "weights" / "probes", config=content, dtype=HALF)
    held_out = _drawn().held_out(fields.resolution)
    return probing.accuracies(Probes(model), held_out.pictures, held_out.truths())


def _autoencoder(config: ConfigDict, workdir: Path) -> AutoencoderKL | None:
    """The autoencoder in the folder parts.start; None without one."""
    if not config.pretraining.parts.start:
        return None
    folder = learners.locate(workdir)(config.pretraining.parts.start)
    return hub.load_pretrained(folder, AutoencoderKL, AutoencoderKLConfig, autoencoder_kl.table, compute=Compute())


def _vq_model(config: ConfigDict, workdir: Path) -> VQModel:
    """The tokenizer parts.vq."""
    path = learners.locate(workdir)(config.pretraining.parts.vq)
    vq_config = hub.vq_config(open_tensors(path), path)
    return load(lambda: VQModel(vq_config, rngs=nnx.Rngs(0)), vqgan.table(vq_config), open_tensors(path), source=str(path))


def _generator(config: ConfigDict, workdir: Path, learner: Learner) -> dict[str, Any]:
    """Trains a learner whole on captioned pictures, as stages 1 and 3 tune; returns how well it draws what prompts ask for."""
    fields, folder = config.pretraining, workdir / NAME
    world = _world(config)
    rng = np.random.default_rng([config.seed, 1])
    captions = [vocabulary.with_rare_word(caption, rng) if rng.random() < RARE_WORD_SHARE else caption for caption in world.captions]
    captions = ["" if rng.random() < fields.empty_captions else caption for caption in captions]
    stage = ConfigDict(dict(mode="full", training=fields.training.to_dict(), prior=dict(weight=0.0)))
    cache_folder = Path(fields.pictures_cache).expanduser()
    tune(learner, world.pictures, captions, stage=stage, batch_size=64, seed=config.seed, folder=folder, cache=cache_folder)
    for file in (folder / "weights").rglob("*.safetensors"):
        halve(file)
    return {}


def halve(file: Path) -> None:
    """Rewrites a safetensors file in half precision."""
    tensors = open_tensors(file)
    values = {name: tensors.read(name, tuple(slice(None) for _ in shape)).astype(HALF) for name, shape in tensors.shapes().items()}
    write_safetensors(values, file, {"format": "pt"})


def supervisor(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """SD3's denoiser, weights/transformer, on the autoencoder and the text encoders of the pipeline parts.encoders.

    Resolution, text length and the loss's weighting are those of `supervisor` and `subject_tuning`, as for a published one.
    """
    fields, base = config.pretraining, workdir / NAME / "base"
    locate, sizes = learners.locate(workdir), fields.model.to_dict()
    for part in ("vae", *(f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))):
        shutil.copytree(locate(fields.parts.encoders) / part, base / part, dirs_exist_ok=True)
    random_weights.denoiser(sizes, base, config.seed, shift=fields.shift)
    if fields.parts.start:
        shutil.copytree(locate(fields.parts.start), base / "transformer", dirs_exist_ok=True)
    config = ConfigDict(config.to_dict())
    config.supervisor.checkpoint = str(base)
    return _generator(config, workdir, learners.supervisor(config, workdir))


def student(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """LlamaGen's decoder, weights/gpt.safetensors with its sizes, on the tokenizer and the text encoder of `student`."""
    fields, base = config.pretraining, workdir / NAME / "base"
    random_weights.decoder(base, fields.model.to_dict(), config.seed)
    if fields.parts.start:
        shutil.copy(learners.locate(workdir)(fields.parts.start), base / "gpt.safetensors")
    config = ConfigDict(config.to_dict())
    config.student.gpt = str(base / "gpt.safetensors")
    return _generator(config, workdir, learners.student(config, workdir))


RECIPES: dict[str, Recipe] = {recipe.__name__: recipe for recipe in (vq, kl, text_encoders, metrics, probes, supervisor, student)}


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
            f"Trained from seed {card['seed']} on {card['pictures']} pictures of the micro-world at {card['resolution']} px,",
            "none of which shows a held-out subject.",
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
