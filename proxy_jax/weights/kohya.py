"""Adapters in kohya's naming (sd-scripts), which the interfaces around Stable Diffusion read: modules of the original checkpoints.

An original module may hold several of diffusers' modules, one above the other (queries, keys and values), or hold its halves in another
order. A model's name table tells which (`Table.original`); a file has "lora_unet_<module, dots as underscores>" .lora_down.weight [rank, in],
.lora_up.weight [out, rank] (of a Conv with the window) and .alpha, a scalar; of text encoders "lora_te1_..." and "lora_te2_...".
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from proxy_jax.weights.table import DENOISER, Table, WeightsError

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
Adapters = dict[str, tuple[np.ndarray, np.ndarray]]  # module -> A and B as PEFT has them


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one of diffusers' modules lies in an original one, whose outputs are cut into `count` equal pieces: it has `rows`, in this order."""

    module: str
    rows: tuple[int, ...] = (0,)
    count: int = 1


def stacked(pairs: Sequence[tuple[np.ndarray, np.ndarray]], places: Sequence[tuple[int, ...]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The adapter of a module that holds several: A one above the other and B block-diagonal, for pairs of one rank.

    The module's outputs are cut into `count` equal pieces; places: which of them each pair's B makes, in its order.
    """
    a, (outputs, rank, *window) = np.concatenate([a for a, _ in pairs]), pairs[0][1].shape
    whole = np.zeros((count, outputs // len(places[0]), len(a), *window), np.float32)
    for number, ((_, b), place) in enumerate(zip(pairs, places, strict=True)):
        whole[list(place), :, number * rank : (number + 1) * rank] = b.reshape(len(place), -1, *b.shape[1:])
    return a, whole.reshape(-1, *whole.shape[2:])


def taken(a: np.ndarray, b: np.ndarray, place: tuple[int, ...], count: int, number: int = 0, sharing: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `stacked`: the pair, `number` of `sharing`, that has the pieces `place`. One alone has all of A.

    Raises WeightsError if B cannot be cut so.
    """
    if len(b) % count:
        raise WeightsError(f"an adapter's B has {len(b)} outputs, which are not {count} equal pieces")
    rank = len(a) // sharing
    block = slice(number * rank, (number + 1) * rank)
    rows = b.reshape(count, -1, *b.shape[1:])[list(place)]
    return a[block], rows.reshape(-1, *b.shape[1:])[:, block]


def slots(table: Table) -> dict[str, Slot]:
    """The slot of every module of diffusers that an adapter can be for."""
    modules = [name.removesuffix(".weight") for entry in table.entries if entry.ours.endswith(".kernel") for name in entry.names()]
    rules = [(re.compile(re.escape(theirs).replace(r"\{\}", "(.+)")), template, place) for theirs, template, *place in table.original]
    return {module: _slot(module, rules) for module in dict.fromkeys(modules)}


def _slot(module: str, rules: Sequence[tuple[re.Pattern, str, list]]) -> Slot:
    for pattern, template, place in rules:
        if match := pattern.fullmatch(module):
            return Slot(template.format(*match.groups()), *place)
    raise KeyError(f"no rule for the original name of {module}")


def key(module: str, prefix: str = DENOISER) -> str:
    """A module's name in a file."""
    return prefix + module.replace(".", "_")


def fuse(adapters: Adapters, scales: Mapping[str, float], table: Table, prefix: str = DENOISER) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """The tensors of a file, and of each original module that holds several which of them have an adapter, in order.

    Those are `stacked`, at the same scale. Raises ValueError if their ranks or scales differ.
    """
    places, groups, tensors, members = slots(table), {}, {}, {}
    for module in adapters:
        groups.setdefault(places[module].module, []).append(module)
    for original, modules in groups.items():
        modules.sort(key=lambda module: places[module].rows)
        kinds = {(len(adapters[module][0]), scales[module]) for module in modules}
        if len(kinds) > 1:
            raise ValueError(f"the adapters of {', '.join(modules)} have the ranks and scales {sorted(kinds)}; in kohya's naming they have one")
        (_, scale), name, place = kinds.pop(), key(original, prefix), places[modules[-1]]
        down, up = stacked([adapters[module] for module in modules], [places[module].rows for module in modules], place.count)
        tensors |= {name + DOWN: down, name + UP: up, name + ALPHA: np.float32(scale * len(down))}
        if place.count > len(place.rows):
            members[original] = modules
    return tensors, members


def split(
    tensors: Mapping[str, np.ndarray], members: Mapping[str, list[str]], table: Table, prefix: str = DENOISER
) -> tuple[Adapters, dict[str, float]]:
    """Adapters of diffusers' modules and their scales, of the tensors of a file; also of one with diffusers' names for the modules.

    Without a word in `members` all modules of an original one have all of A. Raises WeightsError for tensors that have no place or cannot be cut.
    """
    adapters, scales, used = {}, {}, set()
    for module, place in slots(table).items():
        for name, slot in ((key(place.module, prefix), place), (key(module, prefix), Slot(module))):
            if module in adapters or name + DOWN not in tensors or name + UP not in tensors:
                continue
            used |= {name + DOWN, name + UP, name + ALPHA}
            down, up = tensors[name + DOWN].astype(np.float32), tensors[name + UP].astype(np.float32)
            scale = float(tensors.get(name + ALPHA, len(down))) / len(down)
            sharing = members.get(slot.module, [module])
            if module not in sharing:
                continue
            adapters[module] = taken(down, up, slot.rows, slot.count, sharing.index(module), len(sharing))
            scales[module] = scale
    if unknown := sorted(set(tensors) - used):
        raise WeightsError(f"{len(unknown)} tensors are no LoRA of this model in kohya's naming: {unknown[:5]}")
    return adapters, scales
