"""Proxy-Tuning: teach an autoregressive image model a subject through a diffusion model that learned it first.

usage: python -m proxy_jax.main --config FILE --workdir FOLDER [--stages NAMES] [--config.FIELD=VALUE ...]
       python -m proxy_jax.main --config FILE --preflight TOPOLOGY [--stages NAMES] [--config.FIELD=VALUE ...]

examples:
  python -m proxy_jax.main --config configs/micro.py --workdir runs/micro/dog6
  python -m proxy_jax.main --config configs/smoke.py --workdir runs/smoke
  python -m proxy_jax.main --config configs/sd3_llamagen.py --workdir runs/my_cat \\
      --config.subject.photos=photos/my_cat --config.subject.class_noun=cat --config.subject.live=True
  python -m proxy_jax.main --config configs/sd3_llamagen.py --workdir runs/dog6 --config.subject.dreambench=datasets/dreambench/dog6
  python -m proxy_jax.main --config configs/sd3_lumina_mgpt.py --preflight v5e:2x4 --config.mesh.auto=True

stages, each of which writes into FOLDER/<stage>/:
  subject_tuning    DreamBooth: the diffusion supervisor learns the subject from its photos
  proxy_generation  the tuned supervisor draws the proxy set
  proxy_tuning      the autoregressive student learns the proxy set
  evaluation        DINO, CLIP-I and CLIP-T of both; evaluation/report.html
  random_weights    before all of them in configs/smoke.py: tiny random checkpoints, to check the machinery
  pretraining       configs/micro/: a micro checkpoint trained from nothing
  experiment        configs/micro/dreambench.py: many runs of the stages compared over subjects

--preflight compiles the stages' programs for a TPU slice without having one, nor photos or weights, and prints what they need of it.
TOPOLOGY is v4, v5e, v5p or v6e and a shape (v5e:2x4, v5p:2x2x1; two slices: 2xv5e:2x4), or auto: the smallest that fits. With a
--workdir, figures of programs that do not change are kept there. It takes libtpu: pip install -e ".[preflight]".

Run the same command again to resume: finished stages are skipped, an interrupted one goes on from its last checkpoint, and one
whose inputs changed runs anew. Every field of the config can be set; configs/base.py lists them all with what they do.
FOLDER may be gs://BUCKET/FOLDER. It takes gcsfs: pip install -e ".[gs]".
A run that gets SIGTERM, as before a preemption, finishes and saves a step under way and exits with 75. Several processes run the same
command on a workdir that all see; where they do not find each other (TPU slices, Slurm), give --coordinator and the two numbers.
"""

import difflib
import gc
import os
import re
import runpy
import sys
import traceback
import uuid
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from proxy_jax import processes, sharding, storage
from proxy_jax.data.dreambench import DreambenchError
from proxy_jax.data.photos import PhotosError
from proxy_jax.data.proxy_set import ProxySetError
from proxy_jax.metrics.encoders import EncoderError
from proxy_jax.metrics.report import ReportError
from proxy_jax.stages import (
    contract,
    evaluation,
    experiment,
    files,
    learners,
    meshes,
    preflight,
    pretraining,
    proxy_generation,
    proxy_tuning,
    random_weights,
    subject_tuning,
    validation,
)
from proxy_jax.training.checkpoint import ResumeError
from proxy_jax.training.loop import NonFiniteError
from proxy_jax.weights.hub import CheckpointError
from proxy_jax.weights.table import WeightsError

STAGES = {stage.NAME: stage for stage in (pretraining, random_weights, subject_tuning, proxy_generation, proxy_tuning, evaluation, experiment)}
# What a user can mend: shown as a paragraph. Everything else is a bug and keeps its traceback.
EXPLAINED = (
    *(contract.StageError, PhotosError, DreambenchError, CheckpointError, WeightsError, ProxySetError, EncoderError),
    ReportError,
    *(NonFiniteError, ResumeError, sharding.ShardingError, processes.ProcessesError, storage.StorageError),
)

CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file, e.g. configs/smoke.py; --config.FIELD=VALUE sets a field of it.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything the run writes, or gs://BUCKET/FOLDER.")
PREFLIGHT = flags.DEFINE_string("preflight", None, "A TPU topology to compile for in place of running, or auto.")
PREFLIGHT_JSON = flags.DEFINE_string("preflight_json", None, "File for preflight's figures.")
PREFLIGHT_ONLY = flags.DEFINE_string("preflight_only", "", "Regular expression of the programs to compile; default: all.")
PREFLIGHT_FULL = flags.DEFINE_bool("preflight_full", False, "Compile as a run does: several times slower, more exact.")
STAGE_NAMES = flags.DEFINE_list("stages", None, "Stages to run, separated by commas; default: the config's.")
COORDINATOR = flags.DEFINE_string("coordinator", os.environ.get("JAX_COORDINATOR_ADDRESS"), "HOST:PORT of process 0 that all processes can reach.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", os.environ.get("JAX_NUM_PROCESSES"), "How many processes this run has.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", os.environ.get("JAX_PROCESS_ID"), "Which of them this one is, from 0.", lower_bound=0)
PROCESS_TIMEOUT = flags.DEFINE_integer("process_timeout", 300, "Seconds to wait for processes that do not come or fall silent.", lower_bound=1)

