"""Adapters: where they go, what they compute, and that PEFT and diffusers read and write the same files."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from proxy_jax import sharding
from proxy_jax.models import llamagen, mmdit, parameters
from proxy_jax.models.layers import Conv, Dense, stack
from proxy_jax.training import lora
from proxy_jax.weights import llamagen as llamagen_weights
from proxy_jax.weights import mmdit as mmdit_weights
from proxy_jax.weights import table as tables
from proxy_jax.weights.table import Part

CONFIG = llamagen.LlamaGenConfig(dim=16, n_layer=2, n_head=2, vocab_size=24, caption_dim=8, cls_token_num=3, multiple_of=8)
TABLE = llamagen_weights.table(CONFIG)


def filled(model: nnx.Module) -> nnx.Module:
    """An abstract model with random arrays: quicker than to compile every initialiser."""
    rng = np.random.default_rng(0)
    return parameters.with_arrays(
        model, {name: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32) for name, x in parameters.arrays(model).items()}
    )


def abstract_decoder() -> llamagen.LlamaGen:
    return nnx.eval_shape(lambda: llamagen.LlamaGen(CONFIG, rngs=nnx.Rngs(0)))


def make_decoder() -> llamagen.LlamaGen:
    return filled(abstract_decoder())


@parameters.jit
def logits(model: llamagen.LlamaGen) -> jax.Array:
    condition = jax.random.normal(jax.random.key(9), (1, 3, 8))
    return model.logits(model.hidden_states(condition, jnp.ones((1, 3)), jnp.asarray([[3, 1, 4]]), grid=2))


class Mixed(nnx.Module):
    """A convolution, a stack of convolutions, a dense layer: every form an adapter takes."""

    def __init__(self, rngs: nnx.Rngs):
        self.entry = Conv(3, 4, 3, stride=2, padding=1, rngs=rngs)
        self.convs = stack(lambda rngs: Conv(4, 4, 3, padding=1, rngs=rngs), 2, rngs)
        self.exit = Dense(4, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        graph, state = nnx.split(self.convs)
        x = self.entry(x)
        for layer in range(2):
            x = jnp.tanh(nnx.merge(graph, jax.tree.map(lambda value, layer=layer: value[layer], state))(x))
        return self.exit(x)


def make_mixed() -> Mixed:
    return filled(nnx.eval_shape(lambda: Mixed(nnx.Rngs(0))))


MIXED_TABLE = tables.Table(
    (*tables.conv("entry", "entry"), *tables.layers(range(2), tables.conv("convs.{l}", "convs")), *tables.linear("exit", "exit"))
)


def randomise(model: nnx.Module, seed: int = 5) -> nnx.Module:
    """`model` with adapters that do something."""
    changes = {}
    for i, (name, value) in enumerate(parameters.arrays(model, lora.is_lora).items()):
        changes[name] = 0.3 * jax.random.normal(jax.random.key(seed * 1000 + i), value.shape)
    return parameters.with_arrays(model, changes)


def adapted(model: nnx.Module, pattern: str, rank: int = 2, alpha: float = 3.0) -> nnx.Module:
    lora.attach(model, pattern, rank, alpha, jax.random.key(1))
    return randomise(model)


@pytest.fixture(scope="module")
def decoder() -> llamagen.LlamaGen:
    return adapted(make_decoder(), r"blocks\.(q|v|o|gate)|head")


def test_attach_matches_whole_paths_and_follows_the_kernels():
    """Only full matches get one; shapes and axes are the kernel's with the rank in; a fresh adapter changes nothing."""
    model = make_decoder()
    before = logits(model)
    assert lora.attach(model, r"blocks\.(v|q)", 2, 4.0, jax.random.key(1)) == ["blocks.q", "blocks.v"]
    found = {name: v for name, v in parameters.variables(model).items() if lora.is_lora(name, v)}
    assert {name: parameters.value(v).shape for name, v in found.items()} == {
        f"blocks.{layer}.lora.{part}": shape for layer in "qv" for part, shape in (("a", (2, 16, 2)), ("b", (2, 2, 16)))
    }
    assert parameters.axes(found["blocks.q.lora.a"]) == ("layers", "embed", "lora_rank")
    assert parameters.axes(found["blocks.q.lora.b"]) == ("layers", "lora_rank", "heads")
    np.testing.assert_array_equal(logits(model), before)


