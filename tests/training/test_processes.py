"""The training loop in several processes: told to stop, one of them killed, and gone on with in fewer."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import tiny_run

from proxy_jax.processes import PREEMPTED
from tests import cheap_xla

ROOT = Path(__file__).resolve().parents[2]


def together(directory: Path, count: int, mesh: tuple[int, int, int], *arguments: str, last: tuple[str, ...] = ()) -> list[int]:
    """The exit statuses of a run in so many processes of one device each, and what they printed; `last`: arguments of the last process alone."""
    with socket.create_server(("", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    environment = cheap_xla.environment() | {"PYTHONPATH": str(ROOT)}
    command = [*tiny_run.COMMAND, str(directory), "--mesh", *map(str, mesh), *arguments]
    with directory.with_suffix(".log").open("a") as log:
        runs = [
            subprocess.Popen(
                [*command, "--processes", address, str(count), str(index), *(last if index == count - 1 else ())],
                env=environment,
                stdout=log,
                stderr=log,
            )
            for index in range(count)
        ]
    statuses = [run.wait(timeout=500) for run in runs]
    print(directory.with_suffix(".log").read_text())
    return statuses


def test_several_processes_stop_together_and_go_on_in_fewer(tmp_path):
    """SIGTERM to one of four, then kill -9 to one of four, then two: the losses are those of one process."""
    directory, term = tmp_path / "several", ("--kill_at=4", f"--signal={int(signal.SIGTERM)}")
    assert together(directory, 4, (2, 2, 1), last=term) == [PREEMPTED] * 4
    assert len((directory / "metrics.jsonl").read_text().splitlines()) == 8, "three steps after the one under way"
    assert sorted(int(path.name) for path in (directory / "checkpoints").iterdir())[-1] == 8

    statuses = together(directory, 4, (1, 4, 1), last=("--kill_at=9",))
    assert statuses[3] == -signal.SIGKILL and 0 not in statuses, "the others stop too"

    assert together(directory, 2, (1, 2, 1)) == [0, 0]
    tiny_run.run(tmp_path / "one", adapters=False, schedule="constant")
    several, one = (
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (directory, tmp_path / "one")
    )
    np.testing.assert_allclose(several, one, atol=1e-6)
