"""Preflight: every family's training step compiled for TPUs at small size, what it moves between chips, and what is refused."""

import importlib.util
import json
import math
import re
from types import SimpleNamespace

import jax
import pytest

from configs import smoke
from proxy_jax import main, sharding
from proxy_jax.models.chameleon import ChameleonConfig
from proxy_jax.models.flux import FluxConfig
from proxy_jax.models.llamagen import LlamaGenConfig
from proxy_jax.models.mmdit import SD3Config
from proxy_jax.models.t5 import T5Config
from proxy_jax.models.unet import UNetConfig
from proxy_jax.stages import meshes, preflight, program_costs
from proxy_jax.stages.contract import StageError
from proxy_jax.weights import hub, published

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='libtpu is not installed: pip install -e ".[preflight]"')
STEP = "training step"
WIDTH, LAYERS, ROWS = 256, 3, 8


def config_of(families, **mesh):
    config = smoke.get_config(families)
    config.mesh.update(dict(data=1, fsdp=1, tensor=1) | mesh)
    config.compute.dtype = "bfloat16"
    for stage in (config.subject_tuning, config.proxy_tuning):
        stage.training.update(batch_size=ROWS, accumulation=1)
    return config


def lumina(**mesh):
    """Lumina-mGPT trained whole, of a width at which its weights are more than its activations."""
    config = config_of("sd3,lumina_mgpt", **mesh)
    config.proxy_tuning.mode = "full"
    config.random_weights.student.gpt.update(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS)
    return config


KERNELS = LAYERS * (4 * WIDTH**2 + 3 * 2 * WIDTH**2)  # of the blocks
HEAD = 600 * WIDTH


@pytest.fixture(scope="module")
def steps():
    """Lumina-mGPT's training step on v5e:2x2 with weights split four ways, and with heads: (program, its collectives, the length of a row)."""
    found, kept = {}, []
    by_kind = program_costs.by_kind
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_costs, "by_kind", lambda collectives: kept.append(collectives) or by_kind(collectives))
        for axis in ("fsdp", "tensor"):
            report = preflight.preflight("v5e:2x2", lumina(**{axis: 4}), ("proxy_tuning",), only=STEP)
            found[axis] = (*report.programs, kept[-1])
    return found


@needs_libtpu
def test_flops_of_a_step_are_six_for_each_weight_and_token(steps):
    step, _ = steps["fsdp"]
    length = 96 + 77 - 1  # the prompt in letters, and a picture of 8 × 8 codes without the last token
    attention = 3 * 2 * LAYERS * 2 * ROWS * length**2 * WIDTH
    head = 8 * HEAD * ROWS * 77  # of the picture alone; once more in the backward pass
    assert step.flops == pytest.approx(6 * KERNELS * ROWS * length + attention + head, rel=0.001) and step.passes == step.flops


@needs_libtpu
def test_memory_of_a_step_is_the_state_cut_in_four_and_activations(steps):
    step, _ = steps["fsdp"]
    state = 3 * 4 * (KERNELS + 2 * HEAD) / 4
    assert state < step.need < state + 200 * 2**20


@needs_libtpu
def test_fsdp_moves_the_weights_about_three_times_and_nothing_else_of_size(steps):
    _, collectives = steps["fsdp"]
    weights = 2 * (KERNELS + HEAD)  # in bfloat16
    moved = sum(line.size * line.times for line in collectives if line.kind in ("all-gather", "collective-permute", "reduce-scatter"))
    print(f"moved {moved / weights:.2f} times the weights")
    assert 2.5 < moved / weights < 3.5
    assert_no_activations(collectives)


@needs_libtpu
def test_tensor_parallelism_reduces_activations_twice_a_layer_each_way(steps):
    _, collectives = steps["tensor"]
    reduced = [line for line in collectives if line.kind == "all-reduce" and re.search(rf"\[{ROWS},172,{WIDTH}\]", line.shapes)]
    in_layers = [line for line in reduced if line.times == LAYERS]
    print([(line.times, line.shapes) for line in reduced])
    assert len(in_layers) == 4 and len(reduced) <= 4 + 2  # and of the embedding and the head
    assert_no_activations(collectives)