def test_convolution_adapters():
    model = make_mixed()
    lora.attach(model, ".*", 2, 2.0, jax.random.key(0))
    found = parameters.variables(model)
    shapes = {"entry.lora.a": (3, 3, 3, 2), "entry.lora.b": (2, 4), "convs.lora.a": (2, 3, 3, 4, 2), "convs.lora.b": (2, 2, 4)}
    assert {name: parameters.value(found[name]).shape for name in shapes} == shapes
    assert parameters.axes(found["convs.lora.a"]) == ("layers", "conv_window", "conv_window", "conv_in", "lora_rank")
    assert parameters.axes(found["convs.lora.b"]) == ("layers", "lora_rank", "conv_out")


def test_initial_values_are_gaussian_and_independent_of_order():
    """a has standard deviation 1/rank, b is zero; a layer's values depend on key and path only."""
    together, apart, other = (make_decoder() for _ in range(3))
    lora.attach(together, r"blocks\.(q|o|head)|head", 8, 8.0, jax.random.key(1))
    for pattern in ("head", r"blocks\.o", r"blocks\.q"):
        lora.attach(apart, pattern, 8, 8.0, jax.random.key(1))
    lora.attach(other, "head", 8, 8.0, jax.random.key(2))
    ours, theirs = parameters.arrays(together, lora.is_lora), parameters.arrays(apart, lora.is_lora)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])
    assert not np.any(ours["head.lora.b"])
    assert not np.allclose(ours["head.lora.a"], parameters.arrays(other)["head.lora.a"])
    assert not np.allclose(ours["blocks.q.lora.a"], ours["blocks.o.lora.a"])
    assert np.std(np.concatenate([np.ravel(ours[f"blocks.{n}.lora.a"]) for n in "qo"])) == pytest.approx(1 / 8, rel=0.15)


def test_predicates_divide_the_variables(decoder):
    """Adapters, weights, buffers: each variable is one of them."""
    kinds = {name: (lora.is_lora(name, v), lora.is_parameter(name, v)) for name, v in parameters.variables(decoder).items()}
    assert kinds["blocks.q.lora.a"] == (True, False)
    assert kinds["blocks.q.kernel"] == (False, True)
    assert kinds["unconditional"] == (False, False)


def test_attach_errors():
    model = make_decoder()
    with pytest.raises(ValueError, match=r"no Dense or Conv of LlamaGen matches 'block\.q'; the nearest paths: \['blocks\.q'"):
        lora.attach(model, "block.q", 2, 2.0, jax.random.key(0))
    lora.attach(model, r"blocks\.q", 2, 2.0, jax.random.key(0))
    with pytest.raises(ValueError, match=r"blocks\.q already has an adapter"):
        lora.attach(model, r"blocks\.q", 2, 2.0, jax.random.key(0))


def test_attach_to_an_abstract_model_gives_the_same_shapes():
    """So that a step can be compiled without arrays."""
    abstract, concrete = abstract_decoder(), make_decoder()
    for model in (abstract, concrete):
        lora.attach(model, r"blocks\..*", 4, 4.0, jax.random.key(0))
    ours, theirs = parameters.variables(abstract), parameters.variables(concrete)
    assert list(ours) == list(theirs)
    for name, variable in ours.items():
        value = parameters.value(variable)
        assert isinstance(value, jax.ShapeDtypeStruct) and (value.shape, value.dtype) == (theirs[name].shape, theirs[name].dtype)


