"""Checkpoints of a run: Orbax writes the arrays in the background and commits each step by one rename.

A step's folder holds `state` (a pytree of arrays), `listing` (the name, shape and dtype of each) and `position` (where the data,
the seed and the log stood). A process killed while it writes leaves a temporary folder: it is never read, and the next run removes it.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from proxy_jax import processes, storage

ITEMS = ("state", "listing", "position")


class ResumeError(ValueError):
    """A checkpoint and a run that do not match; the message lists the differences."""


def listing(state: Any) -> dict[str, str]:
    """Shape and dtype of every array of a pytree by its path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): f"{tuple(leaf.shape)} {jax.numpy.dtype(leaf.dtype).name}" for path, leaf in flat}


class Checkpoints:
    """The checkpoints in `directory`, of which the newest `keep` stay. A context manager: leaving it waits for the last write.

    That is work under processes.finishing, whose exception it may raise.
    """

    def __init__(self, directory: Path, *, keep: int):
        self.directory = storage.checkpoints(directory)
        if jax.process_index() == 0:  # Orbax would do this in a thread, which meets that of a run started right after
            for partial in self.directory.glob("*.orbax-checkpoint-tmp*"):
                epath.Path(partial).rmtree()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=ITEMS)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        with processes.finishing():
            self._manager.wait_until_finished()
            self._manager.close()

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Every complete step, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, position: dict) -> None:
        """Starts to write `state` (a pytree of arrays) and `position` (JSON values, the same on every host) as `step`.

        When this returns, the arrays may be donated: Orbax has copied them to the host or holds them by reference.
        """
        items = {"state": ocp.args.StandardSave(state), "listing": ocp.args.JsonSave(listing(state)), "position": ocp.args.JsonSave(position)}
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def position(self, step: int) -> dict:
        """The position saved with `step`."""
        return self._json(step, "position")

    def restore(self, step: int, like: Any) -> Any:
        """The state saved as `step`, laid out as the arrays of `like` are (or its jax.ShapeDtypeStructs with shardings).

        The mesh may be another one than at saving. Raises ResumeError if paths, shapes or dtypes differ.
        """
        saved, wanted = self._json(step, "listing"), listing(like)
        gaps = [f"{path}: {saved.get(path, 'absent')} in the checkpoint, {wanted.get(path, 'absent')} in the run"
                for path in sorted(saved.keys() | wanted.keys()) if saved.get(path) != wanted.get(path)]  # fmt: skip
        if gaps:
            raise ResumeError(f"step {step} in {self.directory} is of another run:\n  " + "\n  ".join(gaps[:20]))
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        return self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]

    def _json(self, step: int, item: str) -> dict:
        return self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]
