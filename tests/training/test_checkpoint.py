"""Checkpoints: what goes in comes out, old and half-written ones do not."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import SingleDeviceSharding

from proxy_jax import storage
from proxy_jax.training.checkpoint import Checkpoints, ResumeError

POSITION = {"seed": 3, "batches": {"epoch": 1, "rows": [4, 5]}, "metrics": 120}


def make_state(seed: int) -> tuple:
    """Parameters with dots in their names, the state of a masked optimizer, and an empty dict."""
    rng = np.random.default_rng(seed)
    params = {"blocks.q.kernel": jnp.asarray(rng.standard_normal((3, 4)), jnp.float32), "blocks.q.lora.a": jnp.asarray(rng.standard_normal(2))}
    transform = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1, {"blocks.q.kernel": True, "blocks.q.lora.a": False}))
    state = transform.init(params)
    _, state = transform.update(params, state, params)
    return params, state, {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with steps 2, 4 and 6 saved, of which two were to be kept."""
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, make_state(step), POSITION | {"metrics": step})
    return tmp_path / "checkpoints"


def test_round_trip_is_exact(folder):
    """The same structure, dtypes and bits, laid out as asked; also from shapes."""
    layout = SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), make_state(0))
    with Checkpoints(folder, keep=2) as checkpoints:
        for step, like in ((4, make_state(0)), (6, shapes)):
            restored = checkpoints.restore(step, like)
            assert jax.tree.structure(restored) == jax.tree.structure(make_state(step))
            jax.tree.map(np.testing.assert_array_equal, restored, make_state(step))
            assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
            assert checkpoints.position(step) == POSITION | {"metrics": step}


def test_saving_in_the_background_survives_donation(tmp_path):
    """Arrays donated to the next step right after `save` are saved as they were."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = {"w": jnp.zeros((512, 512))}
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for number in (1, 2, 3):
            state = step(state)
            checkpoints.save(number, state, {})
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for number in (1, 2, 3):
            np.testing.assert_array_equal(checkpoints.restore(number, state)["w"], number)


def test_keeps_the_newest(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.all_steps() == [4, 6] and checkpoints.latest_step() == 6


def test_half_written_steps_are_not_seen(folder):
    """What a killed writer leaves, a temporary folder, is neither listed nor read, and does not bar saving that step."""
    partial = folder / "8.orbax-checkpoint-tmp-123"
    (partial / "state").mkdir(parents=True)
    (partial / "state" / "manifest.ocdbt").write_bytes(b"\0\0")
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.latest_step() == 6 and not partial.exists()
        checkpoints.save(8, make_state(8), POSITION)
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.all_steps() == [6, 8]
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(8, make_state(0)), make_state(8))


def test_an_empty_folder_has_no_step(tmp_path):
    with Checkpoints(tmp_path / "new", keep=1) as checkpoints:
        assert checkpoints.latest_step() is None


def test_differences_are_named(folder):
    """Another shape, dtype or name is an error that tells which."""
    params, *rest = make_state(0)
    wider, other = params | {"blocks.q.kernel": jnp.zeros((3, 5))}, {"blocks.q.kernel": params["blocks.q.kernel"]}
    half = params | {"blocks.q.kernel": params["blocks.q.kernel"].astype(jnp.bfloat16)}
    with Checkpoints(folder, keep=2) as checkpoints:
        for like, message in ((wider, r"\(3, 4\) float32 in the checkpoint, \(3, 5\)"), (other, r"lora\.a.*absent in the run"), (half, "bfloat16")):
            with pytest.raises(ResumeError, match=message):
                checkpoints.restore(6, (like, *rest))


def test_in_a_bucket(bucket):
    """Where nothing can be renamed: what a killed process wrote of a step is not taken for one, and is in nobody's way."""
    with storage.opened("gs://bucket/training") as folder:
        storage.pull()
        with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
            for step in (2, 4):
                checkpoints.save(step, make_state(step), POSITION)
        bucket.files.pipe_file("bucket/training/checkpoints/6/state/manifest.ocdbt", b"half")
        with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
            assert checkpoints.all_steps() == [4] and checkpoints.position(4) == POSITION
            jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(4, make_state(0)), make_state(4))
            checkpoints.save(6, make_state(6), POSITION)
        with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
            assert checkpoints.all_steps() == [6]
            jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(6, make_state(0)), make_state(6))
    assert {name.split("/")[1] for name in bucket.versions("training")} == {"6"}
