"""Where a run's files lie: a folder of this machine, or an address in Google Cloud Storage, gs://BUCKET/FOLDER.

Of an address each process has a working copy, an ordinary folder, and the whole program reads and writes there: objects can be neither
appended to nor renamed nor mapped into memory. The bucket is what lasts. The first process pushes what it has written (`push`), and at the
points where others read it they pull it (`share`). Only Orbax writes straight into the bucket, each process its own shards; in the working
copy an empty folder stands for a training's checkpoints.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etils import epath

from proxy_jax import processes

SCHEME = "gs://"
CHECKPOINTS = "checkpoints"  # the name of Orbax's folders
STARTED, DONE = "STARTED.json", "DONE.json"  # the files by which a stage's others are judged (proxy_jax/stages/contract.py)
AT_ONCE = 16  # files on their way

_copy: "WorkingCopy | None" = None
_partials: set[Path] = set()  # being written


class StorageError(RuntimeError):
    """A workdir in Google Cloud Storage that cannot be used; the message says why and what to do."""


def is_address(workdir: str) -> bool:
    """Whether a workdir is no folder of this machine."""
    return "://" in workdir


def check_address(workdir: str) -> None:
    """Raises StorageError for an address that is none in Google Cloud Storage, or if what reads it is not installed. Asks nobody."""
    if not re.fullmatch(rf"{SCHEME}[^/]+(/[^/]+)+/?", workdir):
        raise StorageError(f"--workdir={workdir} is an address; give a folder of this machine, or {SCHEME}BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise StorageError(f'--workdir={workdir} takes gcsfs: pip install -e ".[gs]"')


@contextlib.contextmanager
def opened(workdir: str) -> Iterator[Path]:
    """The folder of a workdir: itself, or for an address an empty working copy that lasts as long as the block (TMPDIR says on which disk).

    `pull` fills it; at the end of the block, however it comes, what the first process has written since is pushed. `discard` is for an end
    of the process that does not come to the end of the block.
    """
    global _copy
    if not is_address(workdir):
        yield Path(workdir).expanduser().resolve()
        return
    try:
        with tempfile.TemporaryDirectory(prefix="proxy_jax-") as scratch:
            _copy = WorkingCopy(workdir.rstrip("/"), Path(scratch).resolve())
            try:
                yield _copy.folder
            finally:
                push()
    finally:
        _copy = None


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` for the block to write: moved there at its end, so that a reader sees the old file or the whole new one.

    Its folder is made. Of a block that fails nothing is left. Several runs may write one file at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    _partials.add(partial)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        _partials.remove(partial)


def pull() -> None:
    """Fills the working copy of an address, in every process. Raises StorageError, for what the user can mend, before anything is changed."""
    if _copy is not None:
        _copy.connect()
        processes.barrier()  # the first has taken away what it tried the bucket with
        _copy.pull()
        processes.barrier()


def discard() -> None:
    """Removes files half written, and the working copy with what was not pushed, which is not pushed any more."""
    global _copy
    for partial in tuple(_partials):
        partial.unlink(missing_ok=True)
    if _copy is not None:
        left, _copy = _copy, None
        shutil.rmtree(left.scratch, ignore_errors=True)


def push() -> None:
    """Brings what the first process has changed in its working copy into the bucket. Of a folder: nothing to do."""
    if _copy is not None and processes.is_first():
        _copy.push()


def share() -> None:
    """Waits until all processes are here and see what the first has written."""
    push()
    processes.barrier()
    if _copy is not None and processes.count() > 1:
        if not processes.is_first():
            _copy.pull()
        processes.barrier()  # the first changes nothing that others are still reading


def first_then_all(make: Callable[[], Any]) -> Any:
    """make(), which writes files that it finds the next time: by the first process, then by the others."""
    result = make() if processes.is_first() else None
    share()
    return result if processes.is_first() else make()


def checkpoints(folder: Path) -> Path:
    """Where Orbax keeps the checkpoints `folder` (named CHECKPOINTS): there, or in the bucket."""
    return folder.resolve() if _copy is None else _copy.checkpoints(folder)


def address(path: Path) -> str:
    """A path below the workdir as the user finds it."""
    return str(path) if _copy is None else _copy.address_of(path)


class WorkingCopy:
    """A local copy of all below an address, but for checkpoints: its files, and how far they are those of the bucket."""

    def __init__(self, address: str, scratch: Path):
        self._address, self._root = address, address.removeprefix(SCHEME)
        self.scratch = scratch
        self.folder = scratch / self._root  # so that paths in messages end as the address does
        self.folder.mkdir(parents=True)
        self._stamps: dict[str, tuple[int, int]] | None = None  # of each file here that is in the bucket, its size and time; None: not pulled yet
        self._generations: dict[str, str] = {}  # of each object that is here, its version
        self._checkpoints: set[str] = set()  # Orbax's folders in the bucket

    def connect(self) -> None:
        """Finds the bucket. Raises StorageError without credentials, without a bucket, or where this process may not write."""
        import fsspec
        import google.auth

        fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False  # other processes write too
        if "STORAGE_EMULATOR_HOST" not in os.environ:
            try:
                google.auth.default()
            except google.auth.exceptions.DefaultCredentialsError as error:
                raise StorageError(
                    f"no credentials for --workdir={self._address}: run `gcloud auth application-default login`, or name a service account's "
                    "key in GOOGLE_APPLICATION_CREDENTIALS"
                ) from error
        with self._explained():
            self._objects = fsspec.filesystem("gcs")
            if processes.is_first():
                probe = f"{self._root}/.probe"
                try:
                    self._objects.pipe_file(probe, b"")
                except FileNotFoundError as error:
                    raise StorageError(f"--workdir={self._address}: there is no bucket {self._root.split('/')[0]}") from error
                self._objects.rm_file(probe)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from aiohttp import ClientError
        from gcsfs.retry import HttpError
        from google.auth.exceptions import GoogleAuthError

        try:
            yield
        except (OSError, HttpError, ClientError, GoogleAuthError) as error:
            raise StorageError(f"--workdir={self._address} cannot be read or written: {type(error).__name__}: {error}") from error

    def pull(self) -> None:
        """Makes this copy what is in the bucket."""
        with self._explained():
            found = {}
            for path, entry in self._objects.find(self._root, detail=True).items():
                name = path.removeprefix(f"{self._root}/")
                before, inside, _ = name.partition(f"/{CHECKPOINTS}/")
                if inside:
                    self.checkpoints(self.folder / before / CHECKPOINTS)
                elif not name.endswith("/"):  # an object that stands for a folder, as the console makes
                    found[name] = entry["generation"]
            for name in self._generations.keys() - found.keys():
                (self.folder / name).unlink(missing_ok=True)
            names = [name for name in found if found[name] != self._generations.get(name)]
            if names:
                self._objects.get(self._remote(names), [str(self.folder / name) for name in names], batch_size=AT_ONCE)
        here = self._found()  # more, perhaps: what this process has compiled before it knew the bucket
        self._generations, self._stamps = found, {name: here[name] for name in found}

    def push(self) -> None:
        """Makes the bucket what this copy is; nothing if it was never pulled.

        Objects change one by one, and a run may be killed between any two. So a stage's files come after its STARTED.json and before its
        DONE.json, and go after its DONE.json and before its STARTED.json.
        """
        if self._stamps is None:
            return
        found, before = self._found(), self._stamps
        changed = [name for name in found if found[name] != before.get(name)]
        gone = [name for name in before if name not in found]
        with self._explained():
            self._put([name for name in changed if Path(name).name == STARTED])
            self._put([name for name in changed if Path(name).name not in (STARTED, DONE)])
            self._remove([name for name in gone if Path(name).name == DONE])
            self._remove([name for name in gone if Path(name).name not in (STARTED, DONE)])
            for name in [name for name in self._checkpoints if not (self.folder / name).is_dir()]:
                self._remove([name], recursive=True)
                self._checkpoints.remove(name)
            self._remove([name for name in gone if Path(name).name == STARTED])
            self._put([name for name in changed if Path(name).name == DONE])
        self._stamps = found

    def checkpoints(self, folder: Path) -> epath.Path:
        """Orbax's folder in the bucket for `folder` in this copy, where an empty one stands for it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._checkpoints.add(folder.relative_to(self.folder).as_posix())
        return epath.Path(self.address_of(folder))

    def address_of(self, path: Path) -> str:
        """The address of a path in this copy."""
        return str(path).replace(str(self.folder), self._address, 1)

    def _remote(self, names: list[str]) -> list[str]:
        return [f"{self._root}/{name}" for name in names]

    def _put(self, names: list[str]) -> None:
        if names:
            self._objects.put([str(self.folder / name) for name in names], self._remote(names), batch_size=AT_ONCE)

    def _remove(self, names: list[str], recursive: bool = False) -> None:
        if names:
            with contextlib.suppress(FileNotFoundError):  # an earlier push was interrupted
                self._objects.rm(self._remote(names), recursive=recursive)

    def _found(self) -> dict[str, tuple[int, int]]:
        """Size and time of each file in this copy, without those that are being written."""
        found = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            if path.is_file() and not any(part.endswith(".partial") for part in name.parts):
                stat = path.stat()
                found[name.as_posix()] = stat.st_size, stat.st_mtime_ns
        return found
