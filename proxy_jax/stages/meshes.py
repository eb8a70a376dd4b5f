"""The mesh of a run, from its config: the sizes it names, or chosen for its models and batches."""

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
        needs = dict(rows=math.gcd(*rows) or len(devices), held=max(held, default=0), room=room or _room(devices[0]))
        sizes, why = sharding.auto_sizes(len(devices), **needs, slices=sharding.count_slices(devices))
    return sharding.make_mesh(**sizes, devices=devices), why


def held_bytes(learner: Learner, stage: ConfigDict) -> float:
    """Bytes of a model in training: frozen weights in the dtype they are held in, or weights, their gradients and two moments in float32."""
    with sharding.use(None), sharding.describe(_runs_nothing):
        weights = tuning.count(learner.load_model(lambda name: jnp.float32))
    if stage.mode != "lora":
        return 16 * weights
    return weights * (1 if stage.lora.base == "int8" else jnp.dtype(learner.compute.dtype).itemsize)


def _runs_nothing(name, run, arguments, keywords):
    raise AssertionError(f"{name} is run to find out a model's size")


def _room(device: jax.Device) -> float:
    return (device.memory_stats() or {}).get("bytes_limit", ASSUMED_ROOM)
