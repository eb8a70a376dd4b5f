"""Adapters in kohya's naming (sd-scripts), which the interfaces around Stable Diffusion read: modules of the original checkpoints.

An original module may hold several of diffusers' modules, one above the other (queries, keys and values), or hold its halves in another
order. A model's name table tells which (`Table.original`); a file has "lora_unet_<module, dots as underscores>" .lora_down.weight [rank, in],
.lora_up.weight [out, rank] (of a Conv with the window) and .alpha, a scalar.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from proxy_jax.weights.table import Table, WeightsError

PREFIX = "lora_unet_"
DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
Adapters = dict[str, tuple[np.ndarray, np.ndarray]]  # module -> A and B as PEFT has them


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where one of diffusers' modules lies in an original one, whose outputs are cut into `count` equal pieces: it has `rows`, in this order."""

    module: str
    rows: tuple[int, ...] = (0,)
    count: int = 1


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


def key(module: str) -> str:
    """A module's name in a file."""
    return PREFIX + module.replace(".", "_")


def fuse(adapters: Adapters, scales: Mapping[str, float], table: Table) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """The tensors of a file, and of each original module that holds several which of them have an adapter, in order.

    Those have A one above the other and B block-diagonal, at the same scale. Raises ValueError if their ranks or scales differ.
    """
    places, groups, tensors, members = slots(table), {}, {}, {}
    for module in adapters:
        groups.setdefault(places[module].module, []).append(module)
    for original, modules in groups.items():
        modules.sort(key=lambda module: places[module].rows)
        kinds = {(len(adapters[module][0]), scales[module]) for module in modules}
        if len(kinds) > 1:
            raise ValueError(f"the adapters of {', '.join(modules)} have the ranks and scales {sorted(kinds)}; in kohya's naming they have one")
        (rank, scale), down = kinds.pop(), np.concatenate([adapters[module][0] for module in modules])
        for number, module in enumerate(modules):
            place, b = places[module], adapters[module][1]
            pieces = b.reshape(len(place.rows), -1, *b.shape[1:])
            if number == 0:
                up = np.zeros((place.count, pieces.shape[1], len(down), *b.shape[2:]), np.float32)
            up[list(place.rows), :, number * rank : (number + 1) * rank] = pieces
        name = key(original)
        tensors |= {name + DOWN: down, name + UP: up.reshape(-1, *up.shape[2:]), name + ALPHA: np.float32(scale * len(down))}
        if place.count > len(place.rows):
            members[original] = modules
    return tensors, members


def split(tensors: Mapping[str, np.ndarray], members: Mapping[str, list[str]], table: Table) -> tuple[Adapters, dict[str, float]]:
    """Adapters of diffusers' modules and their scales, of the tensors of a file; also of one with diffusers' names for the modules.

    Without a word in `members` all modules of an original one have all of A. Raises WeightsError for tensors that have no place.
    """
    adapters, scales, used = {}, {}, set()
    for module, place in slots(table).items():
        for name, slot in ((key(place.module), place), (key(module), Slot(module))):
            if module in adapters or name + DOWN not in tensors or name + UP not in tensors:
                continue
            used |= {name + DOWN, name + UP, name + ALPHA}
            down, up = tensors[name + DOWN].astype(np.float32), tensors[name + UP].astype(np.float32)
            scale = float(tensors.get(name + ALPHA, len(down))) / len(down)
            sharing = members.get(slot.module, [module])
            if module not in sharing:
                continue
            up = up.reshape(slot.count, -1, *up.shape[1:])[list(slot.rows)]
            rank, number = len(down) // len(sharing), sharing.index(module)
            part = slice(number * rank, (number + 1) * rank)
            adapters[module], scales[module] = (down[part], up.reshape(-1, *up.shape[2:])[:, part]), scale
    if unknown := sorted(set(tensors) - used):
        raise WeightsError(f"{len(unknown)} tensors are no LoRA of the denoiser (alone) in kohya's naming: {unknown[:5]}")
    return adapters, scales
