"""Training a checkpoint of the micro-world from nothing, by the same loop as all else, into its official layout, with a model card.

python -m proxy_jax.main --config configs/micro/vq.py --workdir runs/micro/vq
"""

import functools
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from proxy_jax.data import cache, loader, prompts
from proxy_jax.data.microworld import vocabulary
from proxy_jax.data.microworld.attributes import ATTRIBUTES
from proxy_jax.data.microworld.looks import CLASS_NOUNS, LIVE
from proxy_jax.data.microworld.scenes import ASKED
from proxy_jax.metrics import attributes, encoders
from proxy_jax.metrics.probes import Probe, Probes, config_of, labels
from proxy_jax.metrics.probes import table as probe_table
from proxy_jax.models import parameters
from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.clip import CLIP, CLIPConfig, CLIPTextConfig
from proxy_jax.models.layers import Compute
from proxy_jax.models.t5 import T5Config
from proxy_jax.models.vit import ViT, ViTConfig
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.pretraining import autoencoders, card, contrast, probing
from proxy_jax.stages import contract, files, learners, microworld, random_weights
from proxy_jax.stages.drawing import draw_images
from proxy_jax.stages.tuning import Learner, tune
from proxy_jax.training import lora
from proxy_jax.training.loop import fit
from proxy_jax.weights import autoencoder_kl, clip, hub, t5, vit, vqgan
from proxy_jax.weights.table import load, save
from proxy_jax.weights.tensors import open_tensors, write_safetensors

NAME = "pretraining"
OUTPUTS = ("weights", "card.json", "README.md")
HALF = jnp.float16
RARE_WORD_SHARE = 0.1  # of captions get a word that means nothing, so that an unknown one does not hide the class

# What a recipe does: trains, writes folder/weights as they lie among the checkpoints, and returns scores on held-out subjects.
Recipe = Callable[[ConfigDict, Path], dict[str, Any]]
# Recipes that train a learner: its field in the config, and the stage whose fields it has
ROLE = {"sd3": ("supervisor", "subject_tuning"), "sdxl": ("supervisor", "subject_tuning"), "student": ("student", "proxy_tuning")}


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: its fields, the checkpoints it needs, and how the pictures look."""
    fields, locate = config.pretraining, learners.locate(workdir)
    if fields.recipe not in RECIPES:
        raise contract.StageError(f"pretraining.recipe is {fields.recipe!r}; known: {', '.join(RECIPES)}")
    found = contract.fields(config, "seed", "compute", NAME)
    found["parts"] = {name: cache.fingerprint(locate(value)) for name, value in fields.parts.items() if value}
    if fields.recipe in ROLE:
        found |= contract.fields(config, *ROLE[fields.recipe])
    if fields.recipe == "student":
        found["encoders"] = [cache.fingerprint(locate(config.student[name])) for name in ("vq", "text_encoder")]
    return found | {"world": _drawn().version(config.seed, fields.resolution)}


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains by the recipe; writes weights/, card.json and README.md (the model card), and copies them to pretraining.publish."""
    fields, folder, begin = config.pretraining, workdir / NAME, time.time()
    resumed = any(folder.rglob("checkpoints"))
    before = files.read_json(folder / "card.json") or {}  # of the same training, when only what follows it is done again
    scores = RECIPES[fields.recipe](config, workdir)
    content = {name: fields[name] for name in ("recipe", "pictures", "resolution")} | {
        "seed": config.seed,
        "config": contract.fields(config, NAME)[NAME],
        "hours": round(before.get("hours", 0.0) + (time.time() - begin) / 3600, 2),
        "resumed": resumed,
        "hardware": card.hardware(),
        "versions": contract.versions(),
        "losses": card.losses(folder),
        "scores": scores,
    }
    files.write_json(folder / "card.json", content)
    files.write_bytes(folder / "README.md", card.text(content).encode())
    if fields.publish:
        target = learners.path(fields.publish, workdir)
        shutil.copytree(folder / "weights", target, dirs_exist_ok=True)
        for name in ("card.json", "README.md"):
            files.write_bytes(target / "cards" / fields.recipe / name, (folder / name).read_bytes())
    return scores


