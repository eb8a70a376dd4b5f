"""LoRA for every model: attach adapters by a path pattern, merge them, and exchange them with PEFT, diffusers and kohya's sd-scripts.

A Dense or Conv with an adapter computes y + scale · b(a(x)), scale = alpha / rank (Hu et al., arXiv 2106.09685). Layers of a stack carry
stacked adapters, so one pattern covers them all. Files use PEFT's naming on the official module names of the model's name table, in one of
two layouts, which the prefix of the names tells apart: diffusers' single file, or PEFT's folder.
"""

import difflib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from proxy_jax import sharding
from proxy_jax.models import parameters
from proxy_jax.models.layers import Adapter, Buffer, Conv, Dense, LoRAParam, layers_of
from proxy_jax.weights import kohya
from proxy_jax.weights.hub import read_json, write_json
from proxy_jax.weights.table import Entry, Part, Table, WeightsError, renamed
from proxy_jax.weights.tensors import write_safetensors

PEFT = "base_model.model"  # the prefix in PEFT's folders
PEFT_CONFIG = "adapter_config.json"  # beside the tensors in PEFT's folders: its LoraConfig
METADATA = "lora_adapter_metadata"  # diffusers: LORA_ADAPTER_METADATA_KEY, the same as JSON in the file
# What diffusers wrote before it took over PEFT's names; its scripts for SDXL still do (lora_linear_layer: of text encoders).
OLD_NAMES = tuple(
    (f".{layer}.{old}.weight", f".lora_{new}.weight") for layer in ("lora", "lora_linear_layer") for old, new in (("down", "A"), ("up", "B"))
)
FUSED = "proxy_jax_fused"  # JSON {module: [which of the fused pieces have an adapter]}: the blocks of a block-diagonal B
MEMBERS = "proxy_jax_members"  # in kohya's naming JSON {original module: [modules of diffusers]}: the same
TEXT_ENCODERS = ("text_encoder", "lora_te")  # how their names begin, in PEFT's and in kohya's naming


def file_name(prefix: str) -> str:
    """What a file of adapters is called where their names have this prefix."""
    return "adapter_model.safetensors" if prefix == PEFT else "pytorch_lora_weights.safetensors"


def is_lora(name: str, variable: nnx.Variable) -> bool:
    """Trains the adapters only."""
    return isinstance(variable, LoRAParam)


def is_parameter(name: str, variable: nnx.Variable) -> bool:
    """Trains every weight of the model, no adapter and no buffer."""
    return isinstance(variable, nnx.Param) and not isinstance(variable, (LoRAParam, Buffer))


def adapted(model: nnx.Module) -> dict[str, Dense | Conv]:
    """The layers of `model` that have an adapter, by path."""
    return {path: layer for path, layer in layers_of(model).items() if layer.lora is not None}


def attach(model: nnx.Module, pattern: str, rank: int, alpha: float, key: jax.Array) -> list[str]:
    """Puts an adapter beside every Dense and Conv whose dotted path fully matches the regular expression; returns their paths, sorted.

    a is normal with standard deviation 1/rank (PEFT's "gaussian"), b is zero: the model's output is unchanged at first. Each layer's
    random key depends on `key` and its path only. Float32, on the mesh in use. `model` may be abstract (shapes in place of arrays);
    then so are the adapters. Changes `model`. Raises ValueError if nothing matches or a layer already has an adapter.
    """
    layers = layers_of(model)
    matched = sorted(path for path in layers if re.fullmatch(pattern, path))
    if not matched:
        near = difflib.get_close_matches(pattern, layers, n=5, cutoff=0.0)
        raise ValueError(f"no Dense or Conv of {type(model).__name__} matches {pattern!r}; the nearest paths: {near}")
    for path in matched:
        if layers[path].lora is not None:
            raise ValueError(f"{path} already has an adapter")
        shape_a, shape_b = _shapes(layers[path], rank)
        if isinstance(parameters.value(layers[path].kernel), jax.ShapeDtypeStruct):
            a, b = jax.ShapeDtypeStruct(shape_a, jnp.float32), jax.ShapeDtypeStruct(shape_b, jnp.float32)
        else:
            a = jax.random.normal(jax.random.fold_in(key, zlib.crc32(path.encode())), shape_a) / rank
            b = jnp.zeros(shape_b)
        _set(layers[path], path, a, b, alpha / rank)
    return matched


