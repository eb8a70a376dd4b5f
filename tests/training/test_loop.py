"""The training loop: what it computes, that it resumes to the bit, and what it does with infinities."""

import json
import signal
import struct
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx
from tensorboardX.proto import event_pb2
from tiny_run import ROWS, WIDTH, Data, Tiny, noisy_loss, run

from proxy_jax import processes
from proxy_jax.models import parameters
from proxy_jax.training import checkpoint, loop, lora, optimizer
from tests import cheap_xla

ROOT = Path(__file__).resolve().parents[2]


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def same(model: nnx.Module, other: nnx.Module) -> None:
    """Asserts that two models hold the same arrays, bit by bit."""
    ours, theirs = parameters.arrays(model), parameters.arrays(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=name)


def script(*arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
    environment = cheap_xla.environment(devices) | {"PYTHONPATH": str(ROOT)}
    command = [*tiny_run.COMMAND, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nnx.Module, list[int]]:
    """An uninterrupted run of 12 steps with previews, its model, and the steps of the previews."""
    directory, previews = tmp_path_factory.mktemp("whole"), []
    model = run(directory, preview=lambda model, step: previews.append(step), preview_every=4)
    return directory, model, previews


def test_trains_only_what_is_trainable(whole_run):
    """Adapters change, everything else stays the same to the bit, and the loss falls."""
    directory, model, previews = whole_run
    fresh = Tiny(rngs=nnx.Rngs(0))
    lora.attach(fresh, r"blocks\.(up|down)|out", 2, 4.0, jax.random.key(1))
    before = parameters.arrays(fresh)
    for name, variable in parameters.variables(model).items():
        equal = np.array_equal(parameters.value(variable), before[name])
        assert equal != lora.is_lora(name, variable), name
    metrics = lines(directory)
    assert [line["step"] for line in metrics] == list(range(1, 13))
    assert set(metrics[0]) == {"step", "loss", "grad_norm", "learning_rate"}
    assert np.mean([line["loss"] for line in metrics[-3:]]) < np.mean([line["loss"] for line in metrics[:3]])
    assert previews == [4, 8, 12]


def test_tensorboard_has_the_figures(whole_run):
    directory, _, _ = whole_run
    (path,) = (directory / "tensorboard").glob("events.out.tfevents.*")
    data, found = path.read_bytes(), {}
    while data:  # TFRecord: length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
    for line in lines(directory):
        if line["step"] % 4 == 0:
            assert found["loss", line["step"]] == pytest.approx(line["loss"], rel=1e-6)
    assert {tag for tag, _ in found} == {"loss", "grad_norm", "learning_rate", "steps_per_second"}


def test_step_against_plain_gradients(tmp_path):
    """Two steps equal plain Adam on the whole model, written out: loss_weight, rng and the schedule are what they should be."""
    weights = np.linspace(0.0, 2.0, ROWS, dtype=np.float32)
    data = Data(change=lambda number, batch: batch | {"loss_weight": weights})
    changes = dict(steps=2, clip_norm=0.0, weight_decay=0.0, schedule="constant", warmup_steps=0, learning_rate=1e-2)
    model = run(tmp_path, data, adapters=False, **changes)

    skeleton, values = Tiny(rngs=nnx.Rngs(0)), parameters.arrays(Tiny(rngs=nnx.Rngs(0)), lora.is_parameter)
    first, second = ({name: jnp.zeros_like(value) for name, value in values.items()} for _ in range(2))
    fresh, losses, norms = Data(), [], []
    for step in range(2):
        batch = next(fresh) | {"row_index": jnp.arange(ROWS)}
        rng = jax.random.fold_in(jax.random.key(7), step)

        def mean_loss(values, batch=batch, rng=rng):
            return (noisy_loss(parameters.with_arrays(skeleton, values), batch, rng) * weights).mean()

        loss, grads = jax.jit(jax.value_and_grad(mean_loss))(values)
        losses.append(loss)
        norms.append(np.sqrt(sum(float(jnp.square(grad).sum()) for grad in grads.values())))
        for name, grad in grads.items():
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            change = first[name] / (1 - 0.9 ** (step + 1)) / (jnp.sqrt(second[name] / (1 - 0.999 ** (step + 1))) + 1e-8)
            values[name] = values[name] - 1e-2 * change
    np.testing.assert_allclose([line["loss"] for line in lines(tmp_path)], losses, rtol=1e-5)
    np.testing.assert_allclose([line["grad_norm"] for line in lines(tmp_path)], norms, rtol=1e-5)
    for name, value in parameters.arrays(model, lora.is_parameter).items():
        np.testing.assert_allclose(value, values[name], atol=2e-5, err_msg=name)


def test_accumulation_changes_nothing(tmp_path):
    """4 pieces a step give the losses and weights of one piece, with noise and unequal loss weights."""
    weights = np.linspace(0.5, 1.5, ROWS, dtype=np.float32)
    models = []
    for pieces in (1, 4):
        data = Data(change=lambda number, batch: batch | {"loss_weight": weights})
        models.append(run(tmp_path / str(pieces), data, steps=4, accumulation=pieces))
    one, four = ([line["loss"] for line in lines(tmp_path / str(pieces))] for pieces in (1, 4))
    np.testing.assert_allclose(four, one, rtol=1e-6)
    arrays = [parameters.arrays(model, lora.is_lora) for model in models]
    error = max(float(jnp.abs(arrays[0][name] - arrays[1][name]).max()) for name in arrays[0])
    print(f"largest difference of 1 and 4 pieces: {error:.1e}")
    assert error < 2e-5


@pytest.mark.parametrize("stop_at", [5, 6])
def test_resumes_to_the_bit_after_an_exception(whole_run, tmp_path, stop_at):
    """A run that fails after step 5 (or 6, when its checkpoint may be half-written) and is run again ends as if nothing had been."""

    def fail():
        raise KeyboardInterrupt

    directory, model, whole_previews = whole_run
    previews = []
    options = dict(preview=lambda model, step: previews.append(step), preview_every=4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Data((stop_at, fail)), **options)
    resumed = run(tmp_path, **options)
    same(resumed, model)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (directory / "metrics.jsonl").read_bytes()
    # Step 4's preview is made again only where the run goes on from before it.
    assert previews == ([4, 4, 8, 12] if stop_at == 5 else whole_previews)


def test_resumes_to_the_bit_after_kill(tmp_path):
    """The same for SIGKILL in another process, while it writes a checkpoint every step; the whole model is trained."""
    killed = script(str(tmp_path / "killed"), "--kill_at", "7", "--checkpoint_every", "1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(lines(tmp_path / "killed")) < 12
    changes = dict(adapters=False, schedule="constant", checkpoint_every=1)
    with checkpoint.Checkpoints(tmp_path / "killed" / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.latest_step() in (5, 6, 7)
    resumed = run(tmp_path / "killed", **changes)
    uninterrupted = run(tmp_path / "whole", **changes)
    same(resumed, uninterrupted)
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_finished_run_returns_at_once(whole_run):
    """Run again, a finished run gives the same model without a step, a batch or a preview, and leaves its log as it is."""

    def never(*arguments):
        raise AssertionError("a finished run must not train")

    directory, model, _ = whole_run
    log = (directory / "metrics.jsonl").read_bytes()
    same(run(directory, Data((12, never)), loss=never, preview=never, preview_every=4), model)
    assert (directory / "metrics.jsonl").read_bytes() == log


def test_resume_refuses_another_run(whole_run):
    directory, _, _ = whole_run
    with pytest.raises(checkpoint.ResumeError, match="beyond the 6 steps"):
        run(directory, steps=6, warmup_steps=0)
    with pytest.raises(checkpoint.ResumeError, match=r"blocks\.up\.kernel"):
        run(directory, adapters=False)
    model = Tiny(rngs=nnx.Rngs(0))
    with pytest.raises(checkpoint.ResumeError, match="seed 7, not 8"):
        loop.fit(model, noisy_loss, Data(), config=tiny_run.config(), trainable=lora.is_parameter, directory=directory, seed=8)


def test_a_stop_is_after_the_step_under_way(tmp_path):
    """SIGTERM before the fifth batch is handed out, two steps after a checkpoint: the fifth step is taken and saved."""
    stopped = script(str(tmp_path), "--kill_at", "4", f"--signal={int(signal.SIGTERM)}")
    assert stopped.returncode == processes.PREEMPTED and stopped.stderr.endswith("preempted\n"), stopped.stderr
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.all_steps() == [3, 5]


@pytest.mark.parametrize("told_to_stop", [False, True])
def test_stops_at_a_loss_that_is_not_finite(tmp_path, told_to_stop, monkeypatch):
    """The message names step, loss and tensors; nothing is saved afterwards and at most one more batch is read. A stop does not hide it."""
    monkeypatch.setattr(processes, "_noticed", False)

    def change(number: int, batch: dict) -> dict:
        processes._noticed = told_to_stop and number == 7
        return batch | {"x": batch["x"] * (np.nan if number == 7 else 1)}

    data = Data(change=change)
    with pytest.raises(loop.NonFiniteError, match=r"step 7: loss nan, gradient not finite in .*lora"):
        run(tmp_path, data, checkpoint_every=2)
    processes._noticed = False
    assert data.number <= 8
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.all_steps() == [4, 6]


def test_names_the_tensor_and_writes_no_checkpoint_of_it(tmp_path):
    """A gradient of one tensor that is not finite under a finite loss is found before the same step's checkpoint."""

    def loss(model, batch, rng):
        poison = jnp.sqrt(jnp.abs(model.out.bias[...]).sum())  # at bias 0: value 0, gradient not finite
        return noisy_loss(model, batch, rng) + poison

    with pytest.raises(loop.NonFiniteError, match=r"step 1: loss [\d.]+, gradient not finite in out\.bias$"):
        run(tmp_path, adapters=False, loss=loss, checkpoint_every=1)
    with checkpoint.Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints:
        assert checkpoints.latest_step() is None


def make_update(config, loss=noisy_loss):
    """An update function for the whole tiny model, its state and its frozen arrays."""
    model = Tiny(rngs=nnx.Rngs(0))
    params, frozen, axes = loop.split(model, lora.is_parameter, None)
    transform = optimizer.make(config, axes)
    _, layouts = loop.state_layouts(params, axes, transform, config, None)
    update = loop.update_step(parameters.abstract(model), loss, transform, config, layouts)
    return update, loop.init_state(params, transform, config), frozen


def test_an_update_that_is_not_finite_is_not_applied_and_state_is_donated():
    update, state, frozen = make_update(tiny_run.config(ema_decay=0.9, warmup_steps=0))
    batch = {name: jnp.asarray(column) for name, column in next(Data()).items()}
    state = jax.tree.map(jnp.copy, state)
    before = jax.tree.map(np.array, state)
    after, metrics = update(state, frozen, batch | {"x": batch["x"] * jnp.inf}, np.int32(0), np.uint32(0))
    assert not metrics["finite"]
    jax.tree.map(np.testing.assert_array_equal, after, before)
    kernel = after.params["out.kernel"]
    moved, metrics = update(after, frozen, batch, np.int32(1), np.uint32(0))
    assert metrics["finite"] and not np.array_equal(moved.params["out.kernel"], before.params["out.kernel"])
    assert kernel.is_deleted()


def test_moving_average_is_that_of_diffusers(tmp_path):
    """The returned model holds diffusers' EMAModel average of the weights after each step."""
    torch = pytest.importorskip("torch", reason="the oracle is diffusers on torch")
    diffusers = pytest.importorskip("diffusers.training_utils", reason="the oracle is diffusers")
    snapshots = []
    changes = dict(steps=6, warmup_steps=0, schedule="constant")
    run(
        tmp_path / "plain",
        adapters=False,
        preview=lambda model, step: snapshots.append(np.array(model.out.kernel[...])),
        **changes,
        preview_every=1,
    )
    start = torch.nn.Parameter(torch.from_numpy(np.array(Tiny(rngs=nnx.Rngs(0)).out.kernel[...])))
    average = diffusers.EMAModel([start], decay=0.3)
    for snapshot in snapshots:
        average.step([torch.nn.Parameter(torch.from_numpy(snapshot.copy()))])
    model = run(tmp_path / "ema", adapters=False, ema_decay=0.3, **changes)
    np.testing.assert_allclose(model.out.kernel[...], average.shadow_params[0].numpy(), atol=1e-6)
    assert not np.allclose(model.out.kernel[...], snapshots[-1], atol=1e-4)


def test_masters_are_float32_and_frozen_arrays_keep_their_dtype(tmp_path):
    model = Tiny(rngs=nnx.Rngs(0))
    model = parameters.with_arrays(model, {name: value.astype(jnp.bfloat16) for name, value in parameters.arrays(model).items()})
    config = tiny_run.config(steps=1, warmup_steps=0)
    trained = loop.fit(model, noisy_loss, Data(), config=config, trainable=lambda name, variable: name.startswith("out."), directory=tmp_path, seed=0)
    dtypes = {name: value.dtype for name, value in parameters.arrays(trained).items()}
    assert dtypes["out.kernel"] == jnp.float32 and dtypes["blocks.up.kernel"] == jnp.bfloat16


def test_refuses_what_cannot_be_trained(tmp_path):
    with pytest.raises(ValueError, match="no variable of Tiny is trainable"):
        run(tmp_path, trainable=lambda name, variable: False)
    with pytest.raises(ValueError, match="8 rows is not a multiple of 3"):
        run(tmp_path, accumulation=3)
    with pytest.raises(ValueError, match=r"one value a row, \(8,\); it is \(8, 8\)"):
        run(tmp_path, loss=lambda model, batch, rng: jnp.square(model(batch["x"])))


def test_a_shortened_log_is_an_error(tmp_path):
    run(tmp_path, steps=3)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"metrics\.jsonl has 0 bytes"):
        run(tmp_path, steps=3)


def test_eight_devices_and_another_mesh_midway(tmp_path):
    """A (2, 2, 2) mesh, and (2, 2, 2) for 6 steps then (1, 4, 2), give the losses of one device."""
    run(tmp_path / "one", adapters=False, schedule="constant")
    result = script(str(tmp_path / "eight"), "--mesh", "2", "2", "2", "--mesh", "1", "4", "2", devices=8)
    assert result.returncode == 0, result.stderr
    shards = [f"kernel shards {{{shape}}}" for shape in ((2, WIDTH // 2, WIDTH), (2, WIDTH // 4, WIDTH))]
    assert result.stdout.splitlines() == shards
    one, eight = ([line["loss"] for line in lines(tmp_path / name)] for name in ("one", "eight"))
    error = np.abs(np.subtract(one, eight)).max()
    print(f"largest difference of losses on 1 and 8 devices: {error:.1e}")
    assert error < 1e-4
