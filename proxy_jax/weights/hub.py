"""Finding checkpoints (a local path or the Hugging Face hub) and models in the official folder layouts: reading and writing them."""

import dataclasses
import fnmatch
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import huggingface_hub
import jax.numpy as jnp
from flax import nnx
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, HTTPError, RepositoryNotFoundError

from proxy_jax import processes
from proxy_jax.models import llamagen, parameters
from proxy_jax.models import vqgan as vqgan_model
from proxy_jax.models.layers import Compute
from proxy_jax.models.llamagen import LlamaGenConfig
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.weights import table as tables
from proxy_jax.weights import vqgan
from proxy_jax.weights.region import CheckpointError
from proxy_jax.weights.table import Table, Tensors
from proxy_jax.weights.tensors import SUFFIXES, open_tensors, without_variant

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nnx.Module)

HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<inside>[\w-][\w./+-]*))?")
TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja")  # configs and tokenizers


def find(checkpoint: str | Path, *, files: Sequence[str] = ("*",)) -> Path:
    """Where a checkpoint is: a local file or folder as it stands, else one of the Hugging Face hub, downloaded into its cache.

    checkpoint: a path, "owner/name", or "owner/name/path/inside" of one file or folder. files: glob patterns of what is needed from a
    folder, relative to the repository; of those only weights, configs and tokenizers are fetched, as `select` says.
    Raises CheckpointError with what was looked for, where, and what can be done.
    """
    path = Path(checkpoint).expanduser()
    if path.exists():
        return path
    match = HUB_ID.fullmatch(str(checkpoint))
    if match is None:
        raise CheckpointError(f"no file or folder {path.absolute()} (and {str(checkpoint)!r} is no hub id of the form owner/name)")
    repo, inside = match["repo"], (match["inside"] or "").rstrip("/")
    try:
        if inside.endswith((*SUFFIXES, *TEXT_SUFFIXES)):
            return Path(huggingface_hub.hf_hub_download(repo, inside))
        return _folder(repo, inside, files)
    except (HTTPError, EntryNotFoundError, HFValidationError, OSError) as error:
        raise CheckpointError(_missing(path, repo, inside, error)) from error


def _folder(repo: str, inside: str, files: Sequence[str]) -> Path:
    try:
        names = huggingface_hub.HfApi().list_repo_files(repo)
    except (GatedRepoError, RepositoryNotFoundError):
        raise
    except (OSError, HTTPError):
        # No connection: what an earlier run has downloaded will do. Without names nothing can be asked for, so no pattern is given;
        # a file that is missing is an error where it is opened.
        folder = Path(huggingface_hub.snapshot_download(repo, local_files_only=True, allow_patterns=[]))
    else:
        wanted = select([name for name in names if name.startswith(f"{inside}/" if inside else "")], files)
        if not wanted:
            raise FileNotFoundError(f"the repository has none of {', '.join(files)}: it has {', '.join(sorted(names)[:20])}")
        # In allow_patterns the names of files stand for themselves; only "[" would not.
        folder = Path(huggingface_hub.snapshot_download(repo, allow_patterns=[name.replace("[", "[[]") for name in wanted]))
    if not (folder / inside).is_dir():
        raise FileNotFoundError(f"the downloaded copy {folder} has no folder {inside}")
    return folder / inside


