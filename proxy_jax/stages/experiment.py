"""The paper's comparison over subjects: every arm is a run of the four stages' own code, told apart by its config alone.

    python -m proxy_jax.main --config configs/micro/dreambench.py --workdir runs/micro/dreambench

Of each subject the supervisor is tuned and draws its proxies once (`shared`); each arm then tunes on those proxies, or on the photos, and
is scored. What an arm found is a small file, RESULTS/<subject>/<arm>.json, which names what it was made from: a run that finds it there
for the same inputs skips the arm, so the experiment goes on over many sessions and machines as long as that folder is kept.
"""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from proxy_jax.data import cache, prompts
from proxy_jax.metrics import comparison
from proxy_jax.stages import contract, evaluation, files, learners, proxy_generation, proxy_tuning, subject_tuning
from proxy_jax.stages.tuning import checkpoint_key

NAME = "experiment"
OUTPUTS = ("comparison.json", "comparison.md")
SHARED, TOGETHER = "shared", "together"
RUN_FIELDS = ("seed", "subject", "compute", "supervisor", "student", "subject_tuning", "proxy_generation", "proxy_tuning", "evaluation")
STAGES = {stage.NAME: stage for stage in (subject_tuning, proxy_generation, proxy_tuning, evaluation)}
SCORES = ("dino", "clip_i", "clip_t", "identity", "context", "identity_context", "right_class")


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides the tables: the experiment's fields, and the key of every run of every subject."""
    found = {
        f"{subject}/{name}": key(name, run, config, workdir) for subject in config.experiment.subjects for name, run in runs(config, subject, workdir)
    }
    return contract.fields(config, NAME) | {"runs": found}


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Makes every run of every subject that has no result yet, then the tables."""
    rows: list[dict[str, Any]] = []
    for number, subject in enumerate(config.experiment.subjects):
        begin = time.time()
        own = []
        for name, arm in runs(config, subject, workdir):
            own += [row | {"subject": subject} for row in complete(name, arm, config, workdir)["rows"]]
        ranked = sorted(own, key=lambda row: -(row["identity_context"] or 0))
        shown = ", ".join(f"{row['arm']} {row['identity_context']:.3f}" for row in ranked if row["identity_context"] is not None)
        logging.info("%s (%d of %d) in %.0f s: %s", subject, number + 1, len(config.experiment.subjects), time.time() - begin, shown)
        rows += own
    content = comparison.compare(rows, SCORES, reference=config.experiment.reference)
    files.write_json(workdir / NAME / "comparison.json", content)
    files.write_bytes(workdir / NAME / "comparison.md", comparison.markdown(content).encode())
    return {}


def runs(config: ConfigDict, subject: str, workdir: Path) -> Iterator[tuple[str, ConfigDict]]:
    """The runs of one subject, the shared one first: (name, its config)."""
    base = of_subject(config, subject)
    yield SHARED, changed(base, config.experiment.shared)
    for name, changes in config.experiment.arms.items():
        arm = changed(base, changes)
        arm.proxies = str(dataset(subject, workdir))
        yield name, arm
    if config.experiment.together > 1:
        arm = copy.deepcopy(base)
        arm.proxies = str(dataset(subject, workdir))
        arm.evaluation.arms = ("student",)
        arm.subjects = tuple(
            f"token={token},class_noun={prompts.SUBJECTS[other].class_noun},proxies={dataset(other, workdir)}"
            for other, token in zip(companions(config, subject), config.experiment.tokens, strict=False)
        )
        yield TOGETHER, arm


def companions(config: ConfigDict, subject: str) -> list[str]:
    """The subjects that one student learns together with `subject`: those that follow it, in a circle."""
    names = list(config.experiment.subjects)
    begin = names.index(subject) + 1
    return [*names[begin:], *names[: begin - 1]][: config.experiment.together - 1]


def dataset(subject: str, workdir: Path) -> Path:
    """The proxy set that a subject's supervisor drew."""
    return folder(subject, SHARED, workdir) / proxy_generation.NAME / "dataset"


def of_subject(config: ConfigDict, subject: str) -> ConfigDict:
    """The config of a run about one of DreamBench's names, its photos in the folder experiment.photos."""
    own = copy.deepcopy(config)
    found = prompts.SUBJECTS[subject]
    own.subject.update(photos=f"{config.experiment.photos}/{subject}", class_noun=found.class_noun, live=found.live)
    return own


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with an arm's changes, a nested mapping of fields that exist."""
    own = copy.deepcopy(config)
    own.update(copy.deepcopy(changes).to_dict())
    return own


def folder(subject: str, name: str, workdir: Path) -> Path:
    """The workdir of one run."""
    return workdir / NAME / "runs" / subject / name


def stages(name: str, config: ConfigDict) -> list[str]:
    """The stages of a run, in order: what its arms of the evaluation need."""
    arms = config.evaluation.arms
    wanted = [subject_tuning.NAME] if "supervisor" in arms else []
    wanted += [proxy_generation.NAME] if name == SHARED else []
    return [*wanted, *([proxy_tuning.NAME] if "student" in arms else []), evaluation.NAME]


def key(name: str, config: ConfigDict, experiment: ConfigDict, workdir: Path) -> str:
    """A digest of all that decides a run's scores: its fields, its photos and the checkpoints. Where files lie makes no difference."""
    fields = contract.fields(config, *RUN_FIELDS)
    fields["subject"] = learners.subject(config, workdir).key()
    if name == TOGETHER:
        fields["subjects"] = [learners.subject(of_subject(experiment, other), workdir).key() for other in companions(experiment, _name(config))]
    for role in ("supervisor", "student"):
        fields[role] = checkpoint_key(learners.supervisor(config, workdir) if role == "supervisor" else learners.student(config, workdir))
    locate = learners.locate(workdir)
    fields["metrics"] = [cache.fingerprint(locate(config.evaluation[name])) for name in ("dino", "clip", "probes") if config.evaluation[name]]
    return cache.digest(fields)


def _name(config: ConfigDict) -> str:
    return Path(config.subject.photos).name


def complete(name: str, config: ConfigDict, experiment: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The result of one run: read if it is there for these inputs, else the run is made, and before it what it needs of shared ones."""
    subject = _name(config)
    path, own = Path(experiment.experiment.results) / subject / f"{name}.json", key(name, config, experiment, workdir)
    found = files.read_json(path)
    if found is not None and found["key"] == own:
        return found
    needed = [] if name == SHARED else [subject, *(companions(experiment, subject) if name == TOGETHER else ())]
    for other in needed:
        _, shared = next(runs(experiment, other, workdir))
        _complete(shared, folder(other, SHARED, workdir), (subject_tuning.NAME, proxy_generation.NAME))
    seconds = _complete(config, folder(subject, name, workdir), stages(name, config))
    report = files.read_json(folder(subject, name, workdir) / evaluation.NAME / "report.json")
    rows = [{"arm": row["arm"] if name == SHARED else name} | {score: row["scores"][score] for score in SCORES} for row in report["rows"]]
    result = {"key": own, "subject": subject, "run": name, "seconds": seconds, "rows": rows}
    files.write_json(path, result)
    return result


def _complete(config: ConfigDict, where: Path, names: Sequence[str]) -> float:
    begin = time.time()
    for stage in names:
        contract.complete(stage, STAGES[stage], config, where)
    return round(time.time() - begin, 1)
