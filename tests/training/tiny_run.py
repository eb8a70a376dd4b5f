"""A tiny model, its data and loss, for the tests of the training loop; as a script, one run of it in a process of its own."""

import argparse
import os
import signal
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from configs import base
from proxy_jax import processes, sharding
from proxy_jax.models.layers import Buffer, Compute, Dense, RMSNorm, scan_layers, stack
from proxy_jax.training import lora
from proxy_jax.training.loop import fit

WIDTH, ROWS = 8, 8
# A run of its own, without torch, which tensorboardX would import for nothing
COMMAND = [sys.executable, "-c", f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({__file__!r}, run_name='__main__')"]


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = RMSNorm(WIDTH)
        self.up = Dense(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = Dense(2 * WIDTH, WIDTH, axes=("mlp", "embed"), rngs=rngs)


class Tiny(nnx.Module):
    """Two stacked MLP blocks and an output layer; x [rows, WIDTH] -> [rows, WIDTH]."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.offset = Buffer(jnp.full(WIDTH, 0.5), axes=("scalar",))
        self.blocks = stack(Block, 2, rngs)
        self.out = Dense(WIDTH, WIDTH, axes=("embed", "vocab"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        def body(block: Block, x: jax.Array, _):
            return x + block.down(jax.nn.silu(block.up(block.norm(x)))), None

        x, _ = scan_layers(self.blocks, body, x + self.offset[...], compute=Compute())
        return self.out(x)


class Data:
    """Batches that are a function of their number, of which a process has its share; `stop`: what happens before batch stop[0] is handed out."""

    def __init__(self, stop: tuple[int, object] = (-1, None), change=lambda number, batch: batch):
        self.number, self.stop, self.change = 0, stop, change

    def __next__(self) -> dict[str, np.ndarray]:
        if self.number == self.stop[0]:
            self.stop[1]()
        rng = np.random.default_rng(self.number)
        x = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
        self.number += 1
        index, count = sharding.batch_share(sharding.current())
        own = slice(index * ROWS // count, (index + 1) * ROWS // count)
        return self.change(self.number, {"x": x[own], "y": np.tanh(x @ np.eye(WIDTH, k=1, dtype=np.float32))[own]})

    def get_state(self) -> dict:
        return {"number": self.number}

    def set_state(self, state: dict) -> None:
        self.number = state["number"]


def noisy_loss(model: Tiny, batch: dict, rng: jax.Array) -> jax.Array:
    """Squared error [rows] at inputs with noise that depends on the step and the row."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["row_index"])
    noise = jax.vmap(lambda key: jax.random.normal(key, (WIDTH,)))(keys)
    return jnp.square(model(batch["x"] + 0.1 * noise) - batch["y"]).mean(-1)


def config(**changes) -> ConfigDict:
    defaults = dict(steps=12, learning_rate=1e-2, warmup_steps=2, schedule="cosine", batch_size=ROWS, checkpoint_every=3, log_every=4)
    return base.training(**(defaults | changes))


def run(directory: Path, data: Data | None = None, *, adapters: bool = True, trainable=None, loss=noisy_loss, preview=None, **changes) -> nnx.Module:
    """Trains a fresh model, with adapters or whole."""
    model = Tiny(rngs=nnx.Rngs(0))
    if adapters:
        lora.attach(model, r"blocks\.(up|down)|out", 2, 4.0, jax.random.key(1))
    trainable = trainable or (lora.is_lora if adapters else lora.is_parameter)
    data = data or Data()
    return fit(model, loss, data, config=config(**changes), trainable=trainable, directory=directory, seed=7, preview=preview)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kill_at", type=int, default=-1, help="the number of the batch before which the process gets a signal")
    parser.add_argument("--signal", type=int, default=signal.SIGKILL)
    parser.add_argument("--processes", nargs=3, metavar=("COORDINATOR", "COUNT", "INDEX"))
    parser.add_argument("--mesh", type=int, nargs=3, action="append", help="data, fsdp, tensor; twice: the run goes on on the second")
    parser.add_argument("--checkpoint_every", type=int, default=3)
    flags = parser.parse_args()
    data = Data((flags.kill_at, lambda: os.kill(os.getpid(), flags.signal)))
    if flags.processes:
        coordinator, count, index = flags.processes
        processes.start(coordinator, int(count), int(index), 60)
    processes.watch_for_preemption(lambda: None)
    meshes = [sharding.make_mesh(*sizes) for sizes in flags.mesh] if flags.mesh else [None]
    for part, mesh in enumerate(meshes, 1):
        steps = 12 * part // len(meshes)
        with sharding.use(mesh):
            # The learning rate must not depend on the number of steps, so that a run can be split in two.
            model = run(flags.directory, data, adapters=False, steps=steps, checkpoint_every=flags.checkpoint_every, schedule="constant")
        if mesh is not None and not flags.processes:
            print("kernel shards", {shard.data.shape for shard in model.blocks.up.kernel[...].addressable_shards})


if __name__ == "__main__":
    try:
        main()
    except processes.Preempted:
        processes.leave("preempted", processes.PREEMPTED)
    except Exception:
        if processes.count() == 1:
            raise
        processes.leave(traceback.format_exc(), 1)
