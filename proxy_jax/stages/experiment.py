"""The paper's comparison over subjects: every arm is a run of the four stages' own code, told apart by its config alone.

    python -m proxy_jax.main --config configs/micro/dreambench.py --workdir runs/micro/dreambench

Of each subject the supervisor is tuned and draws its proxies once (`shared`); each arm then tunes on those proxies, or on the photos, and
is scored. What an arm found is a small file, RESULTS/<subject>/<arm>.json, which names what it was made from: a run that finds it there
for the same inputs skips the arm, so the experiment goes on over many sessions and machines as long as that folder is kept. The account of
weak-to-strong (weak_to_strong.py) is one more such file, account.json.
"""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from proxy_jax.data import cache, prompts
from proxy_jax.metrics import comparison, figures
from proxy_jax.stages import contract, evaluation, files, learners, proxy_generation, proxy_tuning, subject_tuning, weak_to_strong
from proxy_jax.stages.tuning import checkpoint_key

NAME = "experiment"
OUTPUTS = ("comparison.json", "comparison.md", "figures")
SHARED, TOGETHER, ACCOUNT = "shared", "together", "account"
PHOTOS = "photos"  # the row of the real photos, the ceiling
MOST_MISREAD = 0.2  # an attribute that the probe misreads more often in right renderings says nothing of who is wrong
RUN_FIELDS = ("seed", "subject", "compute", "supervisor", "student", "subject_tuning", "proxy_generation", "proxy_tuning", "evaluation")
STAGES = {stage.NAME: stage for stage in (subject_tuning, proxy_generation, proxy_tuning, evaluation)}
SCORES = ("dino", "clip_i", "clip_t", "identity", "context", "identity_context", "right_class")


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides the tables: the experiment's fields, and the key of every result of every subject.

    Raises StageError if a field names an arm that does not exist, or if two arms are the same.
    """
    fields, known = config.experiment, [*config.experiment.arms, *config.experiment.shared.evaluation.arms]
    for field in ("reference", "student", "baselines", "account_arms"):
        names = (fields[field],) if isinstance(fields[field], str) else fields[field]
        unknown = [name for name in names if name not in (fields.arms if field in ("student", "account_arms") else known)]
        if unknown:
            raise contract.StageError(f"experiment.{field} names {', '.join(unknown)}; the arms are {', '.join(known)}")
    found = {subject: keys(config, subject, workdir) for subject in fields.subjects}
    for own in found.values():
        same = [name for name in own if list(own.values()).count(own[name]) > 1]
        if same:
            raise contract.StageError(f"of the arms of the experiment, {' and '.join(same)} are the same: nothing would differ but the name")
    return contract.fields(config, NAME) | {"results": found}


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Makes every result of every subject that is not there yet, then the tables and figures."""
    rows: list[dict[str, Any]] = []
    accounts: list[dict[str, Any]] = []
    fields = config.experiment
    if fields.account_arms and any(not result(config, subject, ACCOUNT).is_file() for subject in fields.subjects):
        weak_to_strong.renderer()  # if it is lacking, say so before hours of tuning
    for number, subject in enumerate(fields.subjects):
        begin = time.time()
        named, own = keys(config, subject, workdir), []
        for name, arm in runs(config, subject, workdir):
            own += [row | {"subject": subject} for row in complete(name, arm, named[name], config, workdir)["rows"]]
        if fields.account_arms:
            accounts.append(complete_account(subject, named[ACCOUNT], config, workdir))
        ranked = sorted(own, key=lambda row: -(row["identity_context"] or 0))
        shown = ", ".join(f"{row['arm']} {row['identity_context']:.3f}" for row in ranked if row["identity_context"] is not None)
        logging.info("%s (%d of %d) in %.0f s: %s", subject, number + 1, len(fields.subjects), time.time() - begin, shown)
        rows += own
    content = comparison.compare(rows, SCORES, reference=fields.reference, arm=fields.student, against=fields.baselines)
    content["curve"] = [{"arm": name, "proxies": count} for name, count in proxy_counts(config).items()]
    if accounts:
        content["account"] = comparison.accounts(accounts, fields.account_arms, MOST_MISREAD)
    for folder in (workdir / NAME, *([Path(fields.document)] if fields.document else [])):
        write(content, folder)
    return {}


