"""proxy_jax/stages/contract.py with two made-up stages: what is skipped, resumed and run anew, and after which accidents."""

import json
from types import SimpleNamespace

import pytest
from absl import logging
from ml_collections import ConfigDict

from configs import base
from proxy_jax import main
from proxy_jax.stages import contract, files

CONFIG = ConfigDict(dict(seed=0, first=dict(size=1, log_every=10), second=dict(size=1)))


class Pipeline:
    """`second` copies what `first` made; `ran` lists the runs, each with the files that it found in its folder."""

    def __init__(self, workdir):
        self.workdir, self.ran, self.fail, self.config = workdir, [], None, CONFIG.copy_and_resolve_references()
        self.stages = {
            "first": SimpleNamespace(NAME="first", OUTPUTS=("weights",), inputs=self.inputs_first, run=self.run_first),
            "second": SimpleNamespace(NAME="second", OUTPUTS=("copy.txt",), inputs=self.inputs_second, run=self.run_second),
        }

    def inputs_first(self, config, workdir):
        return contract.fields(config, "seed", "first")

    def inputs_second(self, config, workdir):
        return contract.fields(config, "second") | {"first": contract.upstream(workdir, "first")}

    def note(self, name):
        self.ran.append((name, sorted(path.name for path in (self.workdir / name).iterdir() if path.name in ("checkpoint", "copy.txt", "weights"))))

    def run_first(self, config, workdir):
        self.note("first")
        (workdir / "first" / "checkpoint").write_text("half way")
        if self.fail:
            raise self.fail
        (workdir / "first" / "weights").mkdir(exist_ok=True)
        (workdir / "first" / "weights" / "tensors").write_text(f"size {config.first.size}")
        return {"size": config.first.size}

    def run_second(self, config, workdir):
        self.note("second")
        (workdir / "second" / "copy.txt").write_text((workdir / "first" / "weights" / "tensors").read_text())
        return {}

    def __call__(self, *names, lenders=()):
        """Completes the stages; returns which of them ran."""
        self.ran.clear()
        for name in names or self.stages:
            contract.complete(name, self.stages[name], self.config, self.workdir, lenders)
        return [name for name, _ in self.ran]


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "WITHOUT_EFFECT", ("first.log_every",))
    return Pipeline(tmp_path)


@pytest.fixture(autouse=True)
def verbose():
    logging.set_verbosity(logging.INFO)


def test_done_stages_are_skipped(pipeline, caplog):
    assert pipeline() == ["first", "second"]
    done = json.loads((pipeline.workdir / "first" / "DONE.json").read_text())
    assert done["inputs"] == {"seed": 0, "first": {"size": 1}} and done["outputs"] == {"size": 1}
    assert done["versions"]["python"] and done["seconds"] >= 0 and done["resumed"] is False
    assert pipeline() == []
    assert caplog.text.count("done already, its inputs have not changed") == 2
    assert json.loads((pipeline.workdir / "first" / "config.json").read_text())["seed"] == 0


def test_a_field_without_effect_changes_nothing(pipeline):
    pipeline()
    pipeline.config.first.log_every = 20
    assert pipeline() == []


def test_a_changed_input_runs_the_stage_and_those_after_it_anew(pipeline, caplog):
    pipeline()
    pipeline.config.first.size = 2
    assert pipeline() == ["first", "second"]
    assert "first: run anew, because its inputs changed:\n  first.size: 1 -> 2" in caplog.text
    assert "second: run anew, because its inputs changed:\n  first: " in caplog.text
    assert pipeline.ran[0] == ("first", []), "nothing of the earlier run may be left"
    assert (pipeline.workdir / "second" / "copy.txt").read_text() == "size 2"


def test_of_many_changed_inputs_some_are_listed_and_the_others_counted(pipeline, caplog):
    for number in range(2):
        pipeline.config.first = ConfigDict({f"size_{number}{i:02d}": i for i in range(15)} | dict(size=1))
        pipeline("first")
    (listed,) = [record.message.splitlines()[1:] for record in caplog.records if "inputs changed" in record.message]
    assert len(listed) == contract.MOST_CHANGES + 1 and listed[-1] == "  and 10 more" and listed[0] == "  first.size_000: 0 -> null"