def test_attach_places_adapters_on_the_mesh():
    plain = adapted(make_decoder(), r"blocks\.q")
    with sharding.use(sharding.make_mesh()):
        placed = adapted(make_decoder(), r"blocks\.q")
        fresh = make_decoder()
        lora.attach(fresh, r"blocks\.q", 2, 3.0, jax.random.key(1))
    assert isinstance(parameters.value(fresh.blocks.q.lora.a).sharding, jax.sharding.NamedSharding)
    np.testing.assert_array_equal(placed.blocks.q.lora.a[...], plain.blocks.q.lora.a[...])


def test_merge_computes_the_same_and_leaves_the_model_alone(decoder):
    """Merged kernels give the adapters' logits; the merged model has the variables of a plain one; the original keeps its own."""
    before = logits(decoder)
    merged = lora.merge(decoder)
    assert parameters.arrays(merged).keys() == parameters.arrays(make_decoder()).keys()
    np.testing.assert_allclose(logits(merged), before, atol=1e-5)
    np.testing.assert_array_equal(logits(decoder), before)
    assert not np.allclose(logits(make_decoder()), before, atol=1e-2)


def test_merge_of_convolutions():
    model = adapted(make_mixed(), ".*")
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    np.testing.assert_allclose(lora.merge(model)(x), model(x), atol=1e-5)
    assert not np.allclose(make_mixed()(x), model(x), atol=1e-2)


def test_merge_keeps_the_kernels_dtype(decoder):
    """A bfloat16 kernel gets the float32 sum, rounded once."""
    exact = parameters.arrays(lora.merge(decoder))["blocks.q.kernel"]
    half = parameters.arrays(decoder)["blocks.q.kernel"].astype(jnp.bfloat16)
    merged = parameters.arrays(lora.merge(parameters.with_arrays(decoder, {"blocks.q.kernel": half})))["blocks.q.kernel"]
    difference = exact - parameters.arrays(decoder)["blocks.q.kernel"]
    np.testing.assert_array_equal(merged, (half.astype(jnp.float32) + difference).astype(jnp.bfloat16))


@pytest.mark.parametrize("prefix", ["transformer", lora.PEFT])
@pytest.mark.parametrize(
    ("make", "table", "pattern"),
    [
        (make_decoder, TABLE, r"blocks\.(q|v|o|gate)|head"),
        (make_decoder, TABLE, r"blocks\.(q|k|v)"),
        (make_mixed, MIXED_TABLE, ".*"),
    ],
)
def test_save_and_load_are_inverse(make, table, pattern, prefix, tmp_path):
    """Exactly: arrays, scale, paths; with fused and stacked layers."""
    model = adapted(make(), pattern)
    lora.save([Part(model, table, prefix)], tmp_path / "lora.safetensors")
    loaded = make()
    assert lora.load([Part(loaded, table, prefix)], tmp_path / "lora.safetensors") == sorted(lora.adapted(model))
    ours, theirs = parameters.arrays(model), parameters.arrays(loaded)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert {layer.lora.scale for layer in lora.adapted(loaded).values()} == {1.5}
    assert all(name.startswith(prefix) for name in load_file(tmp_path / "lora.safetensors"))


def test_the_file_has_pefts_names_and_shapes(decoder, tmp_path):
    """Per layer; q and v of the fused wqkv as two diagonal blocks, k's rows zero."""
    lora.save([Part(decoder, TABLE, "m")], tmp_path / "lora.safetensors")
    tensors = load_file(tmp_path / "lora.safetensors")
    modules = [*(f"layers.{l}.{n}" for l in range(2) for n in ("attention.wqkv", "attention.wo", "feed_forward.w1")), "output"]  # noqa: E741
    assert set(tensors) == {f"m.{module}.lora_{side}.weight" for module in modules for side in "AB"}
    a, b = (tensors[f"m.layers.1.attention.wqkv.lora_{side}.weight"] for side in "AB")
    assert a.shape == (4, 16) and b.shape == (48, 4)
    values = parameters.arrays(decoder)
    np.testing.assert_array_equal(a[2:], values["blocks.v.lora.a"][1].T)
    np.testing.assert_array_equal(b[32:, 2:], values["blocks.v.lora.b"][1].T)
    assert not b[:16, 2:].any() and not b[16:32].any() and not b[32:, :2].any()
    with safe_open(tmp_path / "lora.safetensors", framework="numpy") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (config["m.r"], config["m.lora_alpha"]) == (2, 3.0)
    assert set(config["m.rank_pattern"].values()) == {4} and set(config["m.alpha_pattern"].values()) == {6.0}