@needs_libtpu
def test_two_slices_exchange_each_chip_s_gradients_once():
    [step] = preflight.preflight("2xv5e:2x2", lumina(data=2, fsdp=4), ("proxy_tuning",), only=STEP).programs
    gradients = (2 * (KERNELS + HEAD) + 4 * HEAD) / 4  # in bfloat16, the embedding's in float32; cut in four
    print(f"{step.collectives[program_costs.BETWEEN_SLICES] / gradients:.2f} times the gradients")
    assert 1 <= step.collectives[program_costs.BETWEEN_SLICES] / gradients < 1.2


def assert_no_activations(collectives):
    """No all-gather makes states [rows, length, ...] or logits whole; tokens' ids are small."""
    for line in collectives:
        if line.kind == "all-gather" and not line.shapes.startswith(("s32", "pred")):
            assert not re.search(r"\b(172|76|77),|,600\]", re.sub(rf"\[{WIDTH},600\]", "", line.shapes)), line


# Of each family at the smoke run's sizes: where a kernel works, as (its name, positions of a row, FLOPs for each weight and position), the first
# that matches: forward and, behind the first adapter, backward to its input 2 each. And the sum of lengths of queries × keys × width.
VECTOR = ("modulation|time|pooled_in|guidance_in|added_in", 1, 2)
COSTS = {
    "sd3": ([VECTOR, ("patch_in", 16, 2), ("txt_in", 154, 2), ("img|patch_out", 16, 4), ("txt", 154, 4)], 3 * 170**2 * 64),
    "flux": ([VECTOR, ("img_in", 16, 2), ("txt_in", 77, 2), (r"\.img\.|^out", 16, 4), (r"\.txt\.", 77, 4), ("single", 93, 4)], 4 * 93**2 * 64),
    "sdxl": (
        [
            *(VECTOR, (r"cross_attention\.[kv]", 77, 2), (r"^conv_in|^down\.0\.blocks", 64, 2)),
            (r"^down\.0\.resample|^down\.1\.blocks|^down\.1\.transformers\.0\.proj_in", 16, 2),
            *((r"^up\.1|^up\.0\.resample|^conv_out", 64, 4), ("", 16, 4)),
        ],
        8 * (16**2 + 16 * 77) * 32,
    ),
    "sd3,llamagen": ([("caption_", 120, 2), ("head", 64, 6), ("", 183, 4)], 3 * 183**2 * 64),  # the head's logits are made twice
}


@needs_libtpu
@pytest.mark.parametrize("families", COSTS)
def test_a_step_of_adapters_costs_what_theory_says(families, monkeypatch):
    """FLOPs: for each frozen weight and position as in COSTS, for an adapter's 6, or 4 where its input has no gradient. HBM: the weights, the
    adapters' state, activations. Between chips: the adapters' gradients alone."""
    kept, record = [], preflight.Bench.record
    monkeypatch.setattr(preflight.Bench, "record", lambda self, *arguments: kept.append(arguments) or record(self, *arguments))
    stage = "proxy_tuning" if "," in families else "subject_tuning"
    [step] = preflight.preflight("v5e:2x2", config_of(families, data=4), (stage,), only=STEP).programs
    [(state, frozen, *_)] = [arguments for name, _, arguments, _ in kept if STEP in name]
    adapters, (kernels, attention) = {name.removeprefix("params"): x.size for name, x in state.params.items()}, COSTS[families]

    def work(name: str, adapter: bool) -> int:
        positions, each = next(row[1:] for row in kernels if re.search(row[0], name))
        return positions * ((4 if each == 2 and name.endswith(".a") else 6) if adapter else each)

    expected = sum(x.size * work(name, False) for name, x in frozen.items() if name.endswith("kernel"))
    expected += sum(size * work(name, True) for name, size in adapters.items()) + 3 * 2 * 2 * attention
    weights = 2 * sum(x.size for x in frozen.values())  # in bfloat16
    print(f"FLOPs {step.flops / (ROWS * expected):.4f} of theory's, {step.need / weights:.1f} times the weights, {step.collectives}")
    assert step.flops == pytest.approx(ROWS * expected, rel=0.005)
    assert weights + 3 * 4 * sum(adapters.values()) < step.need < weights + 100 * 2**20
    assert set(step.collectives) == {"all-reduce"} and 0 <= step.collectives["all-reduce"] - 2 * sum(adapters.values()) < 64


