"""The check command: what it prints, its exit codes, and LlamaGen's golden cases and manifests."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models.llamagen import LlamaGen, LlamaGenConfig
from proxy_jax.weights import check
from proxy_jax.weights import llamagen as names
from proxy_jax.weights.golden import Comparison, llamagen
from proxy_jax.weights.table import export

TINY = {"dim": 16, "n_layer": 1, "n_head": 2, "vocab_size": 12, "multiple_of": 8}


@pytest.fixture
def kinds(monkeypatch):
    """Runners of invented kinds: each gives the case's array "ours" for "expected"."""

    def run(case):
        io = case.io
        return [Comparison("values", io["ours"], io["expected"], 1e-3)]

    def second(case):
        return [Comparison("more", case.io["expected"], case.io["expected"], 0, relative=True)]

    monkeypatch.setattr(check, "runners", lambda: {"alpha": [run], "beta": [run, second]})


def write_case(folder, ours, expected):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    np.savez(folder / "io.npz", ours=ours, expected=expected)
    return folder


def golden(capsys, *paths):
    code = check.main(["golden", *map(str, paths)])
    return code, capsys.readouterr().out.splitlines()


def test_a_case_that_passes(kinds, tmp_path, capsys):
    case = write_case(tmp_path / "alpha", np.ones((2, 3)), np.ones((2, 3)) + 5e-4)
    code, lines = golden(capsys, case)
    assert code == 0
    assert lines[0].split() == "alpha values 2x3 max error 0.0005 tolerance 0.001 ok".split()
    assert lines[1:] == ["1 arrays, 0 missed, 0 cases without a runner"]


@pytest.mark.parametrize("ours", [np.full((2, 3), 1.002), np.ones((3, 2)), np.full((2, 3), np.nan)], ids=["value", "shape", "nan"])
def test_a_case_that_misses(kinds, tmp_path, capsys, ours):
    code, lines = golden(capsys, write_case(tmp_path / "alpha", ours, np.ones((2, 3))))
    assert code == 1
    assert lines[0].endswith("MISS") and lines[-1].startswith("1 arrays, 1 missed")


def test_every_runner_of_a_kind_runs(kinds, tmp_path, capsys):
    code, lines = golden(capsys, write_case(tmp_path / "beta", np.ones(2), np.ones(2)))
    assert code == 0 and [line.split()[1] for line in lines[:2]] == ["values", "more"]


def test_products_are_in_full_precision_on_accelerators_too(monkeypatch, tmp_path, capsys):
    def run(case):
        seen = float(str(jax.make_jaxpr(jnp.dot)(np.ones(2), np.ones(2))).count("HIGHEST") > 0)
        return [Comparison("precision", np.asarray(seen), np.asarray(1.0), 0)]

    monkeypatch.setattr(check, "runners", lambda: {"alpha": [run]})
    assert golden(capsys, write_case(tmp_path / "alpha", np.ones(2), np.ones(2)))[0] == 0


def test_a_folder_of_cases(kinds, tmp_path, capsys):
    write_case(tmp_path / "alpha", np.ones(2), np.ones(2))
    write_case(tmp_path / "gamma", np.ones(2), np.ones(2))
    (tmp_path / "notes").mkdir()
    code, lines = golden(capsys, tmp_path)
    assert code == 0
    assert "no runner for kind gamma" in lines and lines[-1] == "1 arrays, 0 missed, 1 cases without a runner"


def test_a_named_case_without_a_runner(kinds, tmp_path, capsys):
    code, lines = golden(capsys, write_case(tmp_path / "gamma", np.ones(2), np.ones(2)))
    assert code == 2 and lines[0] == "no runner for kind gamma"


def test_a_miss_outweighs_a_missing_runner(kinds, tmp_path, capsys):
    cases = [write_case(tmp_path / "gamma", 1, 1), write_case(tmp_path / "alpha", 0, 1)]
    assert golden(capsys, *cases)[0] == 1


def test_a_folder_without_cases(kinds, tmp_path, capsys):
    code, lines = golden(capsys, tmp_path)
    assert code == 2 and "neither a golden case" in lines[0]


def test_weights_that_do_not_fit_are_a_miss(tmp_path, capsys):
    case = write_case(tmp_path / "llamagen_gpt_t2i", 1, 1)
    (case / "config.json").write_text(json.dumps(TINY))
    code, lines = golden(capsys, case)
    assert code == 1 and "no file" in lines[0] and lines[-1].startswith("0 arrays, 1 missed")