@pytest.mark.filterwarnings("error:Found missing adapter keys")
def test_peft_applies_the_folder_as_we_do(decoder, tmp_path):
    """PEFT, given a torch module with LlamaGen's official names and the folder, changes every weight as our merge does."""
    torch = pytest.importorskip("torch", reason="the oracle is PEFT on torch")
    peft = pytest.importorskip("peft", reason="the oracle is PEFT")
    lora.save([Part(decoder, TABLE, lora.PEFT)], tmp_path / lora.file_name(lora.PEFT))
    before, after = tables.export(decoder, TABLE), tables.export(lora.merge(decoder), TABLE)

    root = torch.nn.Module()
    for name, value in before.items():
        *parents, leaf, _ = name.split(".") if name.endswith(".weight") else (name, "")
        module = root
        for part in parents:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        if value.ndim == 2 and name.endswith(".weight"):
            module.add_module(leaf, torch.nn.Linear(value.shape[1], value.shape[0], bias=False))
            getattr(module, leaf).weight.data = torch.from_numpy(value.copy())
    peft.PeftModel.from_pretrained(root, tmp_path)
    errors = []
    for name, module in root.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            change = module.get_delta_weight("default").detach().numpy()
            errors.append(np.abs(change - (after[f"{name}.weight"] - before[f"{name}.weight"])).max())
            assert np.abs(change).max() > 0.01, name
    print(f"weight change against PEFT: {max(errors):.1e}")
    assert len(errors) == 7 and max(errors) < 1e-6


def test_load_of_a_fused_adapter_from_elsewhere(tmp_path):
    """A LoRA of the whole wqkv without our note on blocks: each of q, k, v takes all of A; without metadata alpha is the rank."""
    rng = np.random.default_rng(0)
    sides = {"A": (4, 16), "B": (48, 4)}
    tensors = {f"layers.{i}.attention.wqkv.lora_{side}.weight": rng.standard_normal(sides[side], np.float32) for i in range(2) for side in "AB"}
    save_file(tensors, tmp_path / "other.safetensors")
    model = make_decoder()
    assert lora.load([Part(model, TABLE, "")], tmp_path / "other.safetensors") == ["blocks.k", "blocks.q", "blocks.v"]
    before, after = tables.export(make_decoder(), TABLE), tables.export(lora.merge(model), TABLE)
    for i in range(2):
        a, b = (tensors[f"layers.{i}.attention.wqkv.lora_{side}.weight"] for side in "AB")
        name = f"layers.{i}.attention.wqkv.weight"
        np.testing.assert_allclose(after[name] - before[name], b @ a, atol=1e-5)


def test_load_errors_name_what_does_not_fit(decoder, tmp_path):
    path = tmp_path / "lora.safetensors"
    lora.save([Part(decoder, TABLE, "")], path)
    good = load_file(path)

    def refused(tensors: dict, message: str, error=tables.WeightsError) -> None:
        save_file(tensors, path)
        model = make_decoder()
        with pytest.raises(error, match=message):
            lora.load([Part(model, TABLE, "")], path)
        assert not lora.adapted(model)

    extra = {f"layers.7.attention.wo.lora_{side}.weight": good[f"layers.0.attention.wo.lora_{side}.weight"] for side in "AB"}
    refused(good | extra, r"does not have: \['layers\.7\.attention\.wo'\]")
    refused({name: v for name, v in good.items() if "layers.1.attention.wo" not in name}, r"leaves out .*\['layers\.1\.attention\.wo'\]")
    refused({name: v for name, v in good.items() if name != "output.lora_A.weight"}, "A and B do not pair up")
    refused(good | {"output.alpha": np.float32([1])}, re.escape("['output.alpha']"))
    refused(good | {"output.lora_A.weight": good["output.lora_A.weight"][:, :-1].copy()}, r"adapter of head has shapes \(15, 2\)")
    three = {name: np.concatenate([v, v[:1]]) for name, v in good.items() if name == "layers.0.attention.wo.lora_A.weight"}
    three |= {name: np.concatenate([v, v[:, :1]], 1) for name, v in good.items() if name == "layers.0.attention.wo.lora_B.weight"}
    refused(good | three, r"layers of blocks\.o have different ranks")
    save_file(good, path)
    with pytest.raises(tables.WeightsError, match="under 'unet'"):
        lora.load([Part(make_decoder(), TABLE, "unet")], path)
    with pytest.raises(ValueError, match="already has an adapter"):
        lora.load([Part(decoder, TABLE, "")], path)