@needs_libtpu
def test_figures_are_kept_and_shown(tmp_path, monkeypatch):
    """LlamaGen's decoding, which the second call takes from the folder."""
    measured = []
    measure = preflight.Bench._measured
    monkeypatch.setattr(preflight.Bench, "_measured", lambda *arguments: measured.append(1) or measure(*arguments))
    config = config_of("sd3", data=4)
    config.evaluation.arms = ("student",)

    def report():
        return preflight.preflight("v5e:2x2", config, ("evaluation",), cache=tmp_path, only=r"LlamaGen\.")

    first, second = report(), report()
    assert len(measured) == 1 and first.json() == second.json() and first.fits
    [program] = json.loads(json.dumps(first.json()))["programs"]
    assert program["name"] == "LlamaGen.generate" and program["pictures"] == 8 and program["arithmetic_floor_seconds"] > 0
    assert "| evaluation | LlamaGen.generate | 0." in first.table() and first.table().endswith("fits |")


def test_a_missing_compiler_and_wrong_topologies_are_told(monkeypatch):
    def absent(**kwargs):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology: libtpu.so not found")

    monkeypatch.setattr(preflight.topologies, "get_topology_desc", absent)
    with pytest.raises(StageError, match=r'pip install -e "\.\[preflight\]"'):
        preflight.devices("v5e:2x2")
    for wrong in ("v9:2x2", "v5e", "v5e:", "0v5e:2x2", "2v5e:2x2"):
        with pytest.raises(StageError, match="give KIND:SHAPE"):
            preflight.devices(wrong)


@needs_libtpu  # its version is named
def test_a_program_that_jax_cannot_read_is_told(tmp_path):
    def unread():
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    memory = SimpleNamespace(argument_size_in_bytes=0, temp_size_in_bytes=0, output_size_in_bytes=0, alias_size_in_bytes=0)
    compiled = SimpleNamespace(memory_analysis=lambda: memory, as_text=unread)
    bench = preflight.Bench(config_of("sd3"), tmp_path, "v5e:2x2", quick=True, stop=False, cache=tmp_path, only="")
    with pytest.raises(StageError, match=r"may not suit each other: pip install .* \(INTERNAL: RET_CHECK"):
        bench._measured(SimpleNamespace(compile=lambda: compiled))


@needs_libtpu
def test_libtpu_knows_every_slice_that_auto_tries():
    for kind, chip in preflight.CHIPS.items():
        for shape in chip.shapes:
            assert len(preflight.devices(f"{kind}:{shape}")) == math.prod(map(int, shape.split("x"))), (kind, shape)


def report_of(topology, need):
    return preflight.Report(topology, 1, {"data": 1}, "", {}, preflight.CHIPS["v5e"], [preflight.Program("evaluation", "draw", 8, need=need)])


def test_auto_takes_the_fewest_chips_that_fit(monkeypatch, tmp_path):
    tried = []

    def on(topology, config, stages, workdir, **options):
        tried.append(topology)
        assert config.mesh.auto and options["stop"]
        if topology == "v5e:2x2":
            raise sharding.ShardingError("its batches do not suit")
        return report_of(topology, 0 if topology == "v6e:2x2" else 2 * preflight.CHIPS["v5e"].hbm)

    monkeypatch.setattr(preflight, "on", on)
    assert preflight.smallest(config_of("sd3"), ("evaluation",), tmp_path).topology == "v6e:2x2"
    assert tried == ["v5e:1x1", "v6e:1x1", "v5e:2x2", "v4:2x2x1", "v6e:2x2"]


