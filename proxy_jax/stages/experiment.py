"""The paper's comparison over subjects: every arm is a run of the four stages' own code, told apart by its config alone.

    python -m proxy_jax.main --config configs/micro/dreambench.py --workdir runs/micro/paper9

Of each subject the supervisor is tuned and draws its proxies once (`shared`); each arm then tunes on those proxies, or on the photos, and
is scored. The runs lie in WORKDIR/runs/<subject>/<arm>, each by the stage contract, and share WORKDIR/cache. What an arm found is a small
file, RESULTS/<subject>/<arm>.json, which names what it was made from: a run that finds it there for the same inputs skips the arm, so the
experiment goes on over many sessions and machines as long as that folder is kept. Of a supervisor with a name (experiment.supervisor) the file
is RESULTS/<subject>/<supervisor>/<arm>.json, unless no supervisor has to do with it. proxies.json names the proxies themselves, which
another machine may draw a little otherwise: what was made from others is then made anew. The account of weak-to-strong (weak_to_strong.py)
is one more such file, account.json.

Several runs of one workdir share the work, a subject at a time each. The first keeps the stage's record; the others assist it.
"""

import copy
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from proxy_jax import sharding
from proxy_jax.data import cache, prompts, proxy_set
from proxy_jax.metrics import comparison, figures
from proxy_jax.stages import (
    contract,
    evaluation,
    files,
    learners,
    meshes,
    proxy_generation,
    proxy_tuning,
    subject_tuning,
    training_set,
    tuning,
    validation,
    weak_to_strong,
)

