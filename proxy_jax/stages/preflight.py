"""What a run would need of a TPU: its own programs, compiled for a topology by libtpu, on any machine and without weights or photos.

Compiled are the programs that the stages run, by their own code: under `sharding.describe` arrays are shapes and every jitted function is
handed over in place of being run. Not compiled: the metric encoders, previews, and class pictures, which are drawn as stage 2 draws.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from proxy_jax import sharding
from proxy_jax.data import loader, prompts
from proxy_jax.models import parameters
from proxy_jax.stages import files, learners, meshes, program_costs, random_weights, tuning, validation
from proxy_jax.stages.contract import StageError
from proxy_jax.stages.tuning import Learner
from proxy_jax.training import loop
from proxy_jax.weights import published

MIB, GIB = 2**20, 2**30
TOPOLOGY = re.compile(r"((?P<slices>\d+)x)?(?P<slice>(?P<kind>\w+):\d+(x\d+)+)")
STAGES = ("subject_tuning", "proxy_generation", "proxy_tuning", "evaluation")
# By the student's family: the fields of the config and what random_weights.py writes for them
STUDENT_FILES = {
    "llamagen": {"gpt": "gpt.safetensors", "vq": "vq.safetensors", "text_encoder": "text_encoder"},
    "lumina_mgpt": {"gpt": "gpt", "vq": "vqgan.safetensors", "text_tokenizer": "text_tokenizer.json"},
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU's chip. hbm: bytes that a program can have (as libtpu counts them); flops: bfloat16 a second; bandwidth: HBM's bytes a second.

    Source of the peaks: Google's pages of each TPU (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e).
    """

    hbm: float
    flops: float
    bandwidth: float
    shapes: tuple[str, ...]  # of slices, smallest first
    options: tuple[tuple[str, Any], ...] = ()  # of libtpu's topology


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, FLAT),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9, FLAT),
    "v4": Chip(30.75 * GIB, 275e12, 1228e9, CUBES, (("chip_config_name", "megacore"),)),  # both cores of a chip as one device
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, CUBES),
}


@dataclasses.dataclass
class Program:
    """One compiled program. Bytes and FLOPs are a chip's and all chips' respectively, of one run of it: a step, or a batch of pictures."""

    stage: str
    name: str
    pictures: int
    need: float = 0.0  # bytes of HBM: its own, and of what else lies there at the time
    flops: float = 0.0
    passes: float = 0.0  # the same with float32 products in full precision counted as the six of bfloat16 that they take
    moved: float = 0.0
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0
    error: str = ""  # why it does not compile


