"""Tuning a learner on pictures of a subject: what stages 1 and 3 share. Both only choose the pictures and the fields.

Frozen encoders run once over pictures and prompts, their outputs cached on disk; then the one training loop runs on those.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from proxy_jax import sharding
from proxy_jax.data import cache as disk
from proxy_jax.data import images, loader
from proxy_jax.models import parameters
from proxy_jax.models.layers import Compute, SubjectEmbed
from proxy_jax.stages import files
from proxy_jax.students.lumina_tokens import nearest_bucket
from proxy_jax.training import lora
from proxy_jax.training.loop import fit
from proxy_jax.training.optimizer import Override
from proxy_jax.weights.table import Part

KOHYA_FILE = "kohya_lora_weights.safetensors"
EMBEDDING = "embedding"  # the first training of mode "two_stage"
Preview = Callable[..., None]  # (model, step, folder=...)
Size = tuple[int, int]  # width and height in pixels


class Learner(Protocol):
    """What the stages need of a supervisor or a student. Adding a family means writing one of these."""

    resolution: int
    crop: str  # a key of CROPS
    compute: Compute
    lora_prefix: str  # before every module name in an adapter file (training/lora.py)

    @property
    def base(self) -> Path:
        """The file or folder of the trained model's base weights."""

    def settings(self) -> dict[str, Any]:
        """What else of the checkpoint decides how the trained model is tuned and drawn from, as JSON."""

    def parts(self, model: nnx.Module) -> Sequence[Part]:
        """What of the trained model adapters go on: the model, or a denoiser and then its text encoders, each below its prefix in the model."""

    def encoders(self) -> dict[str, Any]:
        """All that decides what the frozen encoders return: files and folders (as Path) and settings."""

    def encode_prompts(self, prompts: Sequence[str], sizes: Sequence[Size] = ()) -> dict[str, np.ndarray]:
        """The text columns of a batch, one row a prompt.

        sizes: of the pictures that the prompts are of, where those are not all squares of `resolution`; only a learner whose crop leaves
        other shapes has them.
        """

    def encode_images(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The picture columns of a batch, one row each of [n, height, width, 3] uint8, cropped as `crop` says."""

    def crop_columns(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """Picture columns in place of those of `encode_images` that depend on the crop, of supervisors; crops [n, 4] as `cropped` returns them."""

    def load_model(self, dtype_of: Callable[[str], Any], tuned: Path | None = None) -> nnx.Module:
        """The trained part, from the base checkpoint or from what `save_model` wrote into the folder `tuned`."""

    def save_model(self, model: nnx.Module, folder: Path) -> None:
        """Writes the trained part in its official layout."""

    def learn_subjects(self, model: nnx.Module, text: Mapping[str, np.ndarray]) -> None:
        """Puts features of the subjects' tokens to learn on the model (SubjectEmbed), for students; text: the text columns they start from."""

    def save_subjects(self, model: nnx.Module, folder: Path) -> None:
        """Writes what a model has learned of the subjects' tokens (SubjectEmbed) in a file of its own, if it learns it."""

    def load_subjects(self, model: nnx.Module, folder: Path) -> None:
        """Puts on the model what `save_subjects` wrote."""

    def loss(self, model: nnx.Module, batch: Mapping[str, jax.Array], rng: jax.Array) -> jax.Array:
        """One loss an example [batch]; its randomness is a function of rng and batch["row_index"]."""

    def draw(self, model, text, unconditional, seed: int, indices: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
        """Pictures [batch, resolution, resolution, 3] uint8 for the rows of `text`, a function of (seed, index) each."""


def encoders_key(learner: Learner) -> dict[str, Any]:
    """A learner's frozen encoders as JSON: the fingerprints of their files, and their settings."""
    return {name: disk.fingerprint(value) if isinstance(value, Path) else value for name, value in learner.encoders().items()}


def checkpoint_key(learner: Learner) -> dict[str, Any]:
    """All of a learner's checkpoint as JSON, the trained part included: what a stage's inputs say of it."""
    return encoders_key(learner) | learner.settings() | {"base": disk.fingerprint(learner.base)}


def encode_prompts(learner: Learner, prompts: Sequence[str], cache: Path, sizes: Sequence[Size] = ()) -> dict[str, np.ndarray]:
    """The learner's text columns for `prompts`, computed once and kept in the folder `cache`; sizes: see Learner.encode_prompts."""
    told = {"sizes": sizes} if sizes else {}
    key = {"prompts": list(prompts), "encoders": encoders_key(learner), **told}
    return disk.cached(cache, key, lambda: learner.encode_prompts(prompts, **told))


def encode_images(learner: Learner, pictures: Sequence[np.ndarray], batch_size: int, cache: Path) -> dict[str, np.ndarray]:
    """The learner's picture columns for `pictures` [height, width, 3] uint8, computed once, in batches of one length and shape."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    digest = hashlib.sha256()
    for number, picture in enumerate(pictures):
        shapes.setdefault(picture.shape, []).append(number)
        digest.update(picture.tobytes())

    def compute() -> dict[str, np.ndarray]:
        parts, order = [], []
        for members in shapes.values():
            for rows, kept in sharding.row_batches(len(members), batch_size):
                if parts:
                    logging.log_every_n_seconds(logging.INFO, "encoded %d of %d pictures", 30, len(order), len(pictures))
                columns = learner.encode_images(np.stack([pictures[members[row]] for row in rows]))
                parts.append({name: values[:kept] for name, values in columns.items()})
                order += [members[row] for row in rows[:kept]]
        return {name: np.concatenate([part[name] for part in parts])[np.argsort(order)] for name in parts[0]}

    key = {"pictures": digest.hexdigest(), "shapes": [[shape, len(members)] for shape, members in shapes.items()], "encoders": encoders_key(learner)}
    return disk.cached(cache, key, compute)


# How a learner's training pictures are cut: Learner.crop -> function of (Pillow image, resolution).
CROPS: dict[str, Callable[[Image.Image, int], np.ndarray]] = {
    "bilinear": lambda image, size: images.resize_crop(image, size, Image.Resampling.BILINEAR),  # diffusers' DreamBooth scripts for SD3
    "lanczos": lambda image, size: images.resize_crop(image, size, Image.Resampling.LANCZOS),  # and for SDXL
    "llamagen": images.center_crop_arr,
    "lumina_mgpt": lambda image, size: images.center_crop_arr(image, *nearest_bucket(*image.size, size)),
}


def cropped(
    learner: Learner, pictures: Sequence[Image.Image], prompts: Sequence[str], stage: ConfigDict, seed: int
) -> tuple[list[np.ndarray], list[str], np.ndarray]:
    """The pictures cropped as the learner wants them, [height, width, 3] uint8, the prompt of each, and how each was cropped.

    The last, [n, 4] int: height and width before; top and left of a square cut, after the resize that goes before it.
    stage.augment "none": one of each; "paper": stage.augment_variants augmented copies of each instead, one after another.
    """
    crop, size, rng = CROPS[learner.crop], learner.resolution, np.random.default_rng(seed)
    augmented = stage.augment == "paper"
    cut, texts, crops = [], [], []
    for picture, prompt in zip(pictures, prompts, strict=True):
        for _ in range(stage.augment_variants if augmented else 1):
            variant = images.augment(picture, rng) if augmented else picture
            cut.append(crop(variant, size))
            texts.append(prompt)
            crops.append((variant.height, variant.width, *images.crop_corner(*variant.size, size)))
    return cut, texts, np.asarray(crops)


def tune(
    learner: Learner,
    pictures: Sequence[np.ndarray],
    prompts: Sequence[str],
    *,
    stage: ConfigDict,
    batch_size: int,
    seed: int,
    folder: Path,
    cache: Path,
    columns: Mapping[str, np.ndarray] = MappingProxyType({}),
    prior: tuple[np.ndarray, Sequence[str]] | None = None,
    preview: Preview | None = None,
) -> dict[str, Any]:
    """Tunes the learner on pictures and their prompts and writes it under folder/weights; `stage`: the stage's own fields.

    Mode "two_stage" (Sun et al., arXiv 2504.13162): first the text features of the subjects' tokens, under folder/embedding, then all weights.
    columns: of the pictures, in place of the learner's own of the same names (Learner.crop_columns).
    prior: class pictures and their prompts for prior preservation, half of every batch. batch_size: of the encoders.
    preview(model, step, folder=...): as `previews` returns it.
    Returns the numbers of trained and of all parameters.
    """

    def asked(pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[tuple[str, Size]]:
        return [(prompt, (picture.shape[1], picture.shape[0])) for picture, prompt in zip(pictures, prompts, strict=True)]

    unique = sorted({*asked(pictures, prompts), *(asked(*prior) if prior else ())})
    place = {key: row for row, key in enumerate(unique)}
    texts, sizes = zip(*unique, strict=True)
    squares = set(sizes) == {(learner.resolution, learner.resolution)}
    tables = encode_prompts(learner, texts, cache, () if squares else sizes)

    def examples(pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> dict[str, np.ndarray]:
        rows = np.asarray([place[key] for key in asked(pictures, prompts)], np.int32)
        return encode_images(learner, pictures, batch_size, cache) | {loader.TABLE_INDEX: rows}

    instances, others = examples(pictures, prompts) | columns, examples(*prior) if prior else None
    model = trainable_model(learner, stage, tables, seed)
    counts = {"trained_parameters": 0, "all_parameters": count(model)}
    for name, training in trainings(stage).items():
        common = dict(tables=tables, batch_size=training.batch_size, seed=seed)
        common |= dict(zip(("process_index", "process_count"), sharding.batch_share(sharding.current()), strict=True))
        if has_prior(stage, name):
            batches = loader.paired(instances, others, prior_weight=stage.prior.weight, **common)
        else:
            batches = loader.batches(instances, **common)
        trainable = is_subject if name == EMBEDDING else TRAINABLE[stage.mode]
        counts["trained_parameters"] += count(model, trainable)
        show = preview and functools.partial(preview, folder=folder / name / "previews")
        options = dict(trainable=trainable, directory=folder / name, seed=seed, preview=show, overrides=overrides(learner, model, stage, training))
        model = fit(model, learner.loss, batches, config=training, **options)
    if stage.mode == "lora":
        _save_adapters(learner, model, folder)
    else:
        learner.save_model(model, folder / "weights")
    learner.save_subjects(model, folder / "weights")
    return counts


def adopt(learner: Learner, adapters: Path, stage: ConfigDict, folder: Path) -> dict[str, Any]:
    """Takes adapters trained elsewhere (a file, or the folder of one) for what `tune` would have written under folder/weights.

    Raises WeightsError for a file that is none for this model.
    """
    model = base_model(learner, stage)
    file = adapters / lora.file_name(learner.lora_prefix) if adapters.is_dir() else adapters
    names = lora.load(learner.parts(model), file)
    logging.info("%s: LoRA on %d kernels; nothing is trained", file, len(names))
    _save_adapters(learner, model, folder)
    (folder / "metrics.jsonl").touch()
    return {"trained_parameters": 0, "all_parameters": count(model)}


def _adapters(learner: Learner, folder: Path) -> Path:
    return folder / "weights" / lora.file_name(learner.lora_prefix)


def _save_adapters(learner: Learner, model: nnx.Module, folder: Path) -> None:
    """Writes them, and in kohya's naming too where it has names for them: adapters from elsewhere may be such that it has none."""
    parts = learner.parts(model)
    lora.save(parts, _adapters(learner, folder))
    if all(part.table.original for part in parts):
        try:
            lora.save_kohya(parts, folder / "weights" / KOHYA_FILE)
        except ValueError as error:
            logging.warning("no %s is written: %s", KOHYA_FILE, error)


def overrides(learner: Learner, model: nnx.Module, stage: ConfigDict, training: ConfigDict) -> dict[str, Override]:
    """What the optimizer does otherwise with what trains of the text encoders: other rates; new tokens learn at first, near the known ones."""
    found = {}
    for part in learner.parts(model)[1:]:
        adapters, tokens = (parameters.arrays(part.model, kind) for kind in (lora.is_lora, is_subject))
        found |= {f"{part.prefix}.{name}": Override(stage.lora.text_encoder_learning_rate / training.learning_rate) for name in adapters}
        for name in tokens:
            deviation = jax.jit(lambda table: jnp.std(table.astype(jnp.float32), ddof=1))
            known = sharding.apply(deviation, parameters.value(part.model.token_embed.embedding))
            rate, steps = stage.embedding.learning_rate / training.learning_rate, int(stage.embedding.fraction * training.steps)
            found[f"{part.prefix}.{name}"] = Override(rate, steps, float(sharding.to_host(known)))
    return found


def trainings(stage: ConfigDict) -> dict[str, ConfigDict]:
    """A stage's trainings in their order: the folder below the stage's -> the fields."""
    return ({EMBEDDING: stage.embedding} if stage.mode == "two_stage" else {}) | {"": stage.training}


def has_prior(stage: ConfigDict, name: str) -> bool:
    """Whether half of each batch of a training are class pictures. Their prompts lack the token, so its embedding learns nothing from them."""
    return stage.prior.weight > 0 and name != EMBEDDING


def is_subject(name: str, variable: nnx.Variable) -> bool:
    """Trains the text features of subjects' tokens only."""
    return isinstance(variable, SubjectEmbed)


def is_adapter_or_subject(name: str, variable: nnx.Variable) -> bool:
    """Trains adapters and, of a supervisor that learns new tokens, their embeddings."""
    return lora.is_lora(name, variable) or is_subject(name, variable)


# What trains, by a stage's mode; of two_stage in its second training.
TRAINABLE = {"lora": is_adapter_or_subject, "full": lora.is_parameter, "two_stage": lora.is_parameter}


def count(model: nnx.Module, keep: Callable[[str, nnx.Variable], bool] = lambda name, variable: True) -> int:
    """The number of scalars in the variables for which keep(name, variable) holds."""
    return sum(array.size for array in parameters.arrays(model, keep).values())


def trainable_model(learner: Learner, stage: ConfigDict, text: Mapping[str, np.ndarray], seed: int) -> nnx.Module:
    """The learner's model ready for `fit`: with adapters on a base in the compute dtype, or whole in float32.

    text: the text columns of the prompts it will see, from which learned features of the subjects' tokens start.
    """
    if stage.mode == "lora":
        return adapted_model(learner, stage, seed)
    model = learner.load_model(lambda name: jnp.float32)
    if stage.mode == "two_stage":
        learner.learn_subjects(model, text)
    return model


def adapted_model(learner: Learner, stage: ConfigDict, seed: int) -> nnx.Module:
    """The untuned model, frozen, with adapters to tune."""
    model = base_model(learner, stage)
    for number, part in enumerate(learner.parts(model)):
        pattern = stage.lora.text_encoders if number else stage.lora.pattern
        if not pattern:
            continue
        names = lora.attach(part.model, pattern, stage.lora.rank, stage.lora.alpha, jax.random.key(seed + number))
        logging.info("LoRA of rank %d on %d kernels of %s", stage.lora.rank, len(names), type(part.model).__name__)
    return model


def base_model(learner: Learner, stage: ConfigDict) -> nnx.Module:
    """The untuned model, frozen: in the compute dtype, or, if the stage trains adapters on it so, its kernels in int8."""
    int8 = stage.mode == "lora" and stage.lora.base == "int8"
    return learner.load_model(lambda name: jnp.int8 if int8 and name.endswith(".kernel") else learner.compute.dtype)


def tuned_model(learner: Learner, stage: ConfigDict, folder: Path) -> nnx.Module:
    """The model that `tune` wrote under folder/weights, to draw from; adapters stay beside their kernels, unrounded."""
    if stage.mode == "lora":
        model = base_model(learner, stage)
        lora.load(learner.parts(model), _adapters(learner, folder))
    else:
        model = learner.load_model(lambda name: learner.compute.dtype, tuned=folder / "weights")
    learner.load_subjects(model, folder / "weights")
    return model


def previews(learner: Learner, prompts: Sequence[str], stage: ConfigDict, *, seed: int, options: Mapping[str, Any], cache: Path) -> Preview | None:
    """A function that draws one picture a prompt at fixed seeds, side by side, as folder/step_000100.png; None if the stage wants none."""
    if not any(training.preview_every for training in trainings(stage).values()):
        return None
    text = encode_prompts(learner, [*prompts, ""], cache)
    indices = np.arange(sharding.padded(len(prompts)))
    rows = {name: values[np.minimum(indices, len(prompts) - 1)] for name, values in text.items()}
    unconditional = {name: values[-1:] for name, values in text.items()}

    def preview(model: nnx.Module, step: int, folder: Path) -> None:
        pictures = learner.draw(model, rows, unconditional, seed, indices, options)[: len(prompts)]
        files.save_picture(folder / f"step_{step:06d}.png", images.grid(list(pictures), columns=len(prompts)))

    return preview