NAME = "experiment"
OUTPUTS = ("comparison.json", "comparison.md", "figures")
SHARED, TOGETHER, ACCOUNT = "shared", "together", "account"
ORACLE = "oracle"  # an arm of this name learns from renderings of the subject in the place of proxies: those of a perfect supervisor
PROXIES = "proxies"  # the record of what proxies a subject's results were made from
PHOTOS = "photos"  # the row of the real photos, the ceiling
PATIENCE_S = 5  # between two looks for work, while other runs are at all that is left
MOST_MISREAD = 0.2  # an attribute that the probe misreads more often in right renderings says nothing of who is wrong
STAGES = {stage.NAME: stage for stage in (subject_tuning, proxy_generation, proxy_tuning, evaluation)}
ROLE = {subject_tuning.NAME: "supervisor", proxy_generation.NAME: "supervisor", proxy_tuning.NAME: "student"}
CHECKPOINTS = ("checkpoint", "gpt", "vq", "text_encoder", "text_tokenizer")  # fields that say where one lies
ENCODERS = ("dino", "clip", "probes")  # of the evaluation
UNSEEN = "unseen"  # identity × context over the prompts that no proxy was drawn for
SCORES = ("dino", "clip_i", "clip_t", "identity", "context", "identity_context", UNSEEN, "right_class")
Result = dict[str, Any]


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides the tables: the experiment's fields, and the key of every result of every subject.

    Raises StageError for a subject or arm that does not exist, for an arm whose config no run could have, and for two arms that are the same.
    """
    check(config, workdir)
    found = Plan(config, workdir).keys
    for own in found.values():
        same = [name for name in own if list(own.values()).count(own[name]) > 1]
        if same:
            raise contract.StageError(f"of the arms of the experiment, {' and '.join(same)} are the same: nothing would differ but the name")
    return contract.fields(config, NAME) | {"results": found}


def check(config: ConfigDict, workdir: Path) -> None:
    """Raises StageError for all that can be wrong in the experiment's fields and in the config of each of its runs; reads no photo or weight."""
    fields, names = config.experiment, [name for name, _ in config.experiment.arms]
    reserved = [SHARED, TOGETHER, ACCOUNT, PROXIES, PHOTOS, *fields.shared.evaluation.arms]
    if clash := [name for name in names if name in reserved or names.count(name) > 1]:
        raise contract.StageError(f"experiment.arms has {', '.join(clash)} twice, or as a name that means something else")
    if not re.fullmatch(r"[\w-]*", fields.supervisor):
        raise contract.StageError(f"experiment.supervisor is {fields.supervisor!r}, but it names a folder: letters, digits, - and _ alone")
    rows = [*names, *fields.shared.evaluation.arms, *([TOGETHER] if fields.together > 1 else [])]
    pairs = [arm for pair in (*fields.primary, *fields.contrasts) for arm in pair]
    own = [fields.main_arm] if fields.main_arm else []
    for field, named, known in (
        ("subjects", fields.subjects, list(prompts.SUBJECTS)),
        ("reference", [fields.reference], rows),
        ("main_arm", own, names),
        ("account_arms", fields.account_arms, names),
        ("primary and experiment.contrasts", pairs, rows),
        ("main_score", [fields.main_score], list(SCORES)),
    ):
        if unknown := [name for name in named if name not in known]:
            raise contract.StageError(f"experiment.{field} has {', '.join(unknown)}; there are {', '.join(known)}")
    arms = dict(fields.arms)
    if some := [name for name in fields.account_arms if changed(config, arms[name]).proxy_tuning.proxy_prompts]:
        raise contract.StageError(f"the account is of the first proxies, of which {', '.join(some)} did not learn all (proxy_tuning.proxy_prompts)")
    if fields.together > len(fields.subjects) or fields.together - 1 > len(fields.tokens):
        raise contract.StageError(
            f"experiment.together is {fields.together}; it needs as many subjects, and a token for each but the first, "
            f"not {len(fields.subjects)} subjects and {len(fields.tokens)} tokens"
        )
    mesh = sharding.current() or meshes.make(config, (), workdir)[0]
    for subject in fields.subjects:
        for name, run_config in runs(config, subject, workdir):
            try:
                validation.validate(run_config, stages(name, run_config), tuple(STAGES))
                validation.validate_batches(run_config, stages(name, run_config), mesh)
            except contract.StageError as error:
                raise contract.StageError(f"in the run {name} of {subject}: {error}") from error


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Makes every result of every subject that is not there yet, and after each subject the tables and figures of those that are done.

    Raises StageError if another run, of another config or workdir, writes these results too.
    """
    _make_all(config, workdir, [workdir / NAME, *_document(config, workdir)])
    return {}


def assist(config: ConfigDict, workdir: Path) -> None:
    """The same beside another run of the experiment, or of another one in its workdir; the tables come into the document alone."""
    _make_all(config, workdir, _document(config, workdir))


def _document(config: ConfigDict, workdir: Path) -> list[Path]:
    return [learners.path(config.experiment.document, workdir)] if config.experiment.document else []


def _make_all(config: ConfigDict, workdir: Path, written: Sequence[Path]) -> None:
    """written: the folders of the tables and figures."""
    plan, told, made, waits = Plan(config, workdir), {}, set(), False
    while True:
        results = plan.results()
        missing = [(name, subject) for subject, own in results.items() for name, found in own.items() if found is None]
        if not told and any(name in (ACCOUNT, ORACLE) for name, _ in missing):
            weak_to_strong.renderer()  # if it is lacking, say so before hours of tuning
        done = {subject: list(own.values()) for subject, own in results.items() if None not in own.values()}
        if done != told:
            _tell(done, told, plan, written)
        told = done
        if not missing:
            return
        if again := made.intersection(missing):
            names = ", ".join(sorted(f"{subject}/{name}" for name, subject in again))
            raise contract.StageError(f"{names} in {plan.fields.results}: another run, of another config or workdir, writes them too; wait for it")
        if own := next((item for item in missing if plan.make(*item)), None):
            made.add(own)
            waits = False
            continue
        if not waits:
            logging.info("waiting: other runs are at all that is left, of %s", ", ".join(dict.fromkeys(subject for _, subject in missing)))
            waits = True
        time.sleep(PATIENCE_S)


def _tell(done: Mapping[str, Sequence[Result]], told: Mapping[str, Sequence[Result]], plan: "Plan", written: Sequence[Path]) -> None:
    """Writes the tables and figures of the subjects that are done, with their results, and a line of each that was not `told`."""
    fields = plan.fields
    for number, subject in enumerate(done):
        if done[subject] != told.get(subject):
            rows = [row for found in done[subject] for row in found.get("rows", ()) if row[fields.main_score] is not None]
            shown = ", ".join(f"{row['arm']} {row[fields.main_score]:.3f}" for row in sorted(rows, key=lambda row: -row[fields.main_score]))
            seconds = sum(found["seconds"] for found in done[subject])
            logging.info("%s (%d of %d), made in %.0f s: %s", subject, number + 1, len(fields.subjects), seconds, shown)
    results = [found for own in done.values() for found in own]
    if results:
        rows = [row | {"subject": found["subject"]} for found in results for row in found.get("rows", ())]
        content = tables(rows, results, plan.config, plan.workdir) | {"unfinished": [name for name in fields.subjects if name not in done]}
        for folder in written:
            write(content, folder)


def tables(rows: Sequence[Mapping[str, Any]], results: Sequence[Result], config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """All that the tables and figures say, of one row an arm and subject, and the results that these come from."""
    fields = config.experiment
    content = comparison.compare(
        rows,
        SCORES,
        reference=fields.reference,
        main_score=fields.main_score,
        primary=fields.primary,
        contrasts=fields.contrasts,
        further_tests=fields.further_tests,
    )
    content["main_arm"] = fields.main_arm
    content["curve"] = [{"arm": name, "proxies": count} for name, count in proxy_counts(config).items()]
    content["budgets"] = budgets(config, workdir)
    content["differing"] = differing([found["made_with"] for found in results])
    if fields.account_arms:
        told = [found for found in results if found["run"] == ACCOUNT]
        content["account"] = comparison.accounts(told, fields.account_arms, MOST_MISREAD)
        content["account_guided"] = comparison.accounts(told, fields.account_arms, MOST_MISREAD, drawn="guided")
    return content


def write(content: dict[str, Any], folder: Path) -> None:
    """Writes comparison.json, comparison.md and figures/*.svg."""
    drawn = figures.draw(content)
    for name, svg in drawn.items():
        files.write_bytes(folder / "figures" / f"{name}.svg", svg.encode())
    shown = "".join(f"\n![{name.replace('_', ' ')}](figures/{name}.svg)\n" for name in drawn)
    files.write_json(folder / "comparison.json", content)
    files.write_bytes(folder / "comparison.md", (comparison.markdown(content) + shown).encode())


def proxy_counts(config: ConfigDict) -> dict[str, int]:
    """The arms that differ from experiment.main_arm in the number of proxies alone, itself included -> that number."""
    if not config.experiment.main_arm:
        return {}
    found = {name: changed(config, changes) for name, changes in config.experiment.arms if name != ORACLE}
    numbers = {name: own.proxy_tuning.num_proxies or own.proxy_generation.num_images for name, own in found.items()}
    for own in found.values():
        own.proxy_tuning.num_proxies = 0
    return {name: numbers[name] for name, own in found.items() if own == found[config.experiment.main_arm]}


def budgets(config: ConfigDict, workdir: Path) -> list[dict[str, Any]]:
    """Each training of each run of a subject, in order: {"run", "training" (its folder), "steps", "batch_size", "learning_rate"}."""
    found = []
    for name, own in runs(config, config.experiment.subjects[0], workdir):
        for stage in (stage for stage in stages(name, own) if stage in validation.TUNINGS):
            for part, fields in tuning.trainings(own[stage]).items():
                numbers = {field: fields[field] for field in ("steps", "batch_size", "learning_rate")}
                found.append({"run": name, "training": f"{stage}/{part}" if part else stage} | numbers)
    return found


def made_with() -> dict[str, str]:
    """What decides numbers beside a result's inputs: the versions and the devices."""
    return contract.versions() | {"devices": f"{len(jax.devices())} {jax.devices()[0].device_kind}"}


def differing(made: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """What is not the same in all of several `made_with`: its name -> the values."""
    values = {name: sorted({own[name] for own in made}) for name in made[0]}
    return {name: own for name, own in values.items() if len(own) > 1}


def runs(config: ConfigDict, subject: str, workdir: Path) -> Iterator[tuple[str, ConfigDict]]:
    """The runs of one subject, the shared one first, then the arms in their order: (name, its config)."""
    base = of_subject(config, subject, workdir)
    yield SHARED, _filled(changed(base, config.experiment.shared), workdir)
    base.proxies = str(dataset(subject, workdir))
    for name, changes in config.experiment.arms:
        arm = changed(base, changes)
        if name == ORACLE:
            arm.proxies = str(folder(subject, ORACLE, workdir) / "renderings")
        yield name, _filled(arm, workdir)
    if config.experiment.together > 1:
        arm = copy.deepcopy(base)
        arm.evaluation.arms = ("student",)
        arm.proxy_tuning.training.steps *= config.experiment.together  # as many a subject as alone
        arm.subjects = tuple(
            f"token={token},class_noun={prompts.SUBJECTS[other].class_noun},proxies={dataset(other, workdir)}"
            for other, token in _companions_with_tokens(config, subject)
        )
        yield TOGETHER, _filled(arm, workdir)


def companions(config: ConfigDict, subject: str) -> list[str]:
    """The subjects that one student learns together with `subject`: those that follow it, in a circle."""
    names = list(config.experiment.subjects)
    begin = names.index(subject) + 1
    return [*names[begin:], *names[: begin - 1]][: config.experiment.together - 1]


def _companions_with_tokens(config: ConfigDict, subject: str) -> list[tuple[str, str]]:
    found = companions(config, subject)
    return list(zip(found, config.experiment.tokens[: len(found)], strict=True))


def dataset(subject: str, workdir: Path) -> Path:
    """The proxy set that a subject's supervisor drew."""
    return folder(subject, SHARED, workdir) / proxy_generation.NAME / "dataset"


def of_subject(config: ConfigDict, subject: str, workdir: Path) -> ConfigDict:
    """The config of a run about one of DreamBench's names, its photos in the folder experiment.photos.

    Its seed is the subject's own: with the same noise for all, the chance of training would be no part of the variance between subjects.
    All arms of a subject have the same, so what they draw for a prompt starts from the same noise.
    """
    own = copy.deepcopy(config)
    found = prompts.SUBJECTS[subject]
    own.seed = config.seed + 1000 * list(prompts.SUBJECTS).index(subject)  # the stages add small numbers
    own.subject.update(photos=str(learners.path(config.experiment.photos, workdir) / subject), class_noun=found.class_noun, live=found.live)
    return own


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with an arm's changes, a nested mapping of fields that exist."""
    own = copy.deepcopy(config)
    own.update(copy.deepcopy(dict(changes)))
    return own


def _filled(config: ConfigDict, workdir: Path) -> ConfigDict:
    """`config` with the experiment's workdir for "{workdir}" in each text: a run has a workdir of its own, where no checkpoint lies."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _filled(value, workdir)
        elif isinstance(value, str):
            config[name] = value.replace("{workdir}", str(workdir))
    return config


def folder(subject: str, name: str, workdir: Path) -> Path:
    """The workdir of one run. Outside the experiment's own folder, which goes when any of its inputs changes."""
    return workdir / "runs" / subject / name


def stages(name: str, config: ConfigDict) -> list[str]:
    """The stages of a run, in order: what its arms of the evaluation need."""
    arms = config.evaluation.arms
    wanted = [subject_tuning.NAME] if "supervisor" in arms else []
    wanted += [proxy_generation.NAME] if name == SHARED else []
    return [*wanted, *([proxy_tuning.NAME] if "student" in arms else []), evaluation.NAME]


class Plan:
    """All runs of an experiment, what each result is to be made from, and the making.

    runs, keys: subject -> name -> config of the run, digest of all that decides the result; proxies_keys: subject -> the like of its proxies.
    """

    def __init__(self, config: ConfigDict, workdir: Path):
        """Reads every photo and checkpoint to tell what they are."""
        self.config, self.fields, self.workdir = config, config.experiment, workdir
        self.runs = {subject: dict(runs(config, subject, workdir)) for subject in self.fields.subjects}
        before = (subject_tuning.NAME, proxy_generation.NAME)
        self.proxies_keys = {subject: cache.digest(decides(own[SHARED], before, workdir)) for subject, own in self.runs.items()}
        self.keys = {subject: {name: self._key(name, subject) for name in own} for subject, own in self.runs.items()}
        for own in self.keys.values() if self.fields.account_arms else ():
            about = {name: own[name] for name in self.fields.account_arms}
            own[ACCOUNT] = cache.digest({"runs": about, "pictures": self.fields.account_pictures})

    def _key(self, name: str, subject: str) -> str:
        config = self.runs[subject][name]
        found = decides(config, stages(name, config), self.workdir)
        if name != SHARED:
            found["proxies"] = [self.proxies_keys[other] for other in self.sources(name, subject)]
        if name == ORACLE:
            found["renderings"] = weak_to_strong.oracle_fields(config, self.workdir)
        if name == TOGETHER:
            names = companions(self.config, subject)
            found["subjects"] = [decides(self.runs[other][SHARED], (), self.workdir) for other in names]
            found["tokens"] = list(self.fields.tokens[: len(names)])
        return cache.digest(found)

    def sources(self, name: str, subject: str) -> list[str]:
        """The subjects whose tuned supervisor or proxies a result is made from."""
        if name == TOGETHER:
            return [subject, *companions(self.config, subject)]
        if name in (SHARED, ACCOUNT):
            return [subject]
        if name == ORACLE:
            return []
        config = self.runs[subject][name]
        tuned_on = [config[stage].source for stage in stages(name, config) if stage in validation.TUNINGS]
        return [subject] if "proxies" in tuned_on else []

    def supervised(self, name: str, subject: str) -> bool:
        """Whether another supervisor would be another result."""
        if name == PROXIES or self.sources(name, subject):
            return True
        config = self.runs[subject][name]
        return "supervisor" in roles(config, stages(name, config))

    def path(self, name: str, subject: str) -> Path:
        """Where a result of a subject is kept.

        Whom it learns together with depends on the experiment's subjects: others lie beside it. Those of a supervisor with a name of its own
        (experiment.supervisor) have a folder; what has no supervisor is one result for all.
        """
        file = "-".join((TOGETHER, *companions(self.config, subject))) if name == TOGETHER else name
        own = self.fields.supervisor if self.supervised(name, subject) else ""
        return learners.path(self.fields.results, self.workdir) / subject / own / f"{file}.json"

    def recorded(self, subject: str) -> str | None:
        """The digest of the proxies that a subject's results are made from; None if none were drawn, or by other inputs."""
        found = files.read_json(self.path(PROXIES, subject))
        return found["digest"] if found is not None and found["key"] == self.proxies_keys[subject] else None

    def kept(self, name: str, subject: str) -> Result | None:
        """A result that is there, made from what it would be made from now, the recorded proxies included; else None."""
        found = files.read_json(self.path(name, subject))
        if found is None or found["key"] != self.keys[subject][name]:
            return None
        return found if found["proxy_sets"] == {other: self.recorded(other) for other in self.sources(name, subject)} else None

    def results(self) -> dict[str, dict[str, Result | None]]:
        """Subject -> name -> the result that is kept; None if it is to be made."""
        return {subject: {name: self.kept(name, subject) for name in own} for subject, own in self.keys.items()}

    def share(self, subject: str) -> str:
        """A subject's tuned supervisor and its proxies, and the record of these; returns their digest.

        Recorded proxies may not be in this workdir. Those that come out otherwise than recorded are recorded, and what was made from the old
        ones is missing.
        """
        self.complete_stages(SHARED, subject, (subject_tuning.NAME, proxy_generation.NAME))
        digest, before = training_set.digest(proxy_set.read(dataset(subject, self.workdir))), self.recorded(subject)
        if before not in (None, digest):
            logging.warning("%s: its proxies came out otherwise than those that results were made from; these results are made anew", subject)
        if before != digest:
            files.write_json(self.path(PROXIES, subject), {"key": self.proxies_keys[subject], "digest": digest, "made_with": made_with()})
        return digest

    def make(self, name: str, subject: str) -> bool:
        """Makes a result, and before it the proxies that it needs, unless it is there; False if another run is at a subject of either."""
        begin, sources = time.time(), self.sources(name, subject)
        with files.claimed([self.workdir / "runs" / own for own in dict.fromkeys((subject, *sources))]) as ours:
            if ours and self.kept(name, subject) is None:
                content = {"key": self.keys[subject][name], "subject": subject, "run": name, "made_with": made_with()}
                content |= {"proxy_sets": {other: self.share(other) for other in sources}}
                content |= self._account(subject) if name == ACCOUNT else {"rows": self._rows(name, subject)}
                files.write_json(self.path(name, subject), content | {"seconds": round(time.time() - begin, 1)})
        return ours

    def _rows(self, name: str, subject: str) -> list[dict[str, Any]]:
        """The rows of the table that a run makes."""
        self.complete_stages(name, subject, stages(name, self.runs[subject][name]))
        report = files.read_json(folder(subject, name, self.workdir) / evaluation.NAME / "report.json")
        scored = {row["arm"] if name == SHARED else name: row["scores"] for row in report["rows"]}
        if name == SHARED:
            scored = {PHOTOS: report["ceiling"]} | scored
        config = self.runs[subject][SHARED]
        scored = {arm: scores | {UNSEEN: evaluation.unseen(scores, config)} for arm, scores in scored.items()}
        return [{"arm": arm} | {score: scores[score] for score in SCORES} for arm, scores in scored.items()]

    def _account(self, subject: str) -> dict[str, Any]:
        arms = {name: (self.runs[subject][name], folder(subject, name, self.workdir)) for name in self.fields.account_arms}
        for name, (config, _) in arms.items():
            self.complete_stages(name, subject, [stage for stage in stages(name, config) if stage != evaluation.NAME])
        # Pictures of other inputs lie elsewhere: those of these are the account's, however often it is interrupted.
        own = cache.digest([self.keys[subject][ACCOUNT], self.recorded(subject)])
        return weak_to_strong.tell(subject, arms, self.fields.account_pictures, folder(subject, ACCOUNT, self.workdir) / own[:16])

    def complete_stages(self, name: str, subject: str, names: Sequence[str]) -> None:
        """Completes stages of a run, whose cache is the experiment's: what one run encoded or drew of the class serves all."""
        where = folder(subject, name, self.workdir)
        where.mkdir(parents=True, exist_ok=True)
        (self.workdir / "cache").mkdir(exist_ok=True)
        if not (where / "cache").is_symlink():
            (where / "cache").symlink_to("../../../cache", target_is_directory=True)
        if name == ORACLE:
            weak_to_strong.write_oracle(self.runs[subject][name], where)
        others = sorted(other for other in where.parent.iterdir() if other != where)
        for stage in names:
            lenders = others if stage in validation.TUNINGS else ()  # arms that only draw otherwise learn the same, and so do arms of two names
            contract.complete(stage, STAGES[stage], self.runs[subject][name], where, lenders)


def roles(config: ConfigDict, names: Sequence[str]) -> set[str]:
    """Who learns or draws in some stages of a run: "supervisor", "student"."""
    found = {ROLE[name] for name in names if name in ROLE}
    return found | ({learners.role(arm) for arm in config.evaluation.arms} if evaluation.NAME in names else set())


def decides(config: ConfigDict, names: Sequence[str], workdir: Path) -> dict[str, Any]:
    """What decides the outputs of some stages of a run, as JSON, but for its proxies and further subjects: fields, photos and checkpoints.

    Where files lie makes no difference.
    """
    found = contract.fields(config, "seed", "compute", *names) | {"subject": learners.subject(config, workdir).key()}
    if evaluation.NAME in names:
        encoders = {name: config.evaluation[name] for name in ENCODERS if config.evaluation[name]}
        found[evaluation.NAME] = {name: value for name, value in found[evaluation.NAME].items() if name not in ENCODERS}
        found["encoders"] = {name: cache.fingerprint(learners.locate(workdir)(value)) for name, value in encoders.items()}
        found["truth"] = evaluation.truth(config, workdir)
    for role in sorted(roles(config, names)):
        learner = (learners.supervisor if role == "supervisor" else learners.student)(config, workdir)
        settings = {name: value for name, value in config[role].items() if name not in CHECKPOINTS}
        found[role] = settings | {"checkpoint": tuning.checkpoint_key(learner)}
    return found
