"""How the processes of a run find out who is missing, and what their part of a batch is. tests/training/test_processes.py runs several."""

import concurrent.futures
import os
import socket
import subprocess
import sys
import types

import numpy as np
import pytest

from proxy_jax import processes, sharding


def roll_call(present: list[int], count: int) -> list[str]:
    """What each of the present processes is told."""
    with socket.create_server(("", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"

    def come(index: int) -> str:
        try:
            processes._roll_call(address, count, index, 1)
        except processes.ProcessesError as error:
            return str(error).replace(address, "ADDRESS")
        return "all are here"

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(come, present))


def test_who_is_missing_is_named():
    assert roll_call([2, 0, 1], 3) == ["all are here"] * 3
    told = "of 4 processes 1, 3 did not come to ADDRESS within 1 s"
    assert roll_call([0, 2], 4) == [f"process 0: {told}", f"process 2: {told}"]
    assert roll_call([1], 2) == ["process 1: process 0 did not answer at ADDRESS within 1 s"]


@pytest.mark.parametrize(
    ("sizes", "process", "share"),
    [((4, 1, 1), 1, (1, 2)), ((1, 2, 2), 1, (1, 2)), ((1, 1, 4), 1, (0, 1)), ((2, 1, 2), 0, (0, 2)), (None, 0, (0, 1))],
)
def test_a_process_has_a_block_of_rows(sizes, process, share, monkeypatch):
    """Of two processes of two devices each; where they split heads only, both have all rows."""
    monkeypatch.setattr(sharding.jax, "process_index", lambda: process)
    devices = np.asarray([types.SimpleNamespace(process_index=number // 2) for number in range(4)])
    mesh = sizes and types.SimpleNamespace(devices=devices.reshape(sizes), shape=dict(zip(sharding.AXES, sizes, strict=True)))
    assert sharding.batch_share(mesh) == share


def test_rows_that_are_no_block_are_refused(monkeypatch):
    monkeypatch.setattr(sharding.jax, "process_index", lambda: 0)
    devices = np.asarray([types.SimpleNamespace(process_index=number % 2) for number in range(4)]).reshape(4, 1, 1)
    with pytest.raises(sharding.ShardingError, match=r"holds the rows \[0, 2\] of 4"):
        sharding.batch_share(types.SimpleNamespace(devices=devices, shape=dict(zip(sharding.AXES, (4, 1, 1), strict=True))))


def program(text: str, **environment: str) -> subprocess.CompletedProcess:
    """A program of its own, and what it and those that it started have printed: waits for them all."""
    head = "import os, signal, sys, time\nfrom pathlib import Path\nfrom proxy_jax import processes, storage\n"
    command = [sys.executable, "-c", head + text]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=60)


def test_a_stop_is_no_exception_that_a_library_could_make_another_of():
    """SIGTERM amid foreign code: Orbax once made an error of what was raised there, and the program ended with 1."""
    done = program("""
processes.watch_for_preemption(lambda: print("discarded", flush=True))
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except BaseException as error:
    raise RuntimeError("another") from error
""")
    assert (done.returncode, done.stdout) == (processes.PREEMPTED, "discarded\n")
    assert done.stderr.endswith(f"{processes.PREEMPTED_MESSAGE}\n")


def test_a_stop_leaves_no_process_nor_half_a_file_nor_working_copy(tmp_path):
    scratch, folder = tmp_path / "scratch", tmp_path / "cache"
    scratch.mkdir()
    done = program(
        """
import multiprocessing
processes.watch_for_preemption(storage.discard)
child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
child.start()
with storage.opened("gs://bucket/run") as copy, storage.whole(Path(os.environ["CACHED"])) as partial:
    partial.write_text("half"), (copy / "file").write_text("")
    print(len(list(copy.parents[1].rglob("file"))), len(list(partial.parent.iterdir())), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
""",
        TMPDIR=str(scratch),
        CACHED=str(folder / "whole"),
    )
    assert (done.returncode, done.stdout) == (processes.PREEMPTED, "1 1\n"), done.stderr
    assert list(scratch.iterdir()) == list(folder.iterdir()) == []


def test_a_stop_comes_at_the_end_of_what_is_finished():
    done = program("""
processes.watch_for_preemption(lambda: print("discarded", flush=True))
try:
    with processes.finishing():
        with processes.finishing():
            os.kill(os.getpid(), signal.SIGTERM)
            print("inner", processes.preempted())
        print("outer")
except processes.Preempted:
    print("stopped")
    processes.leave("preempted", processes.PREEMPTED)
""")
    assert (done.returncode, done.stdout) == (processes.PREEMPTED, "inner True\nouter\nstopped\n"), done.stderr
