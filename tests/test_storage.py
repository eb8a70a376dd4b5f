"""Workdirs in Google Cloud Storage: what is pushed and pulled, in which order, and what is refused."""

import contextlib
import itertools
import sys
from pathlib import Path

import pytest

from proxy_jax import processes, storage


def write(folder: Path, **contents: str) -> None:
    """Files NAME.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(content)


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def pulled(address: str) -> dict[str, str]:
    """What a new run finds."""
    with storage.opened(address) as folder:
        storage.pull()
        return files(folder)


def test_a_folder_of_this_machine_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with storage.opened("run") as folder:
        storage.pull(), storage.push(), storage.share()
        assert folder == tmp_path / "run" and not folder.exists()
        assert storage.checkpoints(folder / "checkpoints") == folder / "checkpoints" and storage.address(folder) == str(folder)


def test_what_one_run_leaves_the_next_finds(bucket):
    """Files that grow, are renamed, deleted or half written; only what changed goes over the line."""
    bucket.files.pipe_file("bucket/next/run2/other", b"a folder whose name begins alike")
    with storage.opened("gs://bucket/next/run/") as folder:
        storage.pull()
        write(folder / "stage", log="one", old="x")
        write(folder / "stage.previous", kept="y")
        storage.push()
        before = bucket.versions("next/run")
        with (folder / "stage/log.json").open("a") as log:
            log.write(" two")
        (folder / "stage/old.json").rename(folder / "stage/new.json")
        (folder / "stage/weights.partial").write_text("half")
    after = bucket.versions("next/run")
    assert {name for name in before if before[name] == after.get(name)} == {"stage.previous/kept.json"}
    assert not folder.exists(), "the working copy is removed"
    assert pulled("gs://bucket/next/run") == {"stage/log.json": "one two", "stage/new.json": "x", "stage.previous/kept.json": "y"}
    assert bucket.versions("next/run") == after, "a run that changes nothing writes nothing"


def test_what_is_discarded_leaves_the_bucket_as_it_is(bucket):
    with storage.opened("gs://bucket/discarded/run") as folder:
        storage.pull()
        write(folder, pushed="a", changed="b")
        storage.push()
        write(folder, changed="c", new="d")
        storage.discard()
        assert not any(parent.exists() for parent in (folder, *folder.parents[:2])), "nothing is left on this machine"
    assert pulled("gs://bucket/discarded/run") == {"pushed.json": "a", "changed.json": "b"}


def test_other_processes_see_what_the_first_wrote(bucket, monkeypatch):
    """And write nothing into the bucket themselves."""
    with storage.opened("gs://bucket/shared") as folder:
        storage.pull()
        write(folder, theirs="1", changed="old", gone="")
        storage.push()
        first, other = storage._copy, storage.WorkingCopy("gs://bucket/shared", folder.parent / "other")
        other.connect(), other.pull()
        write(folder, changed="new", more="2")
        (folder / "gone.json").unlink()
        storage.push()
        monkeypatch.setattr(storage, "_copy", other)
        monkeypatch.setattr(processes, "_index", 1)
        monkeypatch.setattr(processes, "_count", 2)
        monkeypatch.setattr(processes, "barrier", lambda: None)
        before = bucket.versions("shared")
        write(other.folder, mine="")
        theirs = (other.folder / "theirs.json").stat().st_mtime_ns
        storage.share()
        assert files(other.folder) == {"theirs.json": "1", "changed.json": "new", "more.json": "2", "mine.json": ""}
        assert (other.folder / "theirs.json").stat().st_mtime_ns == theirs and bucket.versions("shared") == before
        monkeypatch.undo()
        assert storage._copy is first


class Stopped(BaseException):
    """The process is to end, or has ended."""


class Objects:
    """A bucket as WorkingCopy uses one, which after `left` changes stops whoever asks for another: for good, or once, as Ctrl-C would."""

    def __init__(self, once: bool):
        self.content, self.left, self.once = {}, 10**6, once

    def _change(self) -> None:
        if self.left == 0:
            self.left = 10**6 if self.once else 0
            raise Stopped
        self.left -= 1

    def put(self, paths, names, batch_size):
        for path, name in zip(paths, names, strict=True):
            self._change()
            self.content[name] = Path(path).read_text()

    def get(self, names, paths, batch_size):
        for path, name in zip(paths, names, strict=True):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(self.content[name])

    def rm(self, names, recursive=False):
        found = [name for name in self.content if name in names or (recursive and name.startswith(f"{names[0]}/"))]
        if not found:
            raise FileNotFoundError
        for name in found:
            self._change()
            del self.content[name]

    def find(self, root, detail):
        return {name: {"generation": content} for name, content in self.content.items()}


@pytest.mark.parametrize("once", [False, True], ids=["killed", "interrupted"])
def test_a_run_stopped_between_any_two_objects_leaves_stages_that_can_be_judged(once, monkeypatch):
    """A finished stage is put away for one of other inputs: DONE.json never vouches for files that are not there, nor STARTED.json for others."""
    for moment in itertools.count():
        objects = Objects(once)
        monkeypatch.setattr(storage.WorkingCopy, "connect", lambda copy, objects=objects: setattr(copy, "_objects", objects))
        with storage.opened("gs://b/run") as folder:
            storage.pull()
            write(folder / "stage", STARTED="a", DONE="a", output="a", other="a")
        objects.content["b/run/stage/checkpoints/8/state"] = "a"
        with contextlib.suppress(Stopped), storage.opened("gs://b/run") as folder:
            storage.pull()
            objects.left = moment
            (folder / "stage").rename(folder / "stage.previous")
            storage.push()
            write(folder / "stage", STARTED="b", output="b")
            storage.push()
        found = {name.removeprefix("b/run/"): content for name, content in objects.content.items()}
        if found.get("stage/DONE.json"):
            assert found["stage/output.json"] == found["stage/other.json"] == found["stage/STARTED.json"] == "a"
        if found.get("stage.previous/DONE.json"):
            assert all(found[f"stage.previous/{name}.json"] == "a" for name in ("STARTED", "output", "other"))
        here = {content for name, content in found.items() if name.startswith("stage/")}
        assert not here or here == {found["stage/STARTED.json"]}
        if once:  # what was interrupted is brought to its end
            assert {name.removeprefix("stage/") for name in found if name.startswith("stage/")} in (set(), {"STARTED.json", "output.json"})
            assert "stage.previous/DONE.json" in found
        if 0 < objects.left < 10**5:
            break
    assert moment > 10 and here == {"b"} and "stage.previous/DONE.json" in found


@pytest.mark.parametrize(
    ("workdir", "text"),
    [
        ("s3://bucket/run", "--workdir=s3://bucket/run is an address; give a folder of this machine, or gs://BUCKET/FOLDER"),
        ("gs://bucket", "or gs://BUCKET/FOLDER"),
        ("gs:///run", "or gs://BUCKET/FOLDER"),
        ("gs://bucket/run", 'takes gcsfs: pip install -e ".[gs]"'),
    ],
)
def test_an_address_that_cannot_be_is_refused(workdir, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(storage.StorageError) as error:
        storage.check_address(workdir)
    assert text in str(error.value)


def test_a_bucket_that_is_not_there_is_refused(bucket):
    with pytest.raises(storage.StorageError, match="--workdir=gs://absent/run: there is no bucket absent"), storage.opened("gs://absent/run"):
        storage.pull()


def test_missing_credentials_are_refused(bucket, monkeypatch, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    for name, value in {"HOME": tmp_path, "CLOUDSDK_CONFIG": tmp_path, "NO_GCE_CHECK": "true"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with (
        pytest.raises(storage.StorageError, match="no credentials for --workdir=gs://bucket/run: run `gcloud auth"),
        storage.opened("gs://bucket/run"),
    ):
        storage.pull()