def _shapes(layer: Dense | Conv, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of a and b: the kernel's, with `rank` for its output channels, and for all that leads to them (but stacked layers)."""
    shape = parameters.value(layer.kernel).shape
    stacked = shape[: len(shape) - _kernel_dims(layer)]
    return (*shape[:-1], rank), (*stacked, rank, shape[-1])


def _kernel_dims(layer: Dense | Conv) -> int:
    return 4 if isinstance(layer, Conv) else 2


def _set(layer: Dense | Conv, path: str, a, b, scale: float) -> None:
    """Gives `layer` an adapter of arrays (or shapes) a and b, laid out on the mesh in use."""
    axes = parameters.axes(layer.kernel)
    axes_a = (*axes[:-1], "lora_rank")
    axes_b = (*axes[: len(axes) - _kernel_dims(layer)], "lora_rank", axes[-1])
    mesh, placed = sharding.current(), []
    for name, value, names in (("a", a, axes_a), ("b", b, axes_b)):
        if mesh is not None:
            layout = sharding.parameter(f"{path}.lora.{name}", names, value.shape, value.dtype.itemsize, mesh)
            if isinstance(value, jax.ShapeDtypeStruct):
                value = sharding.put(value, layout)
            else:
                host = np.asarray(value)
                value = jax.make_array_from_callback(host.shape, layout, lambda index, host=host: host[index])
        placed.append(LoRAParam(value, axes=names))
    layer.lora = Adapter(*placed, scale)


def merge(model: nnx.Module) -> nnx.Module:
    """A copy of `model` with every adapter folded into its kernel (in float32, kept in the kernel's dtype) and removed.

    Raises ValueError for an int8 kernel, which cannot hold the sum.
    """
    kernels = {}
    for path, layer in adapted(model).items():
        if layer.kernel_scale is not None:
            raise ValueError(f"{path} is held in int8: load the model in a floating-point dtype to merge its adapters")
        kernel = parameters.value(layer.kernel)
        fold = jax.jit(_fold, out_shardings=kernel.sharding)
        kernels[f"{path}.kernel"] = fold(kernel, layer.lora.a[...], layer.lora.b[...], jnp.float32(layer.lora.scale))
    merged = parameters.with_arrays(model, kernels)
    for layer in adapted(merged).values():
        layer.lora = nnx.data(None)
    return merged


def _fold(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    b = b.reshape(*b.shape[:-2], *(1,) * (a.ndim - b.ndim), *b.shape[-2:])  # a Conv's b has no window
    change = jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + scale * change).astype(kernel.dtype)


def save(parts: Sequence[Part], path: Path) -> None:
    """Writes the adapters of models as a safetensors file that diffusers' load_lora_weights or, of one with the prefix PEFT, its PeftModel reads.

    Per official module: "….lora_A.weight" [rank, in] (of a Conv [rank, in, h, w]) and "….lora_B.weight" [out, rank]; stacked layers one by
    one. PEFT's LoraConfig of each part lies in the file's metadata, with the prefix PEFT in adapter_config.json beside it.
    Where pieces are fused in one official tensor (LlamaGen's wqkv), A is theirs one above the other and B block-diagonal: a rank
    as many times larger, with the same scale. Raises ValueError if there is no adapter or fused pieces differ in rank or scale.
    """
    tensors, fused, configs = {}, {}, {}
    for part in _adapted(parts):
        adapters, scales, pieces = _official(part.model, part.table)
        dot, config = _dotted(part.prefix), _peft_config(adapters, scales)
        fused |= pieces
        if part.prefix == PEFT:
            write_json(path.with_name(PEFT_CONFIG), config)
        else:
            configs |= {f"{dot}{field}": value for field, value in config.items()}
        tensors |= {f"{dot}{module}.lora_{side}.weight": array for module, pair in adapters.items() for side, array in zip("AB", pair, strict=True)}
    metadata = {METADATA: json.dumps(configs, indent=2, sort_keys=True)} if configs else {}
    write_safetensors(tensors, path, {"format": "pt", FUSED: json.dumps(fused, sort_keys=True)} | metadata)


def save_kohya(parts: Sequence[Part], path: Path) -> None:
    """Writes the adapters of models as a safetensors file in kohya's naming (proxy_jax/weights/kohya.py), for models that have one.

    Raises ValueError as `save` does, and if modules that are one in the original checkpoint differ in rank or scale.
    """
    tensors, notes = {}, {FUSED: {}, MEMBERS: {}}
    for part in _adapted(parts):
        adapters, scales, fused = _official(part.model, part.table)
        found, members = kohya.fuse(adapters, scales, part.table, part.kohya)
        tensors |= found
        notes[FUSED] |= fused
        notes[MEMBERS] |= members
    write_safetensors(tensors, path, {"format": "pt"} | {name: json.dumps(note, sort_keys=True) for name, note in notes.items()})


def _dotted(prefix: str) -> str:
    return f"{prefix}." if prefix else ""


def _adapted(parts: Sequence[Part]) -> list[Part]:
    """The parts that have adapters. Raises ValueError if none does."""
    found = [part for part in parts if adapted(part.model)]
    if not found:
        raise ValueError(f"{' and '.join(type(part.model).__name__ for part in parts)} has no adapter to save")
    return found


def _official(model: nnx.Module, table: Table) -> tuple[kohya.Adapters, dict[str, float], dict[str, list[int]]]:
    """PEFT's A and B of each adapted official module of `model`, its scale, and which pieces of fused ones have an adapter."""
    parts: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    entries: dict[str, Entry] = {}
    scales: dict[str, float] = {}
    for layer_path, layer in adapted(model).items():
        entry = _entry(table, layer_path)
        a, b = (sharding.to_host(parameters.value(v)).astype(np.float32) for v in (layer.lora.a, layer.lora.b))
        for i, name in enumerate(entry.names()):
            module = name.removesuffix(".weight")
            parts.setdefault(module, {})[entry.part[0]] = (a, b) if entry.layers is None else (a[i], b[i])
            entries[module] = entry
            if scales.setdefault(module, layer.lora.scale) != layer.lora.scale:
                raise ValueError(f"the adapters of {module} have the scales {scales[module]} and {layer.lora.scale}; one tensor holds one")
    adapters = {module: _to_official(module, pieces, entries[module]) for module, pieces in parts.items()}
    return adapters, scales, {module: sorted(pieces) for module, pieces in parts.items() if entries[module].part[1] > 1}


def _entry(table: Table, layer_path: str) -> Entry:
    entry = table.by_ours()[f"{layer_path}.kernel"]
    if not entry.official.endswith(".weight"):
        raise ValueError(f"{layer_path} is {entry.official} officially, which is not a module's weight")
    return entry


def _to_official(module: str, parts: dict[int, tuple[np.ndarray, np.ndarray]], entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    """PEFT's A and B of one official module from our (a, b) of its pieces."""
    if len({(a.shape, b.shape) for a, b in parts.values()}) > 1:
        raise ValueError(f"the adapters of {module} have different shapes: {[a.shape for a, _ in parts.values()]}")
    pairs = []
    for _, (a, b) in sorted(parts.items()):
        lora_a = np.moveaxis(a, (-1, -2), (0, 1))
        lora_a = lora_a.reshape(lora_a.shape + (1,) * entry.ones)
        pairs.append((lora_a, b.T.reshape(b.T.shape + (1,) * (lora_a.ndim - 2))))
    return kohya.stacked(pairs, [(i,) for i in sorted(parts)], entry.part[1])


def _peft_config(adapters: kohya.Adapters, scales: dict[str, float]) -> dict:
    """The fields of PEFT's LoraConfig that describe `adapters`; ranks and alphas that differ from most go into the patterns.

    What it says of a text encoder holds whether its module names begin with "text_model." or not: transformers 5 has dropped that in part.
    """

    def pattern(module: str) -> str:
        return "^" + re.sub(r"^(text_model\\\.)", r"(\1)?", re.escape(module))

    ranks = {module: len(a) for module, (a, _) in adapters.items()}
    alphas = {module: scales[module] * rank for module, rank in ranks.items()}
    r, alpha = (max(sorted(set(values.values())), key=list(values.values()).count) for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {pattern(module): rank for module, rank in ranks.items() if rank != r},
        "alpha_pattern": {pattern(module): value for module, value in alphas.items() if value != alpha},
        "target_modules": sorted(module.removeprefix("text_model.") for module in scales),
        "init_lora_weights": "gaussian",
        "lora_dropout": 0.0,
        "bias": "none",
    }


def load(parts: Sequence[Part], path: Path) -> list[str]:
    """Attaches the adapters of a file in the format of `save` or `save_kohya` (or PEFT's, diffusers', old and new, or kohya's) to models.

    Returns their paths, sorted in each part. Without a LoraConfig in the file alpha is the rank, as diffusers takes it; with the prefix PEFT
    there must be one beside it. A file that adapts a fused tensor without telling its blocks gives each piece the whole A. Changes the
    models. Raises WeightsError if it is no such file, a tensor has no place in them, some layers of a stack are missing, or ranks or scales
    differ within a stack; ValueError if a layer already has an adapter.
    """
    placed = [_place(part, path, *read) for part, read in zip(parts, _read(path, parts), strict=True)]
    for values in placed:
        for layer_path, (layer, a, b, scale) in values.items():
            _set(layer, layer_path, jnp.asarray(a), jnp.asarray(b), scale)
    return [layer_path for values in placed for layer_path in sorted(values)]


def _place(part: Part, path: Path, found: kohya.Adapters, fused: Mapping[str, list[int]], scales: Mapping[str, float]) -> dict[str, tuple]:
    """Of each layer of a part's model that a file adapts: the layer, a, b and the scale, by its path."""
    model, table = part.model, part.table
    used, values = set(), {}
    for layer_path, layer in layers_of(model).items():
        entry = table.by_ours().get(f"{layer_path}.kernel")
        modules = [name.removesuffix(".weight") for name in entry.names()] if entry is not None else []
        present = [module for module in modules if module in found]
        used.update(present)
        blocks = [module for module in present if module not in fused or entry.part[0] in fused[module]]
        if not blocks:
            continue
        if len(blocks) != len(modules):
            raise WeightsError(f"{path} leaves out some of the {len(modules)} layers of {layer_path}: {sorted(set(modules) - set(blocks))[:5]}")
        pairs = [_from_official(*found[module], entry, fused[module] if module in fused else None) for module in modules]
        if len({(a.shape, b.shape, scales[module]) for (a, b), module in zip(pairs, modules, strict=True)}) > 1:
            raise WeightsError(f"{path}: the layers of {layer_path} have different ranks or scales")
        a, b = (np.stack(side) if entry.layers is not None else side[0] for side in zip(*pairs, strict=True))
        expected = _shapes(layer, a.shape[-1])
        if (a.shape, b.shape) != expected:
            raise WeightsError(f"{path}: the adapter of {layer_path} has shapes {a.shape}, {b.shape}; the model needs {expected}")
        if layer.lora is not None:
            raise ValueError(f"{layer_path} already has an adapter")
        values[layer_path] = (layer, a, b, scales[modules[0]])
    if used != set(found):
        raise WeightsError(f"{path} adapts what {type(model).__name__} does not have: {sorted(set(found) - used)[:10]}")
    return values


def _peft_name(name: str) -> str:
    for old, new in OLD_NAMES:
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _read(path: Path, parts: Sequence[Part]) -> list[tuple[kohya.Adapters, dict[str, list[int]], dict[str, float]]]:
    """Of each part a file's {module: (A, B)}, {module: fused pieces with an adapter} and {module: scale}."""
    try:
        with safe_open(path, framework="numpy") as file:
            tensors, metadata = {_peft_name(name): file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no safetensors file: {error}") from error
    fused = json.loads(metadata[FUSED]) if FUSED in metadata else {}
    in_kohyas = any(part.table.original for part in parts) and any(name.endswith(kohya.DOWN) for name in tensors)
    starts = [part.kohya if in_kohyas else _dotted(part.prefix) for part in parts]
    shares = [{name: tensor for name, tensor in tensors.items() if name.startswith(start)} for start in starts]
    if unknown := [name for name in tensors if not name.startswith(tuple(starts))]:
        hint = ""
        if any(name.startswith(TEXT_ENCODERS) for name in unknown):
            hint = "; for adapters of CLIP text encoders set subject_tuning.lora.text_encoders"
        raise WeightsError(f"{path} is not a plain LoRA under {' and '.join(repr(part.prefix) for part in parts)}: {unknown[:5]}{hint}")
    if in_kohyas:
        members = json.loads(metadata.get(MEMBERS, "{}"))
        read = [kohya.split(share, members, part.table, part.kohya) for part, share in zip(parts, shares, strict=True)]
    else:
        configs = json.loads(metadata.get(METADATA, "{}"))
        read = [_peft(path, part, share, configs) for part, share in zip(parts, shares, strict=True)]
    return [(found, fused, scales) for found, scales in read]


def _peft(path: Path, part: Part, tensors: Mapping[str, np.ndarray], configs: dict) -> tuple[kohya.Adapters, dict[str, float]]:
    """A part's {module: (A, B)} and {module: scale} of its tensors in PEFT's naming; configs: of all parts, each field with its prefix."""
    dot, sides = _dotted(part.prefix), (".lora_A.weight", ".lora_B.weight")
    unknown = [name for name in tensors if not name.endswith(sides)]
    modules = sorted({name.removeprefix(dot).rsplit(".lora_", 1)[0] for name in tensors if name not in unknown})
    if unknown or len(tensors) != 2 * len(modules):
        raise WeightsError(f"{path} is not a plain LoRA in PEFT's naming under {part.prefix!r}: {unknown[:5] or 'A and B do not pair up'}")
    config = {field.removeprefix(dot): value for field, value in configs.items() if field.startswith(dot)}
    if part.prefix == PEFT:
        config = read_json(path.with_name(PEFT_CONFIG))
    if config.get("use_rslora"):
        raise WeightsError(f"{path} is a rank-stabilised LoRA (use_rslora), whose scale is alpha / sqrt(rank)")
    found, scales = {}, {}
    for module in modules:
        a, b = (tensors[f"{dot}{module}{side}"].astype(np.float32) for side in sides)
        name = renamed(module, part.table)
        found[name], scales[name] = (a, b), _alpha(config, module) / b.shape[1] if config else 1.0
    return found, scales


def _alpha(config: dict, module: str) -> float:
    """A module's alpha under a LoraConfig: that of the first pattern that ends its name, else the general one (PEFT's rule)."""
    for pattern, value in config["alpha_pattern"].items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return config["lora_alpha"]


def _from_official(lora_a: np.ndarray, lora_b: np.ndarray, entry: Entry, blocks: list[int] | None) -> tuple[np.ndarray, np.ndarray]:
    """Our (a, b) of one piece from PEFT's A and B; blocks: the pieces that B's diagonal blocks are of, None: A is shared."""
    part, count = entry.part
    number, sharing = (0, 1) if blocks is None else (blocks.index(part), len(blocks))
    lora_a, lora_b = kohya.taken(lora_a, lora_b, (part,), count, number, sharing)
    return np.moveaxis(lora_a.reshape(lora_a.shape[: lora_a.ndim - entry.ones]), (0, 1), (-1, -2)), lora_b.reshape(lora_b.shape[:2]).T