def write(content: dict[str, Any], folder: Path) -> None:
    """Writes comparison.json, comparison.md and figures/*.svg."""
    drawn = figures.draw(content)
    for name, svg in drawn.items():
        files.write_bytes(folder / "figures" / f"{name}.svg", svg.encode())
    shown = "".join(f"\n![{name.replace('_', ' ')}](figures/{name}.svg)\n" for name in drawn)
    files.write_json(folder / "comparison.json", content)
    files.write_bytes(folder / "comparison.md", (comparison.markdown(content) + shown).encode())


def proxy_counts(config: ConfigDict) -> dict[str, int]:
    """The arms that differ from experiment.student in the number of proxies alone, itself included -> that number."""
    changes = {name: changed(config, own) for name, own in config.experiment.arms.items()}
    numbers = {name: own.proxy_tuning.num_proxies or own.proxy_generation.num_images for name, own in changes.items()}
    for own in changes.values():
        own.proxy_tuning.num_proxies = 0
    return {name: numbers[name] for name, own in changes.items() if own == changes[config.experiment.student]}


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


def keys(config: ConfigDict, subject: str, workdir: Path) -> dict[str, str]:
    """The key of each of a subject's results, its account's made of those of the runs it is about."""
    found = {name: key(name, run, config, workdir) for name, run in runs(config, subject, workdir)}
    if not config.experiment.account_arms:
        return found
    about = {name: found[name] for name in (SHARED, *config.experiment.account_arms)}
    return found | {ACCOUNT: cache.digest({"runs": about, "pictures": config.experiment.account_pictures})}


def _name(config: ConfigDict) -> str:
    return Path(config.subject.photos).name


def result(config: ConfigDict, subject: str, name: str) -> Path:
    """Where a result of a subject is kept."""
    return Path(config.experiment.results) / subject / f"{name}.json"


def _kept(path: Path, own: str) -> dict[str, Any] | None:
    found = files.read_json(path)
    return found if found is not None and found["key"] == own else None


def complete(name: str, config: ConfigDict, own: str, experiment: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The result of one run: read if it is there with the key `own`, else the run is made, and before it what it needs of shared ones."""
    subject = _name(config)
    path = result(experiment, subject, name)
    if (found := _kept(path, own)) is not None:
        return found
    for other in [] if name == SHARED else [subject, *(companions(experiment, subject) if name == TOGETHER else ())]:
        _share(other, experiment, workdir)
    seconds = _complete(config, folder(subject, name, workdir), stages(name, config))
    report = files.read_json(folder(subject, name, workdir) / evaluation.NAME / "report.json")
    scored = {row["arm"] if name == SHARED else name: row["scores"] for row in report["rows"]}
    if name == SHARED:
        scored = {PHOTOS: report["ceiling"]} | scored
    rows = [{"arm": arm} | {score: scores[score] for score in SCORES} for arm, scores in scored.items()]
    content = {"key": own, "subject": subject, "run": name, "seconds": seconds, "rows": rows}
    files.write_json(path, content)
    return content


def complete_account(subject: str, own: str, config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The account of a subject: read if it is there with the key `own`, else made, and before it what it needs of its arms' runs."""
    path = result(config, subject, ACCOUNT)
    if (found := _kept(path, own)) is not None:
        return found
    begin = time.time()
    _share(subject, config, workdir)
    configs = dict(runs(config, subject, workdir))
    arms = {name: (configs[name], folder(subject, name, workdir)) for name in config.experiment.account_arms}
    for name, (arm, where) in arms.items():
        _complete(arm, where, [stage for stage in stages(name, arm) if stage != evaluation.NAME])
    # Pictures of other inputs lie elsewhere: those of this key are the account's, however often it is interrupted.
    told = weak_to_strong.tell(subject, arms, config.experiment.account_pictures, folder(subject, ACCOUNT, workdir) / own[:16])
    content = {"key": own, "subject": subject, "run": ACCOUNT, "seconds": round(time.time() - begin, 1)} | told
    files.write_json(path, content)
    return content


def _share(subject: str, experiment: ConfigDict, workdir: Path) -> None:
    """A subject's tuned supervisor and its proxies."""
    _, shared = next(runs(experiment, subject, workdir))
    _complete(shared, folder(subject, SHARED, workdir), (subject_tuning.NAME, proxy_generation.NAME))


def _complete(config: ConfigDict, where: Path, names: Sequence[str]) -> float:
    begin = time.time()
    for stage in names:
        contract.complete(stage, STAGES[stage], config, where)
    return round(time.time() - begin, 1)
