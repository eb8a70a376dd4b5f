"""The meshes of a run, from its config: the sizes it names, or chosen for its models and batches, and another for stages that only draw."""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from proxy_jax import sharding
from proxy_jax.stages import learners, tuning
from proxy_jax.stages.tuning import Learner

ASSUMED_ROOM = 16 * 2**30  # of devices that do not tell their memory
DRAWING = ("proxy_generation", "evaluation")
LEARNERS = {"subject_tuning": learners.supervisor, "proxy_tuning": learners.student}


def make(
    config: ConfigDict, stages: Sequence[str], workdir: Path, *, devices: Sequence[jax.Device] | None = None, room: float | None = None
) -> tuple[Mesh, str]:
    """The mesh over `devices` (all by default) for these stages, and why its sizes were chosen ("" if the config names them).

    room: bytes of memory a device has; None: as it says itself. Raises ShardingError if sizes and devices do not fit.
    """
    sizes, why = config.mesh.to_dict(), ""
    devices = jax.devices() if devices is None else devices
    if sizes.pop("auto"):
        tuned = [stage for stage in LEARNERS if stage in stages]
        rows = [fields.batch_size // fields.accumulation for stage in tuned for fields in tuning.trainings(config[stage]).values()]
        held = [held_bytes(LEARNERS[stage](config, workdir), config[stage]) for stage in tuned]
        needs = dict(rows=math.gcd(*rows) or len(devices), held=max(held, default=0), room=room or _room())
        sizes, why = sharding.auto_sizes(len(devices), **needs, slices=sharding.count_slices(devices))
    return sharding.make_mesh(**sizes, devices=devices), why


def of_stage(name: str, config: ConfigDict, workdir: Path, mesh: Mesh, *, room: float | None = None) -> Mesh:
    """The mesh for one stage of a run with `mesh`: for those that only draw one over the same devices that suits drawing (sharding.drawing_sizes).

    Where the config names sizes that do not split weights over fsdp, all stages have those. room: as of `make`.
    """
    if name not in DRAWING or (mesh.shape["fsdp"] == 1 and not config.mesh.auto):
        return mesh
    devices, fields = list(mesh.devices.flat), config[name]
    made = [getattr(learners, role)(config, workdir) for role in {learners.role(arm) for arm in fields.get("arms", ("supervisor",))}]
    held = max(count(learner) * jnp.dtype(learner.compute.dtype).itemsize for learner in made)
    needs = dict(rows=fields.batch_size, held=held, room=room or _room(), slices=sharding.count_slices(devices))
    return sharding.make_mesh(**sharding.drawing_sizes(len(devices), **needs), devices=devices)


def count(learner: Learner) -> int:
    """How many values the learner's model has."""
    with sharding.use(None), sharding.describe(_runs_nothing):
        return tuning.count(learner.load_model(lambda name: jnp.float32))


def held_bytes(learner: Learner, stage: ConfigDict) -> float:
    """Bytes of a model in training: frozen weights in the dtype they are held in, or weights, their gradients and two moments in float32."""
    weights = count(learner)
    if stage.mode != "lora":
        return 16 * weights
    return weights * (1 if stage.lora.base == "int8" else jnp.dtype(learner.compute.dtype).itemsize)


def _runs_nothing(name, run, arguments, keywords):
    raise AssertionError(f"{name} is run to find out a model's size")


def _room() -> float:
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", ASSUMED_ROOM)