def test_save_errors(tmp_path):
    with pytest.raises(ValueError, match="has no adapter"):
        lora.save([Part(make_decoder(), TABLE, "")], tmp_path / "x.safetensors")
    model = make_decoder()
    lora.attach(model, r"blocks\.q", 2, 2.0, jax.random.key(0))
    lora.attach(model, r"blocks\.k", 2, 8.0, jax.random.key(0))
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.wqkv have the scales (1\.0 and 4\.0|4\.0 and 1\.0)"):
        lora.save([Part(model, TABLE, "")], tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


SD3 = dict(
    sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12,
    caption_projection_dim=16, pooled_projection_dim=10, out_channels=4, pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
)  # fmt: skip
PATTERN = r"(blocks|dual_blocks|last_block)\.attention\.(img|txt)_(q|k|v|o)|patch_in|last_block\.img_mlp\.fc1"


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    """A small random SD3Transformer2DModel of diffusers, a function that runs it, and our model with its weights (made anew each call)."""
    torch = pytest.importorskip("torch", reason="the oracle is diffusers on torch")
    diffusers = pytest.importorskip("diffusers", reason="the oracle is diffusers")
    pytest.importorskip("peft", reason="diffusers needs PEFT to load adapters")
    torch.manual_seed(0)
    theirs = diffusers.SD3Transformer2DModel(**SD3).eval()
    rng = np.random.default_rng(0)
    latents, prompt, pooled = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 8, 8, 4), (2, 5, 12), (2, 10)))
    timesteps = np.float32([300, 700])

    def run_theirs() -> np.ndarray:
        with torch.no_grad():
            inputs = (torch.from_numpy(x) for x in (latents.transpose(0, 3, 1, 2).copy(), prompt, pooled, timesteps))
            return theirs(*inputs, return_dict=False)[0].numpy().transpose(0, 2, 3, 1)

    config = mmdit.SD3Config(**SD3)
    official = {name: value.numpy() for name, value in theirs.state_dict().items()}

    class Tensors:
        def shapes(self):
            return {name: value.shape for name, value in official.items()}

        def read(self, name, index):
            return official[name][index]

    def make_ours(dtype_of=lambda name: jnp.float32):
        return tables.load(lambda: mmdit.SD3Transformer(config, rngs=nnx.Rngs(0)), mmdit_weights.table(config), Tensors(), dtype_of=dtype_of)

    run_ours = parameters.jit(lambda model: model(latents, timesteps, prompt, pooled))
    return theirs, run_theirs, make_ours, run_ours, mmdit_weights.table(config)


