"""The training loop of stages 1 and 3: any model, any loss, adapters or all weights, resumable to the bit."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from ml_collections import ConfigDict

from proxy_jax import processes, sharding, storage
from proxy_jax.models import parameters
from proxy_jax.training import optimizer
from proxy_jax.training.checkpoint import Checkpoints, ResumeError
from proxy_jax.training.progress import Progress

Arrays = dict[str, jax.Array]
Loss = Callable[[nnx.Module, Mapping[str, jax.Array], jax.Array], jax.Array]
Trainable = Callable[[str, nnx.Variable], bool]


class Batches(Protocol):
    """An endless iterator over batches {column: array [rows, ...]} whose place can be saved as JSON and set again."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> Any:
        """The place, as JSON."""

    def set_state(self, state: Any) -> None:
        """Goes on from a place that get_state gave."""


class NonFiniteError(FloatingPointError):
    """A step's loss or gradient was infinite or not a number."""


class State(NamedTuple):
    """What a step changes: float32 master arrays, the optimizer's state and the moving average ({} when off)."""

    params: Arrays
    optimizer: Any
    ema: Arrays


def fit(
    model: nnx.Module,
    loss_fn: Loss,
    batches: Batches,
    *,
    config: ConfigDict,
    trainable: Trainable,
    directory: Path,
    seed: int,
    preview: Callable[[nnx.Module, int], None] | None = None,
    overrides: Mapping[str, optimizer.Override] = MappingProxyType({}),
) -> nnx.Module:
    """Trains the variables of `model` for which trainable(name, variable) holds, and returns the trained model.

    loss_fn(model, batch, rng) -> loss [rows]. rng is one key a step, of (seed, step); the batch has a column "row_index" [rows], each
    row's place in the step's batch: noise drawn from fold_in(rng, row_index) does not depend on accumulation or mesh. A column
    "loss_weight" [rows] is taken out of the batch and weights the rows: the step's loss is mean(loss · loss_weight).
    config: the `training` fields of configs/base.py. directory: receives checkpoints/, metrics.jsonl and tensorboard/. If it
    holds a checkpoint, the run goes on from there and ends bit-identical to an uninterrupted one; a finished run returns at once.
    preview(model, step): called every `config.preview_every` steps, after step `step`, with the model as it would be returned.
    overrides: of some trained variables, by name, what the optimizer does otherwise with them.
    `model` is used up: its trained arrays are donated to the first step. Runs on the mesh in use (proxy_jax/sharding.py).
    Several processes each bring their share of the batch's rows (sharding.batch_share). A run that is told to stop saves after the step
    under way and raises processes.Preempted.
    The returned model holds the moving average where `config.ema_decay` is on. Raises NonFiniteError, naming the tensors, at
    the latest one step after a loss or gradient that is not finite; that update is not applied, nor is anything saved after it.
    """
    mesh = sharding.current()
    skeleton, params, frozen, transform, shapes, layouts, update = prepare(model, loss_fn, config=config, trainable=trainable, overrides=overrides)
    held = {"frozen weights": frozen, "trained weights": shapes.params, "optimizer": shapes.optimizer, "moving average": shapes.ema}
    logging.info("memory a device: %s", ", ".join(f"{name} {mebibytes(arrays):.2f} MiB" for name, arrays in held.items() if arrays))

    with Checkpoints(directory / storage.CHECKPOINTS, keep=config.keep_checkpoints) as checkpoints:
        start = checkpoints.latest_step() or 0
        if start:
            state, metrics_end = resume(checkpoints, start, shapes, params, batches, config=config, seed=seed)
        else:
            make = jax.jit(lambda params: init_state(params, transform, config), out_shardings=layouts, donate_argnums=0)
            state, metrics_end = make(params), 0

        unread = deque()  # (step, metrics) of steps under way: reading them at once would leave the device idle
        show = dict(start=start, steps=config.steps, log_every=config.log_every, position=metrics_end)
        with processes.finishing(), Progress(directory, **show) as progress:
            for step in range(start + 1, config.steps + 1):
                batch = sharding.put_share(next(batches), mesh)
                arguments = state, frozen, batch, np.int32(step - 1), np.uint32(seed)
                if step == start + 1:
                    update = compiled(update, arguments)
                    processes.barrier()  # some may have found it compiled
                state, metrics = update(*arguments)
                unread.append((step, metrics))

                stops = processes.preempted()
                saves = step % config.checkpoint_every == 0 or step == config.steps or stops
                previews = preview is not None and config.preview_every and step % config.preview_every == 0
                while len(unread) > (0 if saves or previews else 1):
                    finished, metrics = unread.popleft()
                    progress.record(finished, figures(finished, metrics))
                if previews:  # before saving, so that a run killed in between makes this preview when it resumes
                    preview(trained(skeleton, frozen, state), step)
                if saves:
                    position = {"seed": seed, "batches": batches.get_state(), "metrics": progress.position()}
                    storage.push()  # what the checkpoint counts on
                    checkpoints.save(step, state, position)
                if stops:
                    logging.info("told to stop: step %d is saved", step)
                    raise processes.Preempted
    return trained(skeleton, frozen, state)