def test_a_stage_that_several_runs_can_share_is_assisted_where_another_is_at_it(pipeline, caplog):
    helped = []
    pipeline.stages["first"].assist = lambda config, workdir: helped.append(sorted(path.name for path in workdir.iterdir()))
    with files.claimed([pipeline.workdir / "first"]):
        assert pipeline("first") == [] and helped == [[".first.lock"]]
    assert "first: another run is at it" in caplog.text
    assert pipeline("first") == ["first"] and len(helped) == 1


def test_a_change_downstream_leaves_upstream_alone(pipeline):
    pipeline()
    pipeline.config.second.size = 5
    assert pipeline() == ["second"]


def test_an_interrupted_stage_is_resumed_with_what_it_left(pipeline, caplog):
    pipeline.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        pipeline("first")
    assert not (pipeline.workdir / "first" / "DONE.json").exists()
    pipeline.fail = None
    assert pipeline() == ["first", "second"] and pipeline("first") == []
    assert "first: resumed where it was interrupted" in caplog.text
    assert json.loads((pipeline.workdir / "first" / "DONE.json").read_text())["resumed"] is True


def test_an_interrupted_stage_with_other_inputs_starts_from_nothing(pipeline):
    pipeline.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        pipeline("first")
    pipeline.fail, pipeline.config.first.size = None, 3
    pipeline("first")
    assert pipeline.ran == [("first", [])]


@pytest.mark.parametrize("moment", ["rmtree", "write_json"])
def test_a_kill_while_a_stage_is_discarded_leaves_nothing_to_resume(pipeline, monkeypatch, moment):
    """Killed in the middle of the removal of an unfinished run, or after it and before STARTED.json."""
    pipeline.fail = RuntimeError("interrupted")
    with pytest.raises(RuntimeError, match="interrupted"):
        pipeline("first")
    pipeline.fail, pipeline.config.first.size = None, 2

    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(contract if moment == "write_json" else contract.shutil, moment, kill)
        with pytest.raises(KeyboardInterrupt):
            pipeline("first")
    pipeline("first")
    assert pipeline.ran == [("first", [])]
    assert sorted(path.name for path in pipeline.workdir.iterdir()) == ["first"]


def test_a_finished_run_is_kept_when_it_is_run_anew(pipeline, caplog):
    for size in (1, 2, 3):
        pipeline.config.first.size = size
        pipeline("first")
    assert (pipeline.workdir / "first.previous" / "weights" / "tensors").read_text() == "size 2"
    assert sorted(path.name for path in pipeline.workdir.iterdir()) == ["first", "first.previous"]
    assert f"kept as {pipeline.workdir / 'first.previous'}" in caplog.text


def test_only_dotted_names_are_without_effect():
    names = set(contract.WITHOUT_EFFECT)
    config = base.get_config()
    with config.unlocked():
        config.pretraining = base.pretraining()  # only in the configs that pre-train
    assert names <= set(main.field_names(config)), "a field that is not there"
    kept = contract.fields(config, "subject_tuning", "proxy_generation")
    assert "batch_size" in kept["subject_tuning"]["training"] and "batch_size" not in kept["proxy_generation"]


@pytest.mark.parametrize("damage", ["missing", "edited"])
def test_outputs_that_are_not_as_the_stage_left_them_are_made_again(pipeline, caplog, damage):
    pipeline()
    path = pipeline.workdir / "first" / "weights" / "tensors"
    path.unlink() if damage == "missing" else path.write_text("edited by hand")
    with pytest.raises(contract.StageError, match=r"in .*first weights has changed since the stage was done; run it again \(--stages=first"):
        pipeline("second")
    assert pipeline() == ["first"], "the same outputs again: second stays done"
    assert pipeline.ran == [("first", ["checkpoint"])], "made again from what was left, which a changed folder is not"
    assert "first: run again, because of its outputs: weights has changed" in caplog.text
    assert path.read_text() == "size 1" and pipeline() == []


def test_an_output_that_is_gone_as_a_whole(pipeline, caplog):
    pipeline()
    (pipeline.workdir / "second" / "copy.txt").unlink()
    assert pipeline() == ["second"]
    assert "second: run again, because of its outputs: copy.txt is missing" in caplog.text


