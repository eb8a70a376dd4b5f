"""The stage contract: a stage is done when its DONE.json says so for the same inputs; else it is run, or resumed.

A stage module has `inputs(config, workdir)`, all that decides its outputs as JSON; `run(config, workdir)`, which writes into
workdir/<stage>/ and can be called again after an interruption; and `OUTPUTS`, the files and folders there that it is for. STARTED.json
holds the inputs while a stage runs, DONE.json the inputs and digests of the outputs. Stages know each other only through these files.
One whose work several runs can share has `assist(config, workdir)` too, which leaves workdir/<stage>/ alone.
"""

import contextlib
import importlib.metadata
import json
import logging as std_logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from proxy_jax import processes, storage
from proxy_jax.data import cache
from proxy_jax.stages.files import claimed, read_json, write_json
from proxy_jax.storage import DONE, STARTED

TRAININGS = ("pretraining.unquantised", "pretraining.training", "subject_tuning.training", "proxy_tuning.embedding", "proxy_tuning.training")
# Fields that say how often to look or save and how much to do at once, not what to compute: a finished stage stays finished when
# they change (to rounding).
WITHOUT_EFFECT = (
    *(f"{training}.{name}" for training in TRAININGS for name in ("checkpoint_every", "keep_checkpoints", "log_every", "preview_every")),
    *("subject_tuning.encode_batch_size", "proxy_tuning.encode_batch_size", "proxy_generation.batch_size", "evaluation.batch_size"),
    *("compute.remat", "compute.unroll", "pretraining.pictures_cache"),
)
MOST_CHANGES = 20  # of a stage's inputs that are listed, when it runs anew
PACKAGE = str(Path(__file__).parents[1]) + os.sep


class StageError(RuntimeError):
    """A stage that cannot run as asked: what it needs is missing or wrong. The message says what to do."""


def fields(config: ConfigDict, *names: str) -> dict[str, Any]:
    """The named parts of a config as JSON, for a stage's `inputs`, without the fields that change no result."""

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, ConfigDict | Mapping):
            return {key: plain(f"{name}.{key}", item) for key, item in sorted(value.items()) if f"{name}.{key}" not in WITHOUT_EFFECT}
        return [plain(name, item) for item in value] if isinstance(value, tuple | list) else value

    return {name: plain(name, config[name]) for name in names}


def _record(path: Path, *keys: str) -> dict[str, Any] | None:
    """What a stage wrote into STARTED.json or DONE.json; None if it is absent, damaged or, lacking a key, of another version."""
    try:
        content = read_json(path)
    except ValueError as error:
        logging.warning("%s is damaged and not used: %s", path, error)
        return None
    if content is not None and not (isinstance(content, dict) and all(key in content for key in keys)):
        logging.warning("%s is of another version and not used: it lacks %s", path, ", ".join(keys))
        return None
    return content


def _done(folder: Path) -> dict[str, Any] | None:
    return _record(folder / DONE, "inputs", "files", "seconds")


def digests(folder: Path, outputs: Sequence[str]) -> dict[str, str | None]:
    """A digest of each output in a stage's folder; None: it is missing."""
    return {name: _digest(folder / name) if (folder / name).exists() else None for name in outputs}


def _digest(path: Path) -> str:
    if path.is_dir():
        return cache.digest({entry.name: _digest(entry) for entry in path.iterdir() if not entry.name.startswith(".")})
    # The same records make other array_record bytes in every process (protobuf's order of fields): their size has to do.
    return cache.digest(path.stat().st_size) if ".array_record" in path.name else cache.fingerprint(path)


def _changed_outputs(folder: Path, done: dict[str, Any]) -> dict[str, str]:
    """The outputs of a finished stage that are missing or not as it left them -> what is wrong."""
    found = digests(folder, sorted(done["files"]))
    return {name: f"{name} {'has changed' if found[name] else 'is missing'}" for name in found if found[name] != done["files"][name]}


def upstream(workdir: Path, stage: str) -> str:
    """A digest of a finished stage's inputs and outputs. Raises StageError if it is not done or its outputs are not as it left them."""
    done = _done(workdir / stage)
    if done is None:
        raise StageError(f"the stage {stage} is not done in {storage.address(workdir)}; run it first (--stages={stage},...)")
    changed = _changed_outputs(workdir / stage, done)
    if changed:
        raise StageError(
            f"in {storage.address(workdir / stage)} {', '.join(changed.values())} since the stage was done; run it again (--stages={stage},...)"
        )
    return cache.digest([done["inputs"], done["files"]])