class Prepared(NamedTuple):
    """What `fit` runs on: a model taken apart, the shapes and layouts of the state, and the jitted step (update_step)."""

    skeleton: nnx.Module
    params: Arrays
    frozen: Arrays
    transform: optax.GradientTransformation
    shapes: State
    layouts: State
    update: Any


def prepare(
    model: nnx.Module,
    loss_fn: Loss,
    *,
    config: ConfigDict,
    trainable: Trainable,
    overrides: Mapping[str, optimizer.Override] = MappingProxyType({}),
) -> Prepared:
    """All of `fit` that comes before the first step, on the mesh in use; arguments as there. `model` may hold shapes: then so does the result."""
    mesh = sharding.current()
    skeleton = parameters.abstract(model)
    params, frozen, axes = split(model, trainable, mesh)
    transform = optimizer.make(config, axes, overrides)
    shapes, layouts = state_layouts(params, axes, transform, config, mesh)
    update = update_step(skeleton, loss_fn, transform, config, layouts)
    return Prepared(skeleton, params, frozen, transform, shapes, layouts, update)


def update_step(skeleton: nnx.Module, loss_fn: Loss, transform: optax.GradientTransformation, config: ConfigDict, layouts: State):
    """The jitted step: update(state, frozen, batch, step, seed) -> (state, metrics); `state` is donated, `step` counts from 0.

    skeleton: the model without arrays. The metrics are replicated scalars: loss, grad_norm, learning_rate, finite, and
    squared_norms, the squared gradient norm of each tensor. If `finite` is false the returned state is the one given.
    """
    learning_rate = optimizer.schedule(config)

    def loss_of(params: Arrays, frozen: Arrays, rows: Arrays, rng: jax.Array) -> jax.Array:
        weight = rows.get("loss_weight", 1.0)
        rows = {name: column for name, column in rows.items() if name != "loss_weight"}
        loss = loss_fn(parameters.with_arrays(skeleton, {**frozen, **params}), rows, rng)
        if loss.shape != rows["row_index"].shape:
            raise ValueError(f"the loss must be one value a row, {rows['row_index'].shape}; it is {loss.shape}")
        return jnp.mean(loss.astype(jnp.float32) * weight)

    def update(state: State, frozen: Arrays, batch: Arrays, step: jax.Array, seed: jax.Array) -> tuple[State, dict]:
        rng = jax.random.fold_in(jax.random.key(seed), step)
        pieces = split_rows(batch, config.accumulation)
        loss, grads = mean_over_pieces(lambda rows: jax.value_and_grad(loss_of)(state.params, frozen, rows, rng), state.params, pieces)
        squared_norms = {name: jnp.sum(jnp.square(grad)) for name, grad in grads.items()}
        grad_norm = jnp.sqrt(sum(squared_norms.values()))
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        updates, optimizer_state = transform.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = moving_average(state.ema, params, step, config.ema_decay)
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), State(params, optimizer_state, ema), state)
        metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate(step)}
        return state, metrics | {"finite": finite, "squared_norms": squared_norms}

    mesh = sharding.current()
    return jax.jit(update, donate_argnums=0, out_shardings=(layouts, whole(mesh)))


def compiled(update, arguments: tuple):
    """The step compiled for `arguments`; logs how long that took and the memory that it needs beside them."""
    begin = time.perf_counter()
    update = update.lower(*arguments).compile()
    seconds, needs = time.perf_counter() - begin, update.memory_analysis()
    room = "" if needs is None else f"; activations and gradients {needs.temp_size_in_bytes / 2**20:.2f} MiB a device"
    logging.info("compiled the step in %.1f s%s", seconds, room)
    return update