def test_every_kind_has_a_runner_in_one_of_the_four_modules():
    found = check.runners()
    assert {"llamagen_gpt_t2i", "clip_text_l", "sd3_transformer", "llamagen_generate"} <= set(found)
    assert len(found["llamagen_gpt_c2i"]) == 2  # the model's arrays, and the decoding's


@pytest.mark.parametrize("arguments", [[], ["golden"], ["other", "x"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        check.main(arguments)
    assert error.value.code == 2


def test_help(capsys):
    with pytest.raises(SystemExit):
        check.main(["--help"])
    out = capsys.readouterr().out
    assert "golden DIR..." in out and "manifest FILE..." in out and "exit 1" in out


def manifest_of(config: LlamaGenConfig) -> dict:
    shapes = {name: list(value.shape) for name, value in export(LlamaGen(config, rngs=nnx.Rngs(0)), names.table(config)).items()}
    return {"config": TINY | {"model_type": config.model_type, "num_classes": config.num_classes, "block_size": {"256px": 256}}, "tensors": shapes}


@pytest.fixture(scope="module")
def tiny_manifest() -> dict:
    return manifest_of(LlamaGenConfig(**TINY, model_type="c2i", num_classes=4))


def run_manifest(capsys, path, content):
    path.write_text(json.dumps(content))
    code = check.main(["manifest", str(path)])
    return code, capsys.readouterr().out.splitlines()


def test_a_manifest_that_matches(tiny_manifest, tmp_path, capsys):
    code, lines = run_manifest(capsys, tmp_path / "llamagen_c2i_tiny.json", tiny_manifest)
    elements = sum(int(np.prod(shape)) for shape in tiny_manifest["tensors"].values())
    assert code == 0
    assert f"{len(tiny_manifest['tensors'])} tensors, {elements} elements; our model {elements} elements; all matched ok" in lines[0]


def test_a_manifest_that_differs_both_ways(tiny_manifest, tmp_path, capsys):
    tensors = dict(tiny_manifest["tensors"])
    del tensors["norm.weight"]
    code, lines = run_manifest(capsys, tmp_path / "llamagen_c2i_tiny.json", tiny_manifest | {"tensors": tensors | {"extra": [2]}})
    assert code == 1
    assert "llamagen_c2i_tiny: missing: norm.weight (16,)" in lines and "llamagen_c2i_tiny: unused: extra (2,)" in lines
    assert "2 differences MISS" in lines[-2]


def test_a_manifest_of_an_unknown_model(tiny_manifest, tmp_path, capsys):
    code, lines = run_manifest(capsys, tmp_path / "mystery.json", tiny_manifest)
    assert code == 2 and lines[0] == "mystery: no model known for a manifest of this name"
    assert check.main(["manifest", str(tmp_path / "absent_llamagen_c2i.json")]) == 2


@pytest.mark.parametrize("kind", llamagen.KINDS)
def test_golden_cases_of_the_decoder(shared, capsys, kind):
    code, lines = golden(capsys, shared / "golden" / kind)
    assert code == 0, "\n".join(lines)
    print("\n".join(lines))


@pytest.mark.parametrize("stem", ["llamagen_t2i_xl", "llamagen_c2i_b"])
def test_manifests_of_the_decoder(shared, capsys, stem):
    assert check.main(["manifest", str(shared / "manifests" / f"{stem}.json")]) == 0


def test_the_runner_sees_a_wrong_weight(shared, tmp_path, capsys):
    """A golden case with one weight changed: the command notices."""
    from safetensors.numpy import load_file, save_file

    source, case = shared / "golden" / "llamagen_gpt_t2i", tmp_path / "llamagen_gpt_t2i"
    case.mkdir()
    for name in ("config.json", "io.npz"):
        (case / name).write_bytes((source / name).read_bytes())
    weights = load_file(source / "weights.safetensors")
    weights["norm.weight"] = weights["norm.weight"] * np.float32(1.01)
    save_file(weights, case / "weights.safetensors")
    code, lines = golden(capsys, case)
    assert code == 1
    missed = {line.split()[1] for line in lines if line.endswith("MISS")}
    assert {"logits", "logits_uncond"} <= missed and "cond_embeddings" not in missed


def test_the_decoders_losses_and_masks_without_golden_files():
    """The runner's cross entropy against the definition."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 5)), jnp.float32)
    tokens = np.asarray([[0, 1, 4], [2, 2, 3]])
    found = llamagen._cross_entropy(logits, tokens)
    for row in range(2):
        for i, token in enumerate(tokens[row]):
            p = np.exp(logits[row, 4 + i]) / np.exp(logits[row, 4 + i]).sum()
            assert abs(found[row, i] + np.log(p[token])) < 1e-5