def _drawn() -> ModuleType:
    """proxy_jax.data.microworld.dataset. Raises StageError if it cannot draw."""
    return microworld.module("dataset")


def _pictures_cache(config: ConfigDict) -> Path:
    """pretraining.pictures_cache; a relative one lies where the command is run, as a workdir does."""
    return Path(config.pretraining.pictures_cache).expanduser()


def _world(config: ConfigDict) -> Any:
    fields = config.pretraining
    return _drawn().world(config.seed, fields.pictures, fields.resolution, _pictures_cache(config))


def vq(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """LlamaGen's tokenizer: student/vq.safetensors and its sizes; it may begin as an AutoencoderKL (parts.start)."""
    fields, folder = config.pretraining, workdir / NAME
    file = folder / "weights" / "student" / "vq.safetensors"
    sizes = fields.model.to_dict()
    model_config = hub.config_from(VQConfig, sizes)
    start = _autoencoder(learners.locate(workdir)(fields.parts.start)) if fields.parts.start else None
    model = autoencoders.train_vq(model_config, _world(config).pictures, fields, start=start, seed=config.seed, folder=folder)
    save(model, vqgan.table(model_config), file, dtype=HALF)
    files.write_json(file.with_suffix(".json"), sizes)
    return autoencoders.vq_scores(_vq_model(file), _drawn().held_out(fields.resolution).pictures)


def kl(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """AutoencoderKL in a diffusers folder, supervisor/vae; it may begin as another (parts.start)."""
    fields, folder = config.pretraining, workdir / NAME
    model_config = hub.config_from(AutoencoderKLConfig, fields.model.to_dict())
    start = _autoencoder(learners.locate(workdir)(fields.parts.start)) if fields.parts.start else None
    pictures = _world(config).pictures
    model, found = autoencoders.train_kl(model_config, pictures, fields, start=start, seed=config.seed, folder=folder)
    content = fields.model.to_dict() | {"_class_name": "AutoencoderKL", "shift_factor": found.shift_factor, "scaling_factor": found.scaling_factor}
    target = folder / "weights" / "supervisor" / "vae"
    hub.save_pretrained(model, autoencoder_kl.table(found), target, config=content, filename="diffusion_pytorch_model.safetensors", dtype=HALF)
    return autoencoders.kl_scores(_autoencoder(target), _drawn().held_out(fields.resolution).pictures)


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
    tables = contrast.token_columns(captions, tokenizers, length)
    return {"pictures": world.pictures, "caption": rows, loader.TABLE_INDEX: rows}, tables


def text_encoders(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """SD3's three text encoders with their tokenizers, in a diffusers pipeline's folders; the picture tower they learn with is left behind."""
    fields, folder = config.pretraining, workdir / NAME
    sizes, weights = fields.model.to_dict(), folder / "weights" / "supervisor"
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
    for part in ("text_encoder_3", "tokenizer_3"):  # LlamaGen looks for both in one folder
        shutil.copytree(weights / part, folder / "weights" / "student" / "text_encoder", dirs_exist_ok=True)
    return contrast.text_scores(model, tokenizers, _drawn().held_out(fields.resolution), length)


def metrics(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The metric encoders: metrics/dino, a ViT by instance contrast, and metrics/clip, both towers with their tokenizer."""
    fields, folder = config.pretraining, workdir / NAME
    sizes, weights = fields.model.to_dict(), folder / "weights" / "metrics"
    dino_config, clip_config = hub.config_from(ViTConfig, sizes["dino"]), hub.config_from(CLIPConfig, sizes["clip"])
    views = _drawn().instances(config.seed, fields.pictures // 2, 2, fields.resolution, _pictures_cache(config))
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
    """The probe, metrics/probes.

    A quarter of its pictures have gone through the tokenizer (parts.vq) and a quarter through the autoencoder (parts.vae), as what the
    student and the supervisor draw has.
    """
    fields, folder, locate = config.pretraining, workdir / NAME, learners.locate(workdir)
    vq_model, vae = _vq_model(locate(fields.parts.vq)), _autoencoder(locate(fields.parts.vae))
    world = _world(config)
    content = fields.model.to_dict() | {"sample_size": fields.resolution, "id2label": labels(ATTRIBUTES)}
    probe_config = config_of(content)
    alone = np.flatnonzero(~world.paired)
    pictures = world.pictures[alone]
    quarter = len(pictures) // 4
    first, second, rest = pictures[:quarter], pictures[quarter : 2 * quarter], pictures[2 * quarter :]
    parts = {name: cache.fingerprint(locate(fields.parts[name])) for name in ("vq", "vae")}
    through = cache.cached(
        _pictures_cache(config),
        {"pictures": cache.digest([hashlib.sha256(part.tobytes()).hexdigest() for part in (first, second)]), "shape": first.shape} | parts,
        lambda: {"vq": autoencoders.through_vq(vq_model, first), "vae": autoencoders.through_kl(vae, second)},
    )
    columns = {"pictures": np.concatenate([through["vq"], through["vae"], rest])}
    columns |= {probing.TRUTH + name: values[alone] for name, values in world.truths.items()}
    model = _fit(lambda: Probe(probe_config, rngs=nnx.Rngs(0)), probing.probe_loss, columns, config, folder)
    target, held_out = folder / "weights" / "metrics" / "probes", _drawn().held_out(fields.resolution)
    hub.save_pretrained(model, probe_table(probe_config), target, config=content, dtype=HALF)
    seen = {
        "": held_out.pictures,
        "_vq": autoencoders.through_vq(vq_model, held_out.pictures),
        "_vae": autoencoders.through_kl(vae, held_out.pictures),
    }
    loaded = Probes.load(target)
    found = {kind: probing.accuracies(loaded, pictures, held_out.truths()) for kind, pictures in seen.items()}
    return {f"{name}{kind}": value for kind, own in found.items() for name, value in own.items()}


def _autoencoder(folder: Path) -> AutoencoderKL:
    """The autoencoder in a diffusers folder."""
    return hub.load_pretrained(folder, AutoencoderKL, AutoencoderKLConfig, autoencoder_kl.table, compute=Compute())


def _vq_model(path: Path) -> VQModel:
    """The tokenizer in a file."""
    vq_config = hub.vq_config(open_tensors(path), path)
    return load(lambda: VQModel(vq_config, rngs=nnx.Rngs(0)), vqgan.table(vq_config), open_tensors(path), source=str(path))


def _generator(config: ConfigDict, workdir: Path, make: Callable[[ConfigDict, Path], Learner], target: Path, empty_captions: float) -> dict[str, Any]:
    """Trains a learner whole on captioned pictures, as stages 1 and 3 tune, and leaves its halved weights in `target`; returns how
    often the probe (parts.probes) reads in its pictures what their prompts ask for; {} without a probe.

    empty_captions: the share of pictures without a caption.
    """
    fields, folder = config.pretraining, workdir / NAME
    world, learner = _world(config), make(config, workdir)
    rng = np.random.default_rng([config.seed, 1])
    captions = [vocabulary.with_rare_word(caption, rng) if rng.random() < RARE_WORD_SHARE else caption for caption in world.captions]
    captions = ["" if rng.random() < empty_captions else caption for caption in captions]
    stage = ConfigDict(dict(mode="full", training=fields.training.to_dict(), prior=dict(weight=0.0)))
    cache_folder = _pictures_cache(config)
    tune(learner, world.pictures, captions, stage=stage, batch_size=64, seed=config.seed, folder=folder / "tuned", cache=cache_folder)
    for file in (folder / "tuned" / "weights").rglob("*.safetensors"):
        halve(file)
    shutil.copytree(folder / "tuned" / "weights", target, dirs_exist_ok=True)
    if not fields.parts.probes:
        return {}
    return _prompt_scores(config, workdir, learner, folder / "tuned" / "weights")


def _prompt_scores(config: ConfigDict, workdir: Path, learner: Learner, tuned: Path) -> dict[str, float]:
    """The shares of pictures, one for each class and each of its DreamBench prompts, in which the probe reads the class, and the context."""
    asked = [(noun, template) for noun in CLASS_NOUNS for template in prompts.dreambench_prompts(noun in LIVE)]
    wanted = [prompts.without_token(template, noun) for noun, template in asked]
    paths = draw_images(
        learner,
        lambda: learner.load_model(lambda name: learner.compute.dtype, tuned=tuned),
        wanted,
        workdir / NAME / "drawn",
        seed=config.seed + 2,
        batch_size=config.evaluation.batch_size,
        options=config.evaluation[ROLE[config.pretraining.recipe][0]].to_dict(),
        cache=workdir / "cache",
        label="prompts",
    )
    read = Probes.load(learners.locate(workdir)(config.pretraining.parts.probes)).read(np.stack([files.load_picture(path) for path in paths]))
    right = [found == noun for found, (noun, _) in zip(read["class_noun"], asked, strict=True)]
    context = attributes.context(read, [ASKED[template].named() for _, template in asked])
    return {"right_class": float(np.mean(right)), "context": float(np.mean(context))}


def halve(file: Path) -> None:
    """Rewrites a safetensors file in half precision."""
    tensors = open_tensors(file)
    values = {name: tensors.read(name, tuple(slice(None) for _ in shape)).astype(HALF) for name, shape in tensors.shapes().items()}
    write_safetensors(values, file, {"format": "pt"})


def sd3(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """SD3's denoiser, in the pipeline folder `supervisor`, on the autoencoder and the text encoders of the pipeline parts.encoders."""
    sizes, shift = config.pretraining.model.to_dict(), config.pretraining.shift
    make = functools.partial(random_weights.denoiser, sizes, seed=config.seed, shift=shift)
    return _supervisor(config, workdir, "supervisor", make, whole=False)  # the frozen parts are there already


def sdxl(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """SDXL's denoiser, in a pipeline folder of its own, `supervisor_sdxl`, that has copies of its frozen parts of parts.encoders.

    It predicts v, and guidance is away from the encoded empty prompt: both as it is trained.
    """
    sizes, settings = config.pretraining.model.to_dict(), dict(zeros=False, prediction_type="v_prediction")
    make = functools.partial(random_weights.unet_denoiser, sizes, seed=config.seed, **settings)
    return _supervisor(config, workdir, "supervisor_sdxl", make, whole=True)


def _supervisor(config: ConfigDict, workdir: Path, name: str, make: Callable[[Path], None], *, whole: bool) -> dict[str, Any]:
    """Trains the denoiser that make(folder) writes at random, with its scheduler and model_index.json; name: of its pipeline's folder.

    whole: that folder gets the frozen parts too.

    Resolution, text length and the loss's weighting are those of `supervisor` and `subject_tuning`, as for a published one.
    """
    fields, base, target = config.pretraining, workdir / NAME / "base", workdir / NAME / "weights" / name
    make(base)
    locate, index = learners.locate(workdir), files.read_json(base / "model_index.json")
    frozen = [part for part in index if part == "vae" or part.startswith(("text_encoder", "tokenizer"))]
    for part in frozen:
        shutil.copytree(locate(fields.parts.encoders) / part, base / part, dirs_exist_ok=True)
    for part in ("scheduler", *(frozen if whole else ())):
        shutil.copytree(base / part, target / part, dirs_exist_ok=True)
    shutil.copy(base / "model_index.json", target)
    if fields.parts.start:
        start = locate(fields.parts.start)
        shutil.copytree(start, base / start.name, dirs_exist_ok=True)
    config = ConfigDict(config.to_dict())
    config.supervisor.checkpoint = str(base)
    return _generator(config, workdir, learners.supervisor, target, fields.empty_captions)


def student(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """LlamaGen's decoder, student/gpt.safetensors with its sizes, on the tokenizer and the text encoder of `student`."""
    fields, base = config.pretraining, workdir / NAME / "base"
    random_weights.decoder(fields.model.to_dict(), base, config.seed)
    if fields.parts.start:
        shutil.copy(learners.locate(workdir)(fields.parts.start), base / "gpt.safetensors")
    config = ConfigDict(config.to_dict())
    config.student.gpt = str(base / "gpt.safetensors")
    # Without empty captions: LlamaGen has an embedding of its own for guidance (class_dropout).
    return _generator(config, workdir, learners.student, workdir / NAME / "weights" / "student", 0.0)


RECIPES: dict[str, Recipe] = {recipe.__name__: recipe for recipe in (vq, kl, text_encoders, metrics, probes, sd3, sdxl, student)}
