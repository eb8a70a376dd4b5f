"""What stages 1 and 3 tune on: photos or proxies of subjects with their prompts, and class pictures for prior preservation."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from proxy_jax.data import cache, proxy_set
from proxy_jax.stages import contract, files, learners
from proxy_jax.stages.contract import StageError
from proxy_jax.stages.drawing import draw_images
from proxy_jax.stages.tuning import Learner, base_model, checkpoint_key

PRIOR = ("weight", "num_images", "prompt")  # the fields of `prior` that are no sampling option
Source = tuple[learners.Subject, Path | None]  # a subject, and its proxy set or, without one, its photos


def sources(config: ConfigDict, workdir: Path, stage: str) -> list[Source]:
    """Whom a stage tunes on: the run's own subject, then those of the table if the stage is the student's."""
    own = learners.subject(config, workdir), folder_of(config, workdir) if config[stage].source == "proxies" else None
    return [own, *(learners.more_subjects(config, workdir) if stage == "proxy_tuning" else ())]


def folder_of(config: ConfigDict, workdir: Path) -> Path:
    """Where the proxy set of the run's own subject lies. Resolved: workdir/.. may be meant before there is a workdir."""
    return learners.path(config.proxies, workdir).resolve() if config.proxies else workdir / "proxy_generation" / "dataset"


def key(config: ConfigDict, workdir: Path, stage: str) -> dict[str, Any]:
    """What decides the pictures and prompts of a stage, as JSON for its inputs."""
    (subject, folder), *others = sources(config, workdir, stage)
    if config[stage].source == "proxies" and not config.proxies:
        found = {"subject": subject.words(), "proxy_generation": contract.upstream(workdir, "proxy_generation")}
    else:
        found = {"subject": _key(subject, folder)}
    return found | ({"subjects": [_key(*other) for other in others]} if others else {})


def _key(subject: learners.Subject, folder: Path | None) -> dict[str, Any]:
    return subject.key() if folder is None else subject.words() | {"proxies": digest(proxy_set.read(folder))}


def digest(proxies: proxy_set.ProxySet) -> str:
    """A digest of a proxy set's pictures and prompts: where it lies makes no difference."""
    return cache.digest([[record["prompt"], hashlib.sha256(record["image"].tobytes()).hexdigest()] for record in proxies])


def pictures(sources: Sequence[Source], prompt: str, num_proxies: int = 0, proxy_prompts: Sequence[str] = ()) -> tuple[list[Image.Image], list[str]]:
    """The pictures of all subjects, uncropped, and their prompts: of a photo the template `prompt` filled, of a proxy its own.

    num_proxies, proxy_prompts: of each proxy set (see `proxies_of`). Raises what `proxies_of` does, and ProxySetError if a set is not there.
    """
    found, captions = [], []
    for subject, folder in sources:
        if folder is None:
            found += [photo.image for photo in subject.photos]
            captions += [subject.fill(prompt)] * len(subject.photos)
            continue
        proxies = proxy_set.read(folder)
        chosen = proxies_of(proxies, subject, num_proxies, proxy_prompts)
        found += [Image.fromarray(proxies[index]["image"]) for index in chosen]
        captions += list(chosen.values())
    return found, captions


def proxies_of(proxies: proxy_set.ProxySet, subject: learners.Subject, num_proxies: int = 0, proxy_prompts: Sequence[str] = ()) -> dict[int, str]:
    """The place of each proxy that a student is to learn from -> its prompt (see `prompts`).

    Of those of the templates proxy_prompts ((): all) the first num_proxies (0: all). Raises StageError if there are fewer, or none of a template.
    """
    known = prompts(proxies, subject)
    wanted = {subject.fill(template) for template in proxy_prompts}
    if missing := sorted(wanted - set(known)):
        raise StageError(f"proxy_tuning.proxy_prompts has {missing[0]!r}, for which {proxies.folder} holds no proxy")
    found = [(index, prompt) for index, prompt in enumerate(known) if not wanted or prompt in wanted]
    if num_proxies > len(found):
        held = f"{len(found)} proxies" + " of proxy_tuning.proxy_prompts" * bool(wanted)
        raise StageError(f"proxy_tuning.num_proxies is {num_proxies}, but {proxies.folder} holds {held}")
    return dict(found[: num_proxies or None])


def require_tokens(prompts: Sequence[str], subjects: Sequence[learners.Subject], field: str) -> None:
    """Raises StageError unless each subject's token stands in a prompt; field: what of the config needs it to, and its value."""
    words = {word for prompt in prompts for word in prompt.split()}
    missing = [subject.token for subject in subjects if subject.token not in words]
    if missing:
        raise StageError(f"{field}, but no prompt holds the token {missing[0]!r}; the first prompt is {prompts[0]!r}")


def prompts(proxies: proxy_set.ProxySet, subject: learners.Subject) -> list[str]:
    """The prompts of a proxy set in the subject's words: the run that drew it may have had another token or noun for it."""
    found = proxies.prompts()
    if "subject" not in proxies.metadata:  # not a set of stage 2
        return found
    drawn = proxies.metadata["subject"]
    words = {drawn["class_noun"]: subject.class_noun, drawn["token"]: subject.token}
    pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, words))})(?!\w)")
    return [pattern.sub(lambda match: words[match[0]], prompt) for prompt in found]


def class_pictures(
    learner: Learner, config: ConfigDict, workdir: Path, stage: str, subjects: Sequence[learners.Subject]
) -> tuple[np.ndarray, list[str]] | None:
    """Class pictures [n, resolution, resolution, 3] uint8 and their prompts, for `tune`; None if the stage's prior.weight is 0.

    The untuned learner draws them once, into the stage's class_images, the subjects' classes in turn; runs with one cache share them.
    """
    fields = config[stage].prior
    if fields.weight == 0:
        return None
    filled = list(dict.fromkeys(subject.fill(fields.prompt) for subject in subjects))
    wanted = [filled[index % len(filled)] for index in range(fields.num_images)]
    options = {name: value for name, value in fields.items() if name not in PRIOR}
    folder = workdir / stage / "class_images"

    def draw() -> dict[str, np.ndarray]:
        paths = draw_images(
            learner,
            lambda: base_model(learner, config[stage]),
            wanted,
            folder,
            seed=config.seed,
            batch_size=config[stage].encode_batch_size,
            options=options,
            cache=workdir / "cache",
            label="class images",
        )
        return {"pictures": np.stack([files.load_picture(path) for path in paths])}

    drawn_by = {"learner": checkpoint_key(learner), "dtype": jnp.dtype(learner.compute.dtype).name, "base": config[stage].lora.base}
    drawn_by |= {name: config.supervisor[name] for name in ("vae_tile", "sampler")}
    key = {"class_images": wanted, "seed": config.seed, "options": options} | drawn_by
    found = cache.cached(workdir / "cache", key, draw)["pictures"]
    for index, picture in enumerate(found):
        if not (path := folder / f"{index:05d}.png").is_file():  # another run drew it
            files.save_picture(path, picture)
    return found, wanted