@pytest.mark.parametrize("content", ['{"inputs": {"se', "\xff\x00", "[]", '{"version": 0}', '{"inputs": {"seed": 0, "first": {"size": 1}}}'])
def test_a_damaged_or_older_done_file_means_resuming(pipeline, caplog, content):
    pipeline()
    (pipeline.workdir / "first" / "DONE.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(contract.StageError, match="the stage first is not done"):
        pipeline("second")
    assert pipeline() == ["first"]
    assert pipeline.ran == [("first", ["checkpoint", "weights"])]
    assert "DONE.json is damaged" in caplog.text or "DONE.json is of another version" in caplog.text


@pytest.mark.parametrize("content", ['{"inputs": {"se', '{"version": 0}'])
def test_a_damaged_started_file_means_starting_from_nothing(pipeline, caplog, content):
    pipeline.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        pipeline("first")
    (pipeline.workdir / "first" / "STARTED.json").write_text(content)
    pipeline.fail = None
    pipeline("first")
    assert pipeline.ran == [("first", [])]
    assert "STARTED.json is" in caplog.text


def test_a_stage_done_elsewhere_for_the_same_inputs_is_borrowed(pipeline, tmp_path, caplog):
    pipeline.workdir = tmp_path / "lender"
    (tmp_path / "lender").mkdir()
    pipeline("first")
    (tmp_path / "lender" / "first" / "checkpoints").mkdir()
    text = (tmp_path / "lender" / "first" / "weights" / "tensors").read_text()

    def borrowed(name: str) -> list[str]:
        pipeline.workdir = tmp_path / name
        pipeline.workdir.mkdir(exist_ok=True)
        return pipeline("first", lenders=[tmp_path / "nobody", tmp_path / "lender"])

    assert borrowed("one") == [] and "taken from" in caplog.text
    assert (tmp_path / "one" / "first" / "weights" / "tensors").read_text() == text and not (tmp_path / "one" / "first" / "checkpoints").exists()
    pipeline.config.first.size = 2
    assert borrowed("two") == ["first"], "its inputs are others"
    pipeline.config.first.size = 1
    assert borrowed("two") == ["first"], "begun here: what is there is not replaced"
    (tmp_path / "lender" / "first" / "weights" / "tensors").write_text("damaged")
    assert borrowed("three") == ["first"]


def test_foreign_files_are_not_removed(pipeline):
    (pipeline.workdir / "first").mkdir()
    (pipeline.workdir / "first" / "thesis.tex").write_text("years of work")
    with pytest.raises(contract.StageError, match=r"holds files that no stage wrote \(thesis.tex\); move them away"):
        pipeline("first")
    assert (pipeline.workdir / "first" / "thesis.tex").read_text() == "years of work"


def test_a_stage_alone_before_its_inputs_exist(pipeline):
    with pytest.raises(contract.StageError, match=r"the stage first is not done in .*; run it first \(--stages=first,"):
        pipeline("second")
    assert not (pipeline.workdir / "second").exists()


@pytest.mark.parametrize(("file", "equal"), [("set.array_record-00000", True), ("weights", False)])
def test_array_records_count_by_size_and_other_outputs_by_content(tmp_path, file, equal):
    for folder, content in (("a", b"12345678"), ("b", b"87654321"), ("c", b"123456789")):
        (tmp_path / folder / "out").mkdir(parents=True)
        (tmp_path / folder / "out" / file).write_bytes(content)
    found = {name: contract.digests(tmp_path / name, ["out", "absent"]) for name in "abc"}
    assert (found["a"] == found["b"]) is equal and found["a"] != found["c"] and found["a"]["absent"] is None


def test_changes_name_every_leaf():
    before, after = {"a": {"b": 1, "c": [1]}, "d": "x" * 100}, {"a": {"b": 2, "c": [1]}, "e": None, "d": "y"}
    assert contract.changes(before, after) == ["a.b: 1 -> 2", f'd: "{"x" * 56}... -> "y"']


def test_the_log_file_holds_this_packages_lines(pipeline):
    log = pipeline.workdir / "log.txt"
    with contract.log_to(log):
        logging.info("a line of a test")  # not of this package: left out
        logging.warning("a warning of anybody")
    logging.warning("after it")
    assert "a warning of anybody" in log.read_text() and "after it" not in log.read_text() and "a line of a test" not in log.read_text()