def _missing(path: Path, repo: str, inside: str, error: Exception) -> str:
    page = f"https://huggingface.co/{repo}"
    if isinstance(error, GatedRepoError):
        advice = f"accept the licence at {page}, then log in with `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        advice = f"check the name at {page}; a private repository needs `hf auth login`"
    elif isinstance(error, EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        advice = f"see which files there are at {page}/tree/main"
    else:
        advice = f"with a connection run it once to fill the cache (HF_HUB_OFFLINE forbids that), or copy the files from {page} to a local folder"
    looked = f"no file or folder {path.absolute()}, and {inside or 'the repository'} could not be had from {page}"
    return f"{looked}\n  what the hub said: {type(error).__name__}: {str(error)[:400]}\n  what to do: {advice}"


def select(names: Sequence[str], files: Sequence[str] = ("*",)) -> list[str]:
    """What to download of a repository's files: weights, configs and tokenizers that match a pattern, but each weight in one form only.

    In each folder safetensors win over PyTorch pickles, and files without a variant (".fp16") over those with one. The top folder of
    a diffusers repository (one with model_index.json) holds single-file copies of its parts: none of those.
    """
    names = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in files)]
    folders: dict[PurePosixPath, list[str]] = {}
    for name in names:
        folders.setdefault(PurePosixPath(name).parent, []).append(PurePosixPath(name).name)
    chosen = []
    for folder, members in folders.items():
        weights = [name for name in members if name.endswith(SUFFIXES) or ".index." in name]
        others = [name for name in members if name.endswith(TEXT_SUFFIXES) and name not in weights]
        if "model_index.json" in members:
            weights = []
        if any(name.endswith(".safetensors") for name in weights):
            weights = [name for name in weights if ".safetensors" in name]
        plain = [name for name in weights if without_variant(name) == name]
        chosen += [str(folder / name) for name in others + (plain or weights)]
    return sorted(chosen)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises CheckpointError, naming the file, if it is missing or not one."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"no file {path}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes an object as a JSON file, making its folder; of several processes the first does."""
    if not processes.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(content), indent=2) + "\n")


def config_from(config_class: type[Config], source: Path | Mapping[str, Any]) -> Config:
    """A config dataclass from an official config.json (or its content): the class's own fields, lists as tuples; other keys are not ours.

    Raises CheckpointError if a field without a default is missing.
    """
    content, where = (source, "the config") if isinstance(source, Mapping) else (read_json(source), str(source))
    fields = dataclasses.fields(config_class)
    required = [field.name for field in fields if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in content]
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}, which {config_class.__name__} needs; it has {', '.join(content)}")
    return config_class(**{field.name: _frozen(content[field.name]) for field in fields if field.name in content})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def load_pretrained(
    folder: Path,
    model_class: Callable[..., Model],
    config_class: type[Config],
    table_fn: Callable[[Config], Table],
    *,
    compute: Compute,
    dtype_of: Callable[[str], Any] = lambda name: jnp.float32,
) -> Model:
    """The model in a folder of the diffusers or transformers layout: config.json and weights (see tensors.choose), loaded by its table.

    dtype_of: from our variable's name to the dtype to hold it in. Raises CheckpointError for what is missing, WeightsError for what differs.
    """
    config, tensors = config_from(config_class, folder / "config.json"), open_tensors(folder)
    return tables.load(
        lambda: model_class(config, compute=compute, rngs=nnx.Rngs(0)), table_fn(config), tensors, dtype_of=dtype_of, source=str(folder)
    )


def save_pretrained(
    model: nnx.Module, table: Table, folder: Path, *, config: Mapping[str, Any], filename: str = "model.safetensors", dtype: Any | None = None
) -> None:
    """Writes a folder that `load_pretrained` and the official library read: config.json (official content) and the weights, cast to dtype."""
    tables.save(model, table, folder / filename, dtype=dtype)
    write_json(folder / "config.json", config)


def llamagen_config(tensors: Tensors, path: Path) -> LlamaGenConfig:
    """A LlamaGen decoder's sizes: from NAME.json beside its weights NAME.pt, else from the shapes of the weights.

    Shapes do not tell the number of heads; the published widths and depths do. Raises CheckpointError for others.
    """
    beside = path.with_suffix(".json")
    if beside.is_file():
        return config_from(LlamaGenConfig, beside)
    shapes = tensors.shapes()
    if "tok_embeddings.weight" not in shapes:
        raise CheckpointError(f"{path} holds no LlamaGen decoder: it has no tok_embeddings.weight but {', '.join(list(shapes)[:5])}, ...")
    vocab_size, dim = shapes["tok_embeddings.weight"]
    n_layer = len([name for name in shapes if re.fullmatch(r"layers\.\d+\.attention_norm\.weight", name)])
    heads = {(known.dim, known.n_layer): known.n_head for known in llamagen.VARIANTS.values()}
    if (dim, n_layer) not in heads:
        published = ", ".join(f"{name} ({known.dim}, {known.n_layer})" for name, known in llamagen.VARIANTS.items())
        raise CheckpointError(f"{path} has width {dim} and {n_layer} layers; published are {published}. For another size write {beside}.")
    common = {"dim": dim, "n_layer": n_layer, "n_head": heads[dim, n_layer], "vocab_size": vocab_size}
    if "cls_embedding.uncond_embedding" in shapes:
        cls_token_num, caption_dim = shapes["cls_embedding.uncond_embedding"]
        return LlamaGenConfig(**common, model_type="t2i", cls_token_num=cls_token_num, caption_dim=caption_dim)
    classes = shapes["cls_embedding.embedding_table.weight"][0] - 1
    return LlamaGenConfig(**common, model_type="c2i", cls_token_num=1, num_classes=classes)


def vq_config(tensors: Tensors, path: Path) -> VQConfig:
    """A LlamaGen image tokenizer's sizes: from NAME.json beside its weights NAME.pt, else VQ-16's or VQ-8's, whichever has those shapes.

    Raises CheckpointError if neither has.
    """
    beside = path.with_suffix(".json")
    if beside.is_file():
        return config_from(VQConfig, beside)
    shapes, tried = tensors.shapes(), []
    for name, config in vqgan_model.VARIANTS.items():
        problems = tables.differences(parameters.skeleton(lambda config=config: VQModel(config, rngs=nnx.Rngs(0))), vqgan.table(config), shapes)
        if not problems:
            return config
        tried.append(f"{name} ({len(problems)} differences, first {problems[0]})")
    raise CheckpointError(f"{path} is none of {'; '.join(tried)}. For another size write {beside}.")