@dataclasses.dataclass
class Report:
    """All programs of a run on one topology."""

    topology: str
    chips: int
    mesh: dict[str, int]
    why: str
    others: dict[str, dict[str, int]]  # of stages that have another mesh
    chip: Chip
    programs: list[Program]

    @property
    def fits(self) -> bool:
        """Whether every program does."""
        return all(self.verdict(program) == "fits" for program in self.programs)

    def verdict(self, program: Program) -> str:
        """fits, or why not."""
        return "fits" if not program.error and program.need <= self.chip.hbm else f"does not fit{': ' * bool(program.error)}{program.error}"

    def floors(self, program: Program) -> tuple[float, float]:
        """Seconds that its arithmetic, and that moving its matrices' operands, takes at the peaks."""
        return program.passes / self.chips / self.chip.flops, program.moved / self.chip.bandwidth

    def json(self) -> dict[str, Any]:
        """All figures."""
        rows = []
        for program in self.programs:
            arithmetic, bandwidth = self.floors(program)
            floors = {"arithmetic_floor_seconds": arithmetic, "bandwidth_floor_seconds": bandwidth, "verdict": self.verdict(program)}
            rows.append(dataclasses.asdict(program) | floors)
        head = {name: getattr(self, name) for name in ("topology", "chips", "mesh", "why", "others", "fits")}
        return head | {"hbm": self.chip.hbm, "programs": rows}

    def table(self) -> str:
        """The figures as Markdown."""
        lines = [f"{self.topology}: {self.chips} chip(s), mesh {_shown(self.mesh)}{': ' * bool(self.why)}{self.why}", ""]
        lines += [f"{stage.replace('_', ' ')}, which only draws: mesh {_shown(mesh)}\n" for stage, mesh in self.others.items()]
        lines += [
            "| stage | program | HBM a chip, GiB | FLOPs | moved a chip, GB | between chips, GB a chip | floor: arithmetic, s | bandwidth, s "
            "| pictures an hour | compiled in, s | |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for program in self.programs:
            arithmetic, bandwidth = self.floors(program)
            floor = max(arithmetic, bandwidth)
            moved = ", ".join(f"{kind} {size / 1e9:.3g}" for kind, size in program.collectives.items() if size >= 5e6)
            cells = [program.stage.replace("_", " "), program.name, f"{program.need / GIB:.2f} of {self.chip.hbm / GIB:.2f}"]
            if program.error:
                cells += [""] * 7
            else:
                cells += [f"{program.flops:.2e}", f"{program.moved / 1e9:.3g}", moved or "-", f"{arithmetic:.3g}", f"{bandwidth:.3g}"]
                cells += [f"{program.pictures * 3600 / floor:,.0f}" if floor else "-", f"{program.compile_seconds:.0f}"]
            lines.append("| " + " | ".join([*cells, self.verdict(program)]) + " |")
        return "\n".join(lines)


def _shown(mesh: dict[str, int]) -> str:
    return " × ".join(f"{axis} {size}" for axis, size in mesh.items())


def devices(topology: str) -> Sequence[jax.Device]:
    """The described devices of a topology such as v5e:2x4, or 2xv5e:2x4, two slices of it.

    Raises StageError without libtpu and for a name that it does not know.
    """
    match = TOPOLOGY.fullmatch(topology)
    if match is None or match["kind"] not in CHIPS:
        known = ", ".join(CHIPS)
        raise StageError(f"--preflight={topology}: give KIND:SHAPE, e.g. v5e:2x4 or v5p:2x2x1, of {known}, several slices as 2xv5e:2x4, or auto")
    options = dict(CHIPS[match["kind"]].options)
    if match["slices"] is not None:
        options["num_slices"] = int(match["slices"])
    if match["slice"].endswith(":1x1"):  # a host has four chips, unless told
        options["chips_per_host_bounds"] = (1, 1, 1)
    # libtpu asks no metadata server about the machine, and may be in use elsewhere: no TPU is touched.
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost"}.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=match["slice"], **options).devices
    except Exception as error:  # jaxlib raises whatever it finds
        missing = "libtpu" in str(error) and "not" in str(error)
        advice = 'TPU programs are compiled by libtpu: pip install -e ".[preflight]"' if missing else "libtpu knows no such topology"
        raise StageError(f"--preflight={topology}: {advice} ({str(error)[:200]})") from error


def stand_in(config: ConfigDict, folder: Path) -> ConfigDict:
    """The config with checkpoints that the project knows the sizes of replaced by files of shapes under `folder`; local ones stay.

    Raises StageError for others: their sizes would have to be downloaded.
    """
    config = config.copy_and_resolve_references()
    if "random_weights" in config:
        random_weights.generators(config.random_weights.to_dict(), folder / random_weights.NAME, None)
        return config
    place, student = config.supervisor, config.student
    if place.checkpoint in published.SUPERVISORS:
        random_weights.supervisor(published.SUPERVISORS[place.checkpoint], folder / "supervisor", None)
        place.checkpoint = str(folder / "supervisor")
    if student.gpt in published.STUDENTS:
        random_weights.any_student(published.STUDENTS[student.gpt], folder / "student", None)
        files = STUDENT_FILES[student.family]
        if "text_tokenizer" in files:
            _by_words(folder / "student" / files["text_tokenizer"])
        student.update({field: str(folder / "student" / name) for field, name in files.items()})
    for field in (place.checkpoint, student.gpt):
        if not learners.path(field, folder).exists():
            known = ", ".join([*published.SUPERVISORS, *published.STUDENTS])
            raise StageError(f"--preflight: {field} is no local checkpoint, nor one whose sizes are known: {known}")
    return config


def _by_words(file: Path) -> None:
    """Makes a tokenizer cut text into words, not letters: prompts are then about as long as with the published one."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.model, tokenizer.pre_tokenizer = WordLevel(tokenizer.get_vocab(), unk_token="<pad>"), Whitespace()
    tokenizer.save(str(file))


class Bench:
    """Compiles the programs of a run's stages for one mesh; `programs` holds what came of them. quick, cache, only: see `preflight`."""

    def __init__(self, config: ConfigDict, workdir: Path, topology: str, *, quick: bool, stop: bool, cache: Path, only: str):
        self.config, self.workdir, self.topology, self.chip = config, workdir, topology, _chip(topology)
        self.quick, self.stop, self.cache, self.only = quick, stop, cache, only
        self.programs: list[Program] = []
        self.meshes: dict[str, Mesh] = {}  # of each stage
        self.known: set[str] = set()
        self.stage, self.pictures = "", 1
        self.resident: dict[str, nnx.Module] = {}  # models that lie in memory besides the one whose program runs

    def run(self, stages: Sequence[str], mesh: Mesh) -> None:
        """Compiles the programs of these stages of a run with this mesh."""
        for stage in stages:
            self.stage, self.resident = stage, {}
            self.meshes[stage] = meshes.of_stage(stage, self.config, self.workdir, mesh, room=self.chip.hbm)
            with sharding.use(self.meshes[stage]), sharding.describe(self.record):
                getattr(self, f"_{stage}")()

    def _prompt(self) -> str:
        return prompts.fill(self.config.subject_tuning.prompt, self.config.subject.token, self.config.subject.class_noun or "dog")

    def _subject_tuning(self) -> None:
        if not self.config.supervisor.lora:
            self._tune(learners.supervisor(self.config, self.workdir), self.config.subject_tuning)

    def _proxy_generation(self) -> None:
        fields = self.config.proxy_generation
        options = {"steps": fields.steps, "guidance_scale": fields.guidance_scale}
        self._draw(learners.supervisor(self.config, self.workdir), self.config.subject_tuning, fields.batch_size, options)

    def _proxy_tuning(self) -> None:
        self._tune(learners.student(self.config, self.workdir), self.config.proxy_tuning)

    def _evaluation(self) -> None:
        fields = self.config.evaluation
        for arm in fields.arms:
            role = learners.role(arm)
            stage = self.config.proxy_tuning if role == "student" else self.config.subject_tuning
            learner = getattr(learners, role)(self.config, self.workdir)
            self._draw(learner, stage, fields.batch_size, fields[role].to_dict())

    def _tune(self, learner: Learner, stage: ConfigDict) -> None:
        side, rows = learner.resolution, sharding.padded(stage.encode_batch_size)
        self.pictures = 1
        columns = learner.encode_prompts([self._prompt()])
        self.pictures = rows
        columns |= learner.encode_images(np.zeros((rows, side, side, 3), np.uint8))
        model = tuning.trainable_model(learner, stage, {name: values[:1] for name, values in columns.items()}, 0)
        self._keep(learner)
        for name, training in tuning.trainings(stage).items():
            trainable = tuning.is_subject if name == tuning.EMBEDDING else tuning.TRAINABLE[stage.mode]
            overrides = tuning.overrides(learner, model, stage, training)
            prepared = loop.prepare(model, learner.loss, config=training, trainable=trainable, overrides=overrides)
            layout = sharding.batch(sharding.current())
            shapes = {column: (values.shape[1:], jax.dtypes.canonicalize_dtype(values.dtype)) for column, values in columns.items()}
            shapes[loader.LOSS_WEIGHT] = ((), np.float32)
            batch = {column: jax.ShapeDtypeStruct((training.batch_size, *shape), dtype, sharding=layout) for column, (shape, dtype) in shapes.items()}
            self.pictures = training.batch_size
            arguments = prepared.shapes, prepared.frozen, batch, np.int32(0), np.uint32(0)
            self.record(f"{type(model).__name__}.{f'{name} ' if name else ''}training step", prepared.update, arguments, {})

    def _draw(self, learner: Learner, stage: ConfigDict, batch: int, options: dict[str, Any]) -> None:
        self.pictures = 1
        text = learner.encode_prompts([self._prompt(), ""])
        model = tuning.adapted_model(learner, stage, 0) if stage.mode == "lora" else learner.load_model(lambda name: learner.compute.dtype)
        self._keep(learner, model)
        self.pictures = sharding.padded(batch)
        rows = {name: np.repeat(values[:1], self.pictures, axis=0) for name, values in text.items()}
        unconditional = {name: values[-1:] for name, values in text.items()}
        learner.draw(model, rows, unconditional, 0, np.arange(self.pictures), options)

    def _keep(self, learner: Learner, *models: nnx.Module) -> None:
        """Notes what lies in memory while the next programs run: the parts that the learner has loaded and keeps, and `models`."""
        for part in ("vae", "tokenizer"):
            if hasattr(type(learner), part):
                models = (*models, getattr(learner, part))
        self.resident = {type(model).__name__: model for model in models}

    def record(self, name: str, run: Callable, arguments: tuple, keywords: dict[str, Any]) -> Any:
        """Compiles a jitted function for the shapes of its arguments; returns the shapes of its outputs, rows split over the mesh.

        A program that an earlier stage has compiled already is not listed again.
        """
        traced = run.trace(*arguments, **keywords)
        if re.search(self.only, name):
            self._list(name, traced, [x for x in jax.tree.leaves((arguments, keywords)) if isinstance(x, jax.ShapeDtypeStruct)])
        return sharding.described(traced.out_info)

    def _list(self, name: str, traced: Any, inputs: list[jax.ShapeDtypeStruct]) -> None:
        lowered = traced.lower()
        versions = [jax.__version__, importlib.metadata.version("libtpu"), self.topology, str(self.quick)]
        key = hashlib.sha256("\n".join([*versions, lowered.as_text()]).encode()).hexdigest()
        if key not in self.known:
            self.known.add(key)
            kept, held = self.cache / f"{key}.json", MIB * loop.mebibytes(inputs)
            figures = files.read_json(kept)
            if held > self.chip.hbm:
                figures = {"need": held, "error": "its inputs alone are too large"}
            elif figures is None:
                figures = self._measured(lowered)
                files.write_json(kept, figures)
            flops, passes = program_costs.flops(traced.jaxpr)
            program = Program(self.stage, name, self.pictures, flops=flops, passes=passes, **figures)
            program.need += sum(
                MIB * loop.mebibytes(parameters.arrays(part)) for kind, part in self.resident.items() if kind != name.partition(".")[0]
            )
            self.programs.append(program)
            logging.info("%s, %s: %.2f GiB, compiled in %.0f s", self.stage, name, program.need / GIB, program.compile_seconds)
            if self.stop and (program.error or program.need > self.chip.hbm):
                raise DoesNotFit

    def _measured(self, lowered: Any) -> dict[str, Any]:
        """Fields of Program, but for what lies beside it in memory."""
        begin = time.perf_counter()
        try:
            with _effort(self.quick):
                compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return {"error": program_costs.exhausted(str(error))}
        seconds = time.perf_counter() - begin
        memory = compiled.memory_analysis()
        own = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        try:
            text = compiled.as_text()
        except jax.errors.JaxRuntimeError as error:  # seen with jax 0.10.2 and libtpu 0.0.52
            versions = f"libtpu {importlib.metadata.version('libtpu')} and jax {jax.__version__}"
            raise StageError(f'{versions} may not suit each other: pip install -e ".[preflight]" ({str(error)[:200]})') from error
        collectives = program_costs.by_kind(program_costs.collectives(text))
        return {"need": own, "moved": program_costs.moved(text), "collectives": collectives, "compile_seconds": seconds}


class DoesNotFit(Exception):
    """Ends the search on a topology."""


@contextlib.contextmanager
def _effort(quick: bool) -> Iterator[None]:
    """With `quick` XLA tries least to make programs fast: several times quicker to compile, memory near that of a run, that of small ones less so."""
    names = ("jax_optimization_level", "jax_memory_fitting_level")
    before = {name: getattr(jax.config, name) for name in names}
    for name in names:
        jax.config.update(name, "O0" if quick else before[name])
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _chip(topology: str) -> Chip:
    return CHIPS[TOPOLOGY.fullmatch(topology)["kind"]]


def on(topology: str, config: ConfigDict, stages: Sequence[str], workdir: Path, *, stop: bool = False, **options: Any) -> Report:
    """The report of `stages` on one topology; config: as `stand_in` returns it. stop: at the first program that does not fit.

    options: as of `preflight`.
    """
    found, chip = devices(topology), _chip(topology)
    mesh, why = meshes.make(config, stages, workdir, devices=found, room=chip.hbm)
    validation.validate_batches(config, stages, mesh)
    bench = Bench(config, workdir, topology, stop=stop, **options)
    with contextlib.suppress(DoesNotFit):
        bench.run([stage for stage in stages if stage in STAGES], mesh)
    others = {stage: dict(own.shape) for stage, own in bench.meshes.items() if own.shape != mesh.shape}
    return Report(topology, mesh.size, dict(mesh.shape), why, others, chip, bench.programs)


def smallest(config: ConfigDict, stages: Sequence[str], workdir: Path, **options: Any) -> Report:
    """The report on the first topology that everything fits on, from the fewest chips up and of as many the ones with the least memory."""
    known = [(math.prod(map(int, shape.split("x"))), chip.hbm, f"{kind}:{shape}") for kind, chip in CHIPS.items() for shape in chip.shapes]
    config.mesh.auto = True
    for _, _, topology in sorted(known):
        try:
            report = on(topology, config, stages, workdir, stop=True, **options)
        except sharding.ShardingError as error:
            logging.info("%s: %s", topology, error)
            continue
        if report.fits:
            return report
        logging.info("%s: %s %s", topology, report.programs[-1].name, report.verdict(report.programs[-1]))
    raise StageError(f"nothing up to {known[-1][2]} fits; a larger training.batch_size may use more chips")


def preflight(topology: str, config: ConfigDict, stages: Sequence[str], *, quick: bool = True, cache: Path | None = None, only: str = "") -> Report:
    """What the stages would need on a topology, e.g. v5e:2x4, or on the smallest that fits ("auto").

    quick: see `_effort`. cache: a folder where the figures of each program are kept for the next time. only: a regular expression of programs'
    names. Raises StageError for what cannot be compiled for and ShardingError where the mesh does not suit.
    """
    with tempfile.TemporaryDirectory() as folder:
        config, options = stand_in(config, Path(folder)), {"quick": quick, "cache": cache or Path(folder) / "figures", "only": only}
        if topology == "auto":
            return smallest(config, stages, Path(folder), **options)
        return on(topology, config, stages, Path(folder), **options)