HELP = ("help", "helpshort", "h", "?")
FOREIGN_HELP = ("helpfull", "helpxml", "only_check_flags")


class CommandLineError(ValueError):
    """A command line that cannot be understood."""


def help_text() -> str:
    """The module's docstring and this program's own flags."""
    shown = (CONFIG, WORKDIR, STAGE_NAMES, COORDINATOR, NUM_PROCESSES, PROCESS_ID, PROCESS_TIMEOUT)
    shown += (PREFLIGHT, PREFLIGHT_JSON, PREFLIGHT_ONLY, PREFLIGHT_FULL)
    own = "\n".join(f"  --{holder.name:<15} {flags.FLAGS[holder.name].help}" for holder in shown)
    return f"{__doc__}\nflags (--helpfull lists those of the libraries too):\n{own}"


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    """The dotted names of all fields of a config, groups included."""
    names = []
    for key in config:
        names.append(prefix + key)
        if isinstance(config[key], ConfigDict):
            names += field_names(config[key], f"{prefix}{key}.")
    return names


def check_config_flags(arguments: list[str]) -> None:
    """Finds the config file among the arguments and lets it import its neighbours, from whatever folder the program was started.

    Raises CommandLineError, saying what there is instead, if no config is given, its file or a field that is set does not exist, or the
    config does not take its argument.
    """
    here = Path(__file__).resolve().parents[1] / "configs"
    listing = ", ".join(os.path.relpath(path) for path in sorted(here.glob("*.py")))
    given = [index for index, argument in enumerate(arguments) if re.match(r"--?config(=|$)", argument)]
    value = "" if not given else "".join(arguments[given[-1]].split("=", 1)[1:] or arguments[given[-1] + 1 : given[-1] + 2])
    if not value:
        raise CommandLineError(f"give --config=FILE; there are {listing}")
    path, *argument = value.split(":", 1)
    path = Path(path)
    if not path.is_file():
        raise CommandLineError(f"there is no config file {path} (seen from {Path.cwd()}); there are {listing}")
    # Configs import each other as `from configs import base`, those in a folder of their own too.
    folders = [folder for folder in path.resolve().parents if folder.name == "configs"]
    sys.path.insert(0, str((folders[0] if folders else path.resolve().parent).parent))
    try:
        config = runpy.run_path(str(path))["get_config"](*argument)
    except ValueError as error:
        if not argument:
            raise
        raise CommandLineError(f"--config={value}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise CommandLineError(f"get_config() of {path} returns no ConfigDict but {type(config).__name__}")
    known = field_names(config)
    for text in arguments:
        match = re.match(r"--?(?:no)?config\.([^=\[]+)", text)
        if match and match[1] not in known:
            same = [name for name in known if name.split(".")[-1] == match[1].split(".")[-1]]
            near = list(dict.fromkeys(same + difflib.get_close_matches(match[1], known, 3, 0.6)))
            hint = f"the nearest: {', '.join(near[:3])}" if near else f"its top fields: {', '.join(config)}"
            raise CommandLineError(f"the config has no field {match[1]}; {hint}")
        if match and any(name.startswith(f"{match[1]}.") for name in known):
            inside = [name for name in known if name.startswith(f"{match[1]}.")]
            raise CommandLineError(f"{match[1]} is a group of fields; set them one by one: {', '.join(inside)}")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags. Prints the help, or one paragraph about what is wrong with the command line, and exits."""
    names = [argument.lstrip("-") for argument in argv[1:] if argument.startswith("-")]
    if any(name in HELP for name in names):
        print(help_text())
        sys.exit(0)
    try:
        if not any(name in FOREIGN_HELP for name in names):
            check_config_flags(flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False))
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise CommandLineError(f"unexpected argument {rest[1]!r}; flags are --NAME=VALUE")
        if PREFLIGHT.value:
            if storage.is_address(WORKDIR.value or ""):
                raise CommandLineError(f"--preflight keeps its figures in a folder of this machine, not in {WORKDIR.value}; leave --workdir out")
            return rest
        if not WORKDIR.value:
            raise CommandLineError("give --workdir=FOLDER, the folder for everything the run writes, or gs://BUCKET/FOLDER")
        if storage.is_address(WORKDIR.value):
            storage.check_address(WORKDIR.value)
            if experiment.NAME in (STAGE_NAMES.value or CONFIG.value.stages):  # its runs name each other by their folders
                raise CommandLineError(f"the stage {experiment.NAME} takes a workdir on this machine, not {WORKDIR.value}")
        elif Path(WORKDIR.value).expanduser().is_file():
            raise CommandLineError(f"--workdir={WORKDIR.value} is a file; give a folder")
        together = COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value
        if any(value is not None for value in together) and (None in together or not PROCESS_ID.value < NUM_PROCESSES.value):
            raise CommandLineError("--coordinator=HOST:PORT, --num_processes and --process_id, below it, go together")
    except (CommandLineError, storage.StorageError, flags.Error) as error:
        sys.exit(f"error: {error}\n--help shows how this command is used.")
    return rest


def run(config: ConfigDict, workdir: Path, stages: list[str] | tuple[str, ...]) -> None:
    """Runs `stages` in order under the config's mesh; each by the stage contract (proxy_jax/stages/contract.py).

    Raises one of EXPLAINED for what the user can mend; of that, all that the config shows before any stage runs.
    """
    validation.validate(config, stages, tuple(STAGES))
    if processes.count() > 1:
        alone = [name for name in stages if name in (pretraining.NAME, experiment.NAME)]
        if alone:
            raise contract.StageError(f"the stage {alone[0]} runs in one process, not in {processes.count()}")
        check_shared(workdir)
    mesh, why = meshes.make(config, stages, workdir)
    validation.validate_batches(config, stages, mesh)
    if not set(stages) <= set(validation.WITHOUT_SUBJECT):
        learners.subject(config, workdir)  # photos that cannot be read stop the run before it changes anything
    logging.info("%d %s device(s), mesh %s%s", len(jax.devices()), jax.default_backend(), dict(mesh.shape), f": {why}" if why else "")
    processes.watch_again()
    for name in stages:
        with sharding.use(meshes.of_stage(name, config, workdir, mesh)):
            contract.complete(name, STAGES[name], config, workdir)


def check_shared(workdir: Path) -> None:
    """Raises StageError in each process that does not see what the first writes into the workdir."""
    marker, word = workdir / ".processes", processes.agreed(uuid.uuid4().hex)
    files.write_bytes(marker, word.encode())
    storage.share()
    seen = marker.is_file() and marker.read_text() == word
    processes.barrier()
    if not seen:
        raise contract.StageError(f"process {jax.process_index()} does not see what the first writes into {workdir}: it must be one folder for all")


def report_preflight(topology: str, config: ConfigDict, stages: list[str] | tuple[str, ...]) -> None:
    """Prints what the stages would need on a TPU topology. Exits with 1 if they do not fit."""
    jax.config.update("jax_platforms", "cpu")
    with config.unlocked():
        if not (config.subject.photos or config.subject.dreambench):
            config.subject.update(photos="photos", class_noun=config.subject.class_noun or "dog")
    validation.validate(config, stages, tuple(STAGES))
    cache = Path(WORKDIR.value).expanduser() / "cache" / "preflight" if WORKDIR.value else None
    report = preflight.preflight(topology, config, stages, quick=not PREFLIGHT_FULL.value, cache=cache, only=PREFLIGHT_ONLY.value)
    print(report.table())
    if PREFLIGHT_JSON.value:
        files.write_json(Path(PREFLIGHT_JSON.value), report.json())
    if not report.fits:
        sys.exit(1)


def main(argv: list[str]) -> None:
    """The command line: see the module's docstring. Exits with 1 and a paragraph if the run cannot go on for a reason a user can mend."""
    gc.freeze()  # what was imported is no garbage, and looking for some among so many objects again and again takes a while
    contract.log_plainly()
    if PREFLIGHT.value:
        try:
            return report_preflight(PREFLIGHT.value, CONFIG.value, STAGE_NAMES.value or CONFIG.value.stages)
        except EXPLAINED as error:
            sys.exit(f"error: {error}")
    stages = STAGE_NAMES.value or CONFIG.value.stages
    processes.watch_for_preemption(storage.discard)
    try:
        with storage.opened(WORKDIR.value) as workdir:
            if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
                jax.config.update("jax_compilation_cache_dir", str(workdir / "cache" / "xla"))
            processes.start(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, PROCESS_TIMEOUT.value)
            storage.pull()
            run(CONFIG.value, workdir, stages)
            if evaluation.NAME in stages and processes.is_first():
                print(f"report: {storage.address(workdir / evaluation.NAME / 'report.html')}")
    except EXPLAINED as error:
        processes.leave(f"error: {error}", 1)
    except processes.Preempted:
        processes.leave(processes.PREEMPTED_MESSAGE, processes.PREEMPTED)
    except KeyboardInterrupt:
        processes.leave("interrupted; the same command goes on with what is done", 130)
    except Exception:
        if processes.count() == 1:
            raise
        processes.leave(f"{traceback.format_exc()}process {jax.process_index()} stops; if it lost another one, that one's words say why", 1)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
