"""The stage contract: a stage is done when its DONE.json says so for the same inputs; else it is run, or resumed.

A stage module has `inputs(config, workdir)`, all that decides its outputs as JSON, and `run(config, workdir)`, which writes into
workdir/<stage>/ and can be called again after an interruption. Stages know each other only through these files.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging as std_logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from proxy_jax.stages.files import read_json, write_json

# Fields that say how often to look or save, not what to compute: a finished stage stays finished when they change.
WITHOUT_EFFECT = ("checkpoint_every", "keep_checkpoints", "log_every", "preview_every")


class StageError(RuntimeError):
    """A stage that cannot run as asked: what it needs is missing or wrong. The message says what to do."""


def fields(config: ConfigDict, *names: str) -> dict[str, Any]:
    """The named parts of a config as JSON, for a stage's `inputs`, without the fields that change no result."""

    def plain(value: Any) -> Any:
        if isinstance(value, ConfigDict | Mapping):
            return {key: plain(item) for key, item in sorted(value.items()) if key not in WITHOUT_EFFECT}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return {name: plain(config[name]) for name in names}


def upstream(workdir: Path, stage: str) -> str:
    """A digest of the inputs of a finished stage, which stands for its outputs. Raises StageError if it is not done."""
    done = read_json(workdir / stage / "DONE.json")
    if done is None:
        raise StageError(f"the stage {stage} is not done in {workdir}; run it first (--stages={stage},...)")
    return hashlib.sha256(json.dumps(done["inputs"], sort_keys=True).encode()).hexdigest()


def changes(before: Any, after: Any, name: str = "") -> list[str]:
    """What differs between two inputs, a line a leaf: "proxy_tuning.training.steps: 10 -> 20"."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [line for key in keys for line in changes(before.get(key), after.get(key), f"{name}.{key}" if name else key)]
    return [] if before == after else [f"{name}: {_short(before)} -> {_short(after)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def complete(name: str, stage: ModuleType, config: ConfigDict, workdir: Path) -> None:
    """Brings a stage to its DONE.json: skips it if it is done for these inputs, resumes it if it was interrupted on them, else runs it anew."""
    folder = workdir / name
    inputs = json.loads(json.dumps(stage.inputs(config, workdir)))
    started, done = read_json(folder / "STARTED.json"), read_json(folder / "DONE.json")
    if done is not None and done["inputs"] == inputs:
        logging.info("%s: done already, its inputs have not changed", name)
        return
    previous = (done or started or {}).get("inputs")
    if previous is not None and previous != inputs:
        logging.info("%s: run anew, because its inputs changed:\n  %s", name, "\n  ".join(changes(previous, inputs)))
        shutil.rmtree(folder)
    elif previous is not None:
        logging.info("%s: resumed where it was interrupted", name)
    else:
        logging.info("%s: starting", name)
    write_json(folder / "STARTED.json", {"inputs": inputs})
    write_json(folder / "config.json", fields(config, *sorted(config.keys())))
    begin = time.time()
    with log_to(folder / "log.txt"):
        outputs = stage.run(config, workdir)
    seconds = round(time.time() - begin, 2)
    done = {"inputs": inputs, "outputs": outputs, "seconds": seconds, "resumed": previous == inputs, "versions": versions(), "seed": config.seed}
    write_json(folder / "DONE.json", done)
    logging.info("%s: done in %.1f s", name, seconds)


def _ours(record: std_logging.LogRecord) -> bool:
    """Whether a log record is worth a person's attention: a warning, or a line of this package (Orbax logs every file it opens)."""
    return record.levelno >= std_logging.WARNING or f"{os.sep}proxy_jax{os.sep}" in record.pathname


def log_plainly() -> None:
    """Logs this package's lines and everybody's warnings to standard error, with the time of day."""
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_ours)


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Appends the same lines, with the date, to a file."""
    handler = std_logging.FileHandler(path)
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(_ours)
    logger = logging.get_absl_logger()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide numbers."""
    packages = ("proxy_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy", "pillow")
    found = {"python": sys.version.split()[0]}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found
