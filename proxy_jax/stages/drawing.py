"""Drawing numbered pictures into a folder, by any learner, in fixed batches that an interruption can only drop whole."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from tqdm import tqdm

from proxy_jax import processes, sharding, storage
from proxy_jax.stages import files
from proxy_jax.stages.tuning import Learner, encode_prompts


def draw_images(
    learner: Learner,
    load_model: Callable[[], nnx.Module],
    prompts: Sequence[str],
    folder: Path,
    *,
    seed: int,
    batch_size: int,
    options: Mapping[str, Any],
    cache: Path,
    label: str,
) -> list[Path]:
    """Draws picture i for prompts[i] as folder/00000.png, ...; those that are there already are kept. Returns their paths in order.

    A batch with any picture missing is drawn again as a whole: its numbers come out the same, since a picture depends on
    (seed, i) and the batches' bounds are fixed. load_model: called if anything is missing. cache: where encoded prompts are kept.
    A run that is told to stop does so after the batch under way, and raises processes.Preempted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:05d}.png" for index in range(len(prompts))]
    batch_size = sharding.padded(batch_size)
    starts = processes.agreed([i for i in range(0, len(paths), batch_size) if not all(path.is_file() for path in paths[i : i + batch_size])])
    if not starts:
        return paths
    unique = sorted(set(prompts))
    place = {prompt: row for row, prompt in enumerate(unique)}
    text = encode_prompts(learner, [*unique, ""], cache)
    unconditional = {name: values[-1:] for name, values in text.items()}
    model = load_model()
    with processes.finishing():
        for start in tqdm(starts, desc=label, unit="batch", disable=None if processes.is_first() else True):
            indices = np.arange(start, start + batch_size)  # the last batch draws a few too many, so that one shape serves all
            rows = [place[prompts[min(index, len(prompts) - 1)]] for index in indices]
            pictures = learner.draw(model, {name: values[rows] for name, values in text.items()}, unconditional, seed, indices, options)
            for path, picture in zip(paths[start : start + batch_size], pictures, strict=False):
                files.save_picture(path, picture)
            storage.push()
            if processes.preempted():
                raise processes.Preempted
    storage.share()
    return paths
