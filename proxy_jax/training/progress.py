"""What a person sees of a run: a progress bar or log lines, metrics.jsonl, and TensorBoard event files."""

import datetime
import json
import time
from pathlib import Path

import jax
from absl import logging
from tensorboardX import SummaryWriter
from tqdm import tqdm

from proxy_jax.training.checkpoint import ResumeError


class Progress:
    """Reports a run of `steps` steps that starts after step `start`, from the first process only.

    metrics.jsonl has one line a step with deterministic figures only; it is first cut to `position` bytes (what it held when the
    checkpoint was written), so that a killed and resumed run leaves the same file as an uninterrupted one. Every `log_every`
    steps the figures also go to TensorBoard and, where standard error is not a terminal, to the log instead of the bar.
    """

    def __init__(self, directory: Path, *, start: int, steps: int, log_every: int, position: int):
        self._steps, self._log_every, self._recorded = steps, log_every, 0
        self._file = self._writer = self._bar = None
        if jax.process_index() == 0:
            self._file = _open_at(directory / "metrics.jsonl", position)
            self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1)
            self._bar = tqdm(total=steps, initial=start, disable=None, unit="step", dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
            self._writer.close()
            self._bar.close()

    def record(self, step: int, figures: dict[str, float]) -> None:
        """Reports the figures (loss, grad_norm, learning_rate) of step `step`, counted from 1."""
        if self._recorded == 0:
            self._since = time.perf_counter()  # after the first step: its compilation would drown the speed
        speed = self._recorded / max(time.perf_counter() - self._since, 1e-9)
        self._recorded += 1
        if self._file is None:
            return
        self._file.write((json.dumps({"step": step, **figures}) + "\n").encode())
        self._bar.update(1)
        self._bar.set_postfix(loss=f"{figures['loss']:.4f}", refresh=False)
        if step % self._log_every == 0 or step == self._steps:
            for name, figure in figures.items():
                self._writer.add_scalar(name, figure, step)
            self._writer.add_scalar("steps_per_second", speed, step)
            if self._bar.disable:
                left = datetime.timedelta(seconds=round((self._steps - step) / speed)) if speed else "?"
                logging.info("step %d/%d  loss %.4f  %.2f steps/s  ETA %s", step, self._steps, figures["loss"], speed, left)

    def position(self) -> int:
        """The length of metrics.jsonl in bytes, after everything recorded so far is on disk (0 in other processes than the first)."""
        if self._file is None:
            return 0
        self._file.flush()
        self._writer.flush()
        return self._file.tell()


def _open_at(path: Path, position: int):
    """`path` open for writing at `position`, with what followed cut off. Raises ResumeError if it is shorter than that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    size = path.stat().st_size
    if size < position:
        raise ResumeError(f"{path} has {size} bytes but had {position} when the checkpoint was written; restore it or start in a new folder")
    file = path.open("r+b")
    file.truncate(position)
    file.seek(position)
    return file