@pytest.mark.parametrize("through", ["load_lora_adapter", "load_lora_weights"])
def test_diffusers_loads_our_file(sd3, tmp_path, through):
    """The denoiser (or a whole pipeline) with our file gives our output."""
    import diffusers

    theirs, run_theirs, make_ours, run_ours, table = sd3
    ours = adapted(make_ours(), PATTERN, rank=3, alpha=4.5)
    base, expected = run_theirs(), run_ours(ours)
    np.testing.assert_allclose(run_ours(make_ours()), base, atol=1e-5)
    lora.save([Part(ours, table, "transformer")], tmp_path / "pytorch_lora_weights.safetensors")
    if through == "load_lora_adapter":
        theirs.load_lora_adapter(str(tmp_path), weight_name="pytorch_lora_weights.safetensors", adapter_name="ours")
    else:
        empty = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"))
        pipeline = diffusers.StableDiffusion3Pipeline(transformer=theirs, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), **empty)
        pipeline.load_lora_weights(str(tmp_path), adapter_name="ours")
    try:
        actual = run_theirs()
    finally:
        theirs.delete_adapters("ours")
        theirs.unload_lora()
    error = np.abs(actual - np.asarray(expected)).max()
    print(f"SD3 with our adapter in diffusers ({through}): {error:.1e}")
    assert error < 2e-5 and np.abs(actual - base).max() > 1e-2


def test_we_load_the_file_of_diffusers(sd3, tmp_path):
    """A LoRA made by PEFT in diffusers, alpha not the rank, ranks by pattern, saved by diffusers."""
    import peft
    import torch

    theirs, run_theirs, make_ours, run_ours, table = sd3
    targets = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.to_add_out", "pos_embed.proj"]
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, rank_pattern={"to_v": 2}, alpha_pattern={"to_k": 1}, init_lora_weights=False)
    torch.manual_seed(1)
    theirs.add_adapter(config, adapter_name="theirs")
    try:
        theirs.save_lora_adapter(str(tmp_path), adapter_name="theirs")
        expected = run_theirs()
    finally:
        theirs.delete_adapters("theirs")
        theirs.unload_lora()
    ours = make_ours()
    base = run_ours(ours)
    paths = lora.load([Part(ours, table, "")], Path(tmp_path) / "pytorch_lora_weights.safetensors")
    assert {"blocks.attention.img_q", "dual_blocks.attention.txt_o", "last_block.attention.txt_q", "patch_in"} <= set(paths)
    error = np.abs(np.asarray(run_ours(ours)) - expected).max()
    print(f"SD3 with diffusers' adapter here: {error:.1e}")
    assert error < 2e-5 and np.abs(expected - np.asarray(base)).max() > 1e-2


def test_adapters_on_an_int8_base(sd3):
    """No weight is off by more than half a step of its output channel; the model computes what one with those weights computes."""
    _, _, make_ours, run_ours, _ = sd3
    int8 = make_ours(lambda name: jnp.int8 if name.endswith(".kernel") else jnp.float32)
    stored, rounded = parameters.arrays(int8), {}
    for name, kernel in parameters.arrays(make_ours()).items():
        if not name.endswith(".kernel"):
            np.testing.assert_array_equal(stored[name], kernel, err_msg=name)
            continue
        scale = np.asarray(stored[f"{name}_scale"])
        scale = scale.reshape(*scale.shape[:-1], *(1,) * (kernel.ndim - scale.ndim), scale.shape[-1])
        assert stored[name].dtype == jnp.int8 and np.abs(stored[name]).max() == 127, name
        rounded[name] = jnp.asarray(stored[name] * scale)
        assert (np.abs(rounded[name] - kernel) <= 0.501 * scale).all(), name
    assert {"patch_in.kernel", "blocks.attention.img_q.kernel", "last_block.img_mlp.fc2.kernel"} <= rounded.keys()
    same = parameters.with_arrays(make_ours(), rounded)
    outputs = [np.asarray(run_ours(adapted(model, PATTERN, rank=3, alpha=4.5))) for model in (int8, same, make_ours())]
    errors = [np.abs(output - outputs[0]).max() / np.abs(outputs[2]).max() for output in outputs]
    print(f"int8 against the same weights in float32: {errors[1]:.1e}, against the unrounded ones: {errors[2]:.1e}")
    assert errors[1] < 1e-5 and 1e-4 < errors[2] < 2e-2
    with pytest.raises(ValueError, match="held in int8: load the model in a floating-point dtype"):
        lora.merge(int8)
