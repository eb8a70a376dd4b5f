"""A run in one process or in several: how several find each other, agree, and stop together before a preemption.

All of them run the same program on the same workdir, which all see (storage.py). All compute; only the first writes.
"""

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax._src.clusters import ClusterEnv
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

PREEMPTED = 75  # exit status of a run that a preemption ended: sysexits.h's EX_TEMPFAIL, try again
SILENCE_SECONDS = 100  # after which a process that went without a word counts as lost, and all others stop
PREEMPTED_MESSAGE = "preempted; the same command goes on with what is done"
PATIENCE_MS = 24 * 3600 * 1000  # with a process that is still there

_index, _count = 0, 1
_words = _checks = 0  # how often all have agreed on something, and asked whether to stop
_noticed, _finishing, _stop_at = False, 0, None
_handler: Callable[[int, object], None] | None = None


class ProcessesError(RuntimeError):
    """Processes that did not come together; the message names who is missing."""


class Preempted(BaseException):
    """This run was told to stop (SIGTERM), and has saved what it had."""


def start(coordinator: str | None, count: int | None, index: int | None, timeout: int) -> None:
    """Joins the processes of this run, or does nothing if it is alone.

    coordinator: HOST:PORT of process 0, which all can reach. Without it the surroundings tell (Slurm, TPU slices, GKE, Open MPI).
    timeout: seconds to wait for the others. To be called before jax has looked at its devices.
    Raises ProcessesError, in every process that did come, if some are missing.
    """
    global _index, _count
    if coordinator is None:
        coordinator, count, index, _ = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)
    if coordinator is None or count == 1:
        return
    _roll_call(coordinator, count, index, timeout)
    jax.distributed.initialize(
        coordinator, count, index, cluster_detection_method="deactivate", heartbeat_timeout_seconds=min(timeout, SILENCE_SECONDS)
    )
    _index, _count = index, count
    barrier()
    multihost_utils.sync_global_devices("proxy_jax")  # connections are made while all stand here: CPUs' wait only half a minute for each other


def _roll_call(coordinator: str, count: int, index: int, timeout: int) -> None:
    """Waits at process 0 until all are there; jax's own start-up ends the program without saying who is missing."""
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    if index == 0:
        missing = _missing(int(port), count, deadline)
    else:
        missing = _answer(host, int(port), index, deadline)
        if missing is None:
            raise ProcessesError(f"process {index}: process 0 did not answer at {coordinator} within {timeout} s")
    if missing:
        raise ProcessesError(f"process {index}: of {count} processes {', '.join(map(str, missing))} did not come to {coordinator} within {timeout} s")


def _missing(port: int, count: int, deadline: float) -> list[int]:
    """Process 0's part: the numbers of those who did not come, told to all who did."""
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("", port)))
        while len(present) < count - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):  # whoever else knocks at this port
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(5)
                present[int(connection.recv(16))] = connection
        missing = sorted(set(range(1, count)) - set(present))
        for connection in present.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(missing).encode() + b"\n")
    return missing


def _answer(host: str, port: int, index: int, deadline: float) -> list[int] | None:
    """Another process's part: what process 0 says of who is missing; None if it does not answer."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(str(index).encode())
                connection.settimeout(left + 10)
                return json.loads(connection.makefile().readline())
        except (OSError, ValueError):
            time.sleep(0.2)
    return None


def count() -> int:
    """Of how many processes this run is."""
    return _count


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return _index == 0


def agreed(value: Any) -> Any:
    """The first process's `value` (JSON) in every process. All call it, at the same point of the program; so none is ahead of the first."""
    global _words
    if _count == 1:
        return value
    _words += 1
    if _index == 0:
        global_state.client.key_value_set(f"proxy_jax/word/{_words}", json.dumps(value))
        return value
    return json.loads(global_state.client.blocking_key_value_get(f"proxy_jax/word/{_words}", PATIENCE_MS))


def barrier() -> None:
    """Waits until all processes are here."""
    global _words
    if _count > 1:
        _words += 1
        global_state.client.wait_at_barrier(f"proxy_jax/barrier/{_words}", PATIENCE_MS)


def leave(message: str, status: int) -> NoReturn:
    """Ends this process. Unless all of a run end here (status 0 or PREEMPTED), at once: the others, left waiting, are then told by jax.

    At once too where a run that is alone was told to stop: threads that were at work may take long to end, or end badly.
    """
    if _count == 1 and status == 1:
        sys.exit(message)  # Python prints it
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    if status and (status == PREEMPTED) == (_count == 1):
        os._exit(status)
    sys.exit(status)


def watch_for_preemption(discard: Callable[[], object]) -> None:
    """From here on SIGTERM, which machines send before they are taken away, ends the run.

    Alone, as soon as the call under way is back in Python, as kill -9 would but for the status and a word: an exception would come out of
    that call, and libraries drop it, or make another of it. Work under `finishing` is finished first. Of several processes, at the next
    `preempted` that all of them ask. discard: called before an end at once, to take away what nobody needs afterwards.
    """
    global _handler
    _handler = functools.partial(_notice, discard)
    watch_again()


def watch_again() -> None:
    """To be called when jax has its devices: a TPU's library has installed a handler of its own. Does nothing where nobody watches.

    jax's handler for several processes has to go too: Orbax and a loop would each count its sync points in their own way.
    """
    if _handler is not None:
        signal.signal(signal.SIGTERM, _handler)


def _notice(discard: Callable[[], object], signum: int, frame: object) -> None:
    global _noticed
    _noticed = True
    if _count == 1 and not _finishing:
        _end_at_once(discard)


def _end_at_once(discard: Callable[[], object]) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        for child in multiprocessing.active_children():
            child.kill()
        discard()
        os.write(2, f"{PREEMPTED_MESSAGE}\n".encode())  # print may be under way, and does not allow for another
    finally:
        os._exit(PREEMPTED)


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Inside the block a step under way is finished; ask `preempted` after each.

    A run that is alone and was told to stop in the block raises Preempted at its end, unless another exception is under way.
    """
    global _finishing
    _finishing += 1
    try:
        yield
    finally:
        _finishing -= 1
    if _count == 1 and _noticed and not _finishing and sys.exc_info()[0] is None:
        raise Preempted


def preempted() -> bool:
    """Whether to save and raise Preempted here.

    All processes ask after each step and get the same answer. Between two questions there must be a computation that all take part in, and
    its result, or that of the one before, must have been waited for: who asks for the third time from now has then waited for a step that
    all began after their question of now. So the one that has been told to stop can say three questions ahead where all will.
    """
    global _checks, _stop_at
    if _count == 1:
        return _noticed
    _checks += 1
    if _stop_at is None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # one of the others was first, or none has spoken
            if _noticed:
                global_state.client.key_value_set("proxy_jax/stop", str(_checks + 3))
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _stop_at = int(global_state.client.key_value_try_get("proxy_jax/stop"))
    return _stop_at is not None and _checks >= _stop_at