def mebibytes(arrays: Any) -> float:
    """What a pytree of arrays (or shapes with shardings) takes on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(arrays)) / 2**20


def split_rows(batch: Mapping[str, jax.Array], pieces: int) -> Arrays:
    """The batch's columns as [pieces, rows / pieces, ...], with a column "row_index" of each row's place in the batch.

    Piece i takes rows i, i + pieces, ...: so each device keeps its rows. Raises ValueError if a piece does not fill the devices.
    """
    rows, mesh = next(iter(batch.values())).shape[0], sharding.current()
    multiple = pieces * (1 if mesh is None else sharding.batch_multiple(mesh))
    if rows % multiple:
        raise ValueError(f"a batch of {rows} rows is not a multiple of {multiple} (accumulation {pieces} on the mesh's data and fsdp axes)")

    def take(column: jax.Array) -> jax.Array:
        column = column.reshape(rows // pieces, pieces, *column.shape[1:]).swapaxes(0, 1)
        return sharding.constrain(column, None, "batch", *(None for _ in column.shape[2:]))

    return {name: take(column) for name, column in {**batch, "row_index": jnp.arange(rows, dtype=jnp.int32)}.items()}


def mean_over_pieces(compute: Callable[[Arrays], tuple[jax.Array, Arrays]], params: Arrays, pieces: Arrays) -> tuple[jax.Array, Arrays]:
    """The mean of compute(piece) = (loss, gradients of `params`) over the pieces, one after the other."""
    count = pieces["row_index"].shape[0]
    if count == 1:
        return compute({name: column[0] for name, column in pieces.items()})

    def add(total, piece):
        return jax.tree.map(jnp.add, total, compute(piece)), None

    total, _ = jax.lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)), pieces)
    return jax.tree.map(lambda x: x / count, total)


def moving_average(ema: Arrays, params: Arrays, step: jax.Array, decay: float) -> Arrays:
    """The average after step `step` (from 0): its decay rises as (1 + step) / (10 + step) up to `decay` (diffusers' EMAModel)."""
    keep = jnp.where(step == 0, 0.0, jnp.minimum(decay, (1.0 + step) / (10.0 + step)))
    return {name: average * keep + params[name] * (1.0 - keep) for name, average in ema.items()}


def split(model: nnx.Module, trainable: Trainable, mesh: Mesh | None) -> tuple[Arrays, Arrays, dict[str, tuple[str, ...]]]:
    """The trained arrays (or shapes) in float32, the frozen ones as they are, both laid out on `mesh`, and the logical axes of the trained.

    Raises ValueError if nothing is trainable.
    """
    params, frozen, axes = {}, {}, {}
    for name, variable in parameters.variables(model).items():
        array, names = parameters.value(variable), parameters.axes(variable)
        trains = trainable(name, variable)
        if trains:
            array = jax.ShapeDtypeStruct(array.shape, jnp.float32) if isinstance(array, jax.ShapeDtypeStruct) else array.astype(jnp.float32)
        layout = whole(None) if mesh is None else sharding.parameter(name, names, array.shape, array.dtype.itemsize, mesh)
        (params if trains else frozen)[name] = sharding.put(array, layout)
        if trains:
            axes[name] = names
    if not params:
        raise ValueError(f"no variable of {type(model).__name__} is trainable; are the adapters attached?")
    logging.info("training %d values in %d tensors; %d tensors are frozen", sum(x.size for x in params.values()), len(params), len(frozen))
    return params, frozen, axes


def init_state(params: Arrays, transform: optax.GradientTransformation, config: ConfigDict) -> State:
    """The state before the first step."""
    return State(params, transform.init(params), dict(params) if config.ema_decay else {})


def state_layouts(
    params: Arrays, axes: Mapping[str, tuple[str, ...]], transform: optax.GradientTransformation, config: ConfigDict, mesh: Mesh | None
) -> tuple[State, State]:
    """Shapes (with shardings) and shardings of the state for `params` (arrays or shapes).

    What belongs to a parameter (moments, averages) lies on the mesh as the parameter does.
    """

    def layout(path: tuple, leaf: jax.ShapeDtypeStruct) -> Sharding:
        name = getattr(path[-1], "key", None)
        if mesh is None or name not in axes:
            return whole(mesh)
        return sharding.parameter(name, axes[name], leaf.shape, leaf.dtype.itemsize, mesh)

    shapes = jax.eval_shape(lambda params: init_state(params, transform, config), params)
    layouts = jax.tree_util.tree_map_with_path(layout, shapes)
    return jax.tree.map(lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), shapes, layouts), layouts


def whole(mesh: Mesh | None) -> Sharding:
    """The layout of an array that every device holds."""
    return SingleDeviceSharding(jax.local_devices()[0]) if mesh is None else sharding.replicated(mesh)


def resume(
    checkpoints: Checkpoints, step: int, shapes: State, params: Arrays, batches: Batches, *, config: ConfigDict, seed: int
) -> tuple[State, int]:
    """The state saved as `step` and the length of metrics.jsonl then; sets `batches` to their place then.

    Frees `params`: the restored arrays take their memory. Raises ResumeError if the checkpoint has another seed or too many steps.
    """
    position = checkpoints.position(step)
    if step > config.steps:
        raise ResumeError(f"{checkpoints.directory} holds step {step}, beyond the {config.steps} steps of this run")
    if position["seed"] != seed:
        raise ResumeError(f"{checkpoints.directory} was written with seed {position['seed']}, not {seed}")
    for array in params.values():
        array.delete()
    batches.set_state(position["batches"])
    logging.info("resuming from step %d of %s", step, checkpoints.directory)
    return checkpoints.restore(step, shapes), position["metrics"]


def trained(skeleton: nnx.Module, frozen: Arrays, state: State) -> nnx.Module:
    """The model with the state's arrays in it: the moving average where there is one."""
    return parameters.with_arrays(skeleton, {**frozen, **(state.ema or state.params)})


def figures(step: int, metrics: dict) -> dict[str, float]:
    """The metrics of one step as numbers. Raises NonFiniteError, naming the tensors, if its loss or gradient is not finite."""
    numbers = {name: float(metrics[name]) for name in ("loss", "grad_norm", "learning_rate")}
    if not metrics["finite"]:
        bad = [name for name, norm in metrics["squared_norms"].items() if not np.isfinite(norm)]
        shown = ", ".join(bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
        raise NonFiniteError(f"step {step}: loss {numbers['loss']}, gradient not finite in {shown or 'no single tensor'}")
    return numbers