def changes(before: Any, after: Any, name: str = "") -> list[str]:
    """What differs between two inputs, a line a leaf: "proxy_tuning.training.steps: 10 -> 20"."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        return [line for key in keys for line in changes(before.get(key), after.get(key), f"{name}.{key}" if name else key)]
    return [] if before == after else [f"{name}: {_short(before)} -> {_short(after)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def complete(name: str, stage: ModuleType, config: ConfigDict, workdir: Path, lenders: Sequence[Path] = ()) -> None:
    """Brings a stage to its DONE.json: skips it if it is done for these inputs, resumes it if it was interrupted on them, else runs it anew.

    A finished stage whose outputs are missing or changed is resumed too: it makes them again from what else it left.
    Of several processes the first looks and tells the others, and all wait for each other before and after the stage's own work.
    lenders: other workdirs, from which one that is not begun is copied if it is done there for the same inputs (of one process, in folders).
    A stage with `assist`, which another run of the workdir is at, is helped with in the place of all this.
    Raises StageError if its folder holds files that no stage wrote.
    """
    if not hasattr(stage, "assist"):
        return _complete(name, stage, config, workdir, lenders)
    with claimed([workdir / name]) as alone:
        if alone:
            return _complete(name, stage, config, workdir, lenders)
        logging.info("%s: another run is at it in %s; this one helps", name, workdir)
        stage.assist(config, workdir)


def _complete(name: str, stage: ModuleType, config: ConfigDict, workdir: Path, lenders: Sequence[Path]) -> None:
    folder = workdir / name
    inputs = json.loads(json.dumps(stage.inputs(config, workdir)))
    _borrow(folder, inputs, lenders)
    runs, resumed = processes.agreed(_begin(name, folder, inputs, config) if processes.is_first() else None)
    if not runs:
        return
    begin = time.time()
    with log_to(folder / "log.txt"):
        outputs = stage.run(config, workdir)
    seconds = round(time.time() - begin, 2)
    if processes.is_first():
        done = {"inputs": inputs, "outputs": outputs, "files": digests(folder, stage.OUTPUTS), "seconds": seconds, "resumed": resumed}
        write_json(folder / DONE, done | {"versions": versions(), "seed": config.seed})
    storage.share()
    logging.info("%s: done in %.1f s", name, seconds)


def _borrow(folder: Path, inputs: dict[str, Any], lenders: Sequence[Path]) -> None:
    """Copies a stage that is not begun from the first workdir of `lenders` where it is done for these inputs, if there is one.

    Its training's checkpoints stay behind: a finished stage has no use for them.
    """
    for lender in () if folder.exists() else (other / folder.name for other in lenders):
        done = _done(lender)
        if done and done["inputs"] == inputs and not _changed_outputs(lender, done):
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(lender, partial, ignore=shutil.ignore_patterns(storage.CHECKPOINTS))
            partial.rename(folder)
            logging.info("%s: taken from %s, where it was done for the same inputs", folder.name, lender)
            return


def _begin(name: str, folder: Path, inputs: dict[str, Any], config: ConfigDict) -> tuple[bool, bool]:
    """Whether a stage has to run, and if so whether it goes on from what is in its folder, which is made ready for it.

    Raises StageError if the folder holds files that no stage wrote.
    """
    done = _done(folder)
    previous = done or _record(folder / STARTED, "inputs")
    resumed = previous is not None and previous["inputs"] == inputs
    changed = _changed_outputs(folder, done) if done else {}
    if done and resumed and not changed:
        logging.info("%s: done already, its inputs have not changed", name)
        return False, True
    if done and resumed:
        logging.info("%s: run again, because of its outputs: %s", name, ", ".join(changed.values()))
        for output in changed:  # a folder that holds what its stage did not leave there; the stage writes single files anew
            if (folder / output).is_dir():
                shutil.rmtree(folder / output)
    elif resumed:
        logging.info("%s: resumed where it was interrupted", name)
    elif previous is not None:
        lines = changes(previous["inputs"], inputs)
        more = [f"and {len(lines) - MOST_CHANGES} more"] if len(lines) > MOST_CHANGES else []
        logging.info("%s: run anew, because its inputs changed:\n  %s", name, "\n  ".join(lines[:MOST_CHANGES] + more))
    else:
        logging.info("%s: starting", name)
    if not resumed:
        _discard(folder)
        storage.push()
    write_json(folder / STARTED, {"inputs": inputs})
    (folder / DONE).unlink(missing_ok=True)
    write_json(folder / "config.json", fields(config, *sorted(config.keys())))
    storage.push()
    return True, resumed


def _discard(folder: Path) -> None:
    """Puts away what an earlier run of a stage left: a finished one as <stage>.previous, in place of an older one; else it is removed.

    It is renamed first: half of it, after a kill, must not pass for a run to resume.
    """
    discarded, previous = folder.with_name(f".{folder.name}.discarded"), folder.with_name(f"{folder.name}.previous")
    if discarded.exists():
        shutil.rmtree(discarded)
    finished = (folder / DONE).exists()
    if finished and previous.exists():
        previous.rename(discarded)
        shutil.rmtree(discarded)
    foreign = [] if not folder.exists() else sorted(path.name for path in folder.iterdir() if path.suffix != ".partial")
    if foreign and STARTED not in foreign and DONE not in foreign:
        names = ", ".join(foreign[:5])
        raise StageError(f"{storage.address(folder)} holds files that no stage wrote ({names}); move them away or choose another --workdir")
    if finished:
        folder.rename(previous)
        logging.info("%s: the finished run is kept as %s", folder.name, storage.address(previous))
    elif folder.exists():
        folder.rename(discarded)
        shutil.rmtree(discarded)


def _ours(record: std_logging.LogRecord) -> bool:
    """Whether a log record is worth a person's attention: a warning, or the first process's line of this package (Orbax logs every file)."""
    return record.levelno >= std_logging.WARNING or (record.pathname.startswith(PACKAGE) and processes.is_first())


def log_plainly() -> None:
    """Logs this package's lines and everybody's warnings to standard error, with the time of day."""
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_ours)


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Appends the same lines, with the date, to a file; of several processes the first does."""
    if not processes.is_first():
        yield
        return
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
