"""Proxy-Tuning: teach an autoregressive image model a subject through a diffusion model that learned it first.

  python -m proxy_jax.main --config configs/smoke.py --workdir runs/smoke
  python -m proxy_jax.main --config configs/sd3_llamagen.py --workdir runs/my_cat \\
      --config.subject.photos=photos/my_cat --config.subject.class_noun=cat --config.subject.live=True

Stages: subject_tuning (DreamBooth on the photos), proxy_generation (the tuned diffusion model draws the proxy set),
proxy_tuning (the autoregressive student learns it), evaluation (DINO, CLIP-I, CLIP-T, report.html). Each writes into
WORKDIR/<stage>/. Run the same command again to resume: finished stages are skipped, an interrupted one goes on from its last
checkpoint, and one whose inputs changed runs anew. Any field of the config can be set by --config.FIELD=VALUE;
configs/base.py lists them all.
"""

import difflib
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from proxy_jax import sharding
from proxy_jax.data.photos import PhotosError
from proxy_jax.stages import contract, evaluation, proxy_generation, proxy_tuning, random_weights, subject_tuning
from proxy_jax.training.loop import NonFiniteError
from proxy_jax.weights.hub import CheckpointError
from proxy_jax.weights.table import WeightsError

STAGES = {stage.NAME: stage for stage in (random_weights, subject_tuning, proxy_generation, proxy_tuning, evaluation)}
EXPLAINED = (contract.StageError, PhotosError, CheckpointError, WeightsError, NonFiniteError, sharding.ShardingError)

CONFIG = config_flags.DEFINE_config_file("config", None, "The run's config file, e.g. configs/smoke.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything the run writes.")
STAGE_NAMES = flags.DEFINE_list("stages", None, f"Stages to run, in order; default: the config's. Known: {', '.join(STAGES)}.")


def run(config: ConfigDict, workdir: Path, stages: list[str] | tuple[str, ...]) -> None:
    """Runs `stages` in order under the config's mesh; each by the stage contract (proxy_jax/stages/contract.py)."""
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], STAGES, 1, 0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise contract.StageError(f"unknown stage {unknown[0]!r}{hint} Known: {', '.join(STAGES)}")
    mesh = sharding.make_mesh(**config.mesh.to_dict())
    logging.info("%d %s device(s), mesh %s", len(jax.devices()), jax.default_backend(), dict(mesh.shape))
    with sharding.use(mesh):
        for name in stages:
            contract.complete(name, STAGES[name], config, workdir)


def main(argv: list[str]) -> None:
    """The command line: see the module's docstring."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    contract.log_plainly()
    workdir = Path(WORKDIR.value).expanduser().resolve()
    jax.config.update("jax_compilation_cache_dir", str(workdir / "cache" / "xla"))
    stages = STAGE_NAMES.value or CONFIG.value.stages
    try:
        run(CONFIG.value, workdir, stages)
    except EXPLAINED as error:
        logging.error("%s: %s", type(error).__name__, error)
        sys.exit(1)
    report = workdir / evaluation.NAME / "report.html"
    if evaluation.NAME in stages:
        print(f"report: {report}")


def command() -> None:
    """Parses the flags and runs `main`."""
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)


if __name__ == "__main__":
    command()