def test_the_command_ends_with_1_where_something_does_not_fit(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(preflight, "preflight", lambda topology, *_, **options: report_of(topology, float(topology) * preflight.GIB))
    monkeypatch.setattr(main, "PREFLIGHT_JSON", SimpleNamespace(value=str(tmp_path / "figures.json")))
    for other in ("PREFLIGHT_FULL", "PREFLIGHT_ONLY", "WORKDIR"):
        monkeypatch.setattr(main, other, SimpleNamespace(value=None))
    main.report_preflight("15", config_of("sd3"), ("evaluation",))
    with pytest.raises(SystemExit, match="1"):
        main.report_preflight("16", config_of("sd3"), ("evaluation",))
    assert [line.split("|")[-2].strip() for line in capsys.readouterr().out.splitlines() if "draw" in line] == ["fits", "does not fit"]
    assert json.loads((tmp_path / "figures.json").read_text())["programs"][0]["verdict"] == "does not fit"


def test_checkpoints_of_unknown_size_are_told(tmp_path):
    config = config_of("sd3")
    with config.unlocked():
        del config.random_weights
    config.supervisor.checkpoint = "someone/else"
    with pytest.raises(StageError, match="someone/else is no local checkpoint, nor one whose sizes are known: stabilityai"):
        preflight.stand_in(config, tmp_path)


def test_a_mesh_is_chosen_for_models_and_batches(tmp_path):
    config = config_of("sd3,lumina_mgpt", auto=True)
    preflight.stand_in(config, tmp_path)
    mesh, why = meshes.make(config, ("proxy_tuning",), tmp_path, devices=range(16), room=2**30)
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 2} and "8 rows are split over 8" in why


def test_stages_that_only_draw_have_a_mesh_of_their_own(tmp_path):
    config = config_of("sd3,lumina_mgpt", fsdp=16)
    preflight.stand_in(config, tmp_path)
    config.evaluation.batch_size = config.proxy_generation.batch_size = 16
    mesh = sharding.make_mesh(1, 16, 1, devices=range(16))
    largest = 2 * max(meshes.count(learner(config, tmp_path)) for learner in meshes.LEARNERS.values())  # in bfloat16

    def sizes(stage, room):
        return tuple(meshes.of_stage(stage, config, tmp_path, mesh, room=room).shape.values())

    assert sizes("proxy_tuning", largest) == (1, 16, 1)
    assert sizes("proxy_generation", 16 * largest) == (16, 1, 1)
    assert sizes("evaluation", largest) == (8, 1, 2), "half of the memory is left free"
    named = sharding.make_mesh(8, 1, 2, devices=range(16))
    assert meshes.of_stage("evaluation", config, tmp_path, named, room=1) is named


def test_published_sizes_are_those_of_the_official_listings(shared):
    def listed(name):
        return json.loads((shared / "manifests" / f"{name}.json").read_text())["config"]

    pipelines, students = published.SUPERVISORS, published.STUDENTS
    pairs = [
        (SD3Config, pipelines["stabilityai/stable-diffusion-3-medium-diffusers"]["transformer"], listed("sd3_medium_transformer")),
        (SD3Config, pipelines["stabilityai/stable-diffusion-3.5-medium"]["transformer"], listed("sd35_medium_transformer")),
        (SD3Config, pipelines["stabilityai/stable-diffusion-3.5-large"]["transformer"], listed("sd35_large_transformer")),
        (FluxConfig, pipelines["black-forest-labs/FLUX.1-dev"]["transformer"], listed("flux1_dev_transformer")),
        (UNetConfig, pipelines["stabilityai/stable-diffusion-xl-base-1.0"]["unet"], listed("sdxl_base_unet")),
        (T5Config, published.T5_XXL, listed("sd3_text_encoder_3")),
        (T5Config, published.T5_XL, listed("flan_t5_xl_encoder")),
        (LlamaGenConfig, published.LLAMAGEN_XL["gpt"], listed("llamagen_t2i_xl")),
        (ChameleonConfig, students["Alpha-VLLM/Lumina-mGPT-7B-768"]["gpt"], listed("lumina_mgpt_7b_768")),
    ]
    for config_class, ours, official in pairs:
        assert hub.config_from(config_class, ours) == hub.config_from(config_class, official)
