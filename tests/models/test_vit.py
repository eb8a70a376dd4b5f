"""ViT and DINOv2 against transformers: random small models through the production loader, export back, golden cases, published names."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from proxy_jax.models.layers import Compute
from proxy_jax.models.vit import ViT, ViTConfig, bicubic_matrix
from proxy_jax.weights import hub, vit
from proxy_jax.weights.golden import Case, encoders
from proxy_jax.weights.table import differences

NO_TORCH = "the oracle needs torch"
SIZES = dict(hidden_size=36, num_hidden_layers=3, num_attention_heads=3, image_size=32, patch_size=8)


def oracle_of(kind: str):
    """A random ViTModel or Dinov2Model with noise on every parameter."""
    import torch
    import transformers

    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**SIZES, intermediate_size=50, qkv_bias=False), add_pooling_layer=False)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, mlp_ratio=2, layerscale_value=0.5))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_matches_transformers_both_ways(tmp_path, kind):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    oracle = oracle_of(kind)
    oracle.save_pretrained(tmp_path / "official")
    model = hub.load_pretrained(tmp_path / "official", ViT, ViTConfig, vit.table, compute=Compute())
    unrolled = hub.load_pretrained(tmp_path / "official", ViT, ViTConfig, vit.table, compute=Compute(unroll=True, remat="none"))
    options = {"interpolate_pos_encoding": True} if kind == "vit" else {}  # Dinov2Model interpolates always
    for height, width in ((32, 32), (53, 16)):  # 53: five pixels short of a whole patch
        pixels = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
        with torch.no_grad():
            theirs = oracle(torch.tensor(pixels).permute(0, 3, 1, 2).contiguous(), **options).last_hidden_state.numpy()
        np.testing.assert_allclose(model(pixels), theirs, rtol=0, atol=2e-5)
    np.testing.assert_allclose(unrolled(pixels), model(pixels), rtol=0, atol=5e-6)

    config = json.loads((tmp_path / "official" / "config.json").read_text())
    hub.save_pretrained(model, vit.table(model.config), tmp_path / "ours", config=config)
    back, info = type(oracle).from_pretrained(tmp_path / "ours", output_loading_info=True, **({"add_pooling_layer": False} if kind == "vit" else {}))
    assert not any(info.values()), info
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


@pytest.mark.parametrize("interpolation", ["size", "scale"])
def test_positions_are_interpolated_as_torch_does(interpolation):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    model = nnx.jit(lambda: ViT(ViTConfig(**SIZES), interpolation=interpolation, rngs=nnx.Rngs(0)))()
    table = torch.tensor(np.array(model.position_embed[...]))
    square = table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    for size in ((6, 5), (3, 9), (2, 4), (1, 17)):
        rule = {"size": size} if interpolation == "size" else {"scale_factor": tuple((n + 0.1) / 4 for n in size)}
        resized = torch.nn.functional.interpolate(square, **rule, mode="bicubic", align_corners=False)
        assert resized.shape[2:] == size
        expected = torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
        np.testing.assert_allclose(model.positions(*size), expected.numpy(), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(model.positions(4, 4), model.position_embed[...])


def test_bicubic_matrix_by_hand():
    np.testing.assert_array_equal(bicubic_matrix(5, 5, 1.0), np.eye(5))
    # halving: samples lie midway between two; Keys' kernel with a = -0.75 gives -3/32, 19/32, 19/32, -3/32
    np.testing.assert_allclose(bicubic_matrix(8, 4, 2.0)[1], np.array([0, -3, 19, 19, -3, 0, 0, 0]) / 32, atol=1e-7)
    np.testing.assert_allclose(bicubic_matrix(8, 4, 2.0)[0], np.array([16, 19, -3, 0, 0, 0, 0, 0]) / 32, atol=1e-7)  # the border counts twice


def test_prefix_and_pooler_are_accepted(tmp_path):
    values = SIZES | dict(intermediate_size=50)
    model = nnx.jit(lambda: ViT(ViTConfig(**values), rngs=nnx.Rngs(1)))()
    hub.save_pretrained(model, vit.table(model.config), tmp_path, config=values)
    stored = {f"vit.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(stored | {"vit.pooler.dense.weight": np.zeros((36, 36), np.float32)}, tmp_path / "model.safetensors")
    again = hub.load_pretrained(tmp_path, ViT, ViTConfig, vit.table, compute=Compute())
    np.testing.assert_array_equal(again.blocks.fc1.kernel[...], model.blocks.fc1.kernel[...])


def test_unknown_rules_and_swiglu_are_refused():
    with pytest.raises(ValueError, match="'nearest'"):
        ViT(ViTConfig(**SIZES), interpolation="nearest", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="use_swiglu_ffn"):
        ViTConfig(**SIZES, use_swiglu_ffn=True)


def test_activations_are_in_the_compute_dtype():
    compute = Compute(dtype=jnp.bfloat16)
    out = nnx.eval_shape(lambda: ViT(ViTConfig(**SIZES), compute=compute, rngs=nnx.Rngs(0))(np.zeros((1, 40, 32, 3), np.float32)))
    assert (out.shape, out.dtype) == ((1, 1 + 5 * 4, 36), jnp.bfloat16)


@pytest.mark.parametrize("kind", ["dino_vit", "dinov2"])
def test_golden(shared: Path, kind: str):
    case = Case(shared / "golden" / kind)
    comparisons = encoders.KINDS[kind](case)
    assert {comparison.name for comparison in comparisons} == set(case.io) - {"pixels_native", "pixels_other"}
    assert [f"{c.name} {c.error:.1e}" for c in comparisons if not c.passed] == []


@pytest.mark.parametrize("name", ["dino_vits16", "dinov2_base"])
def test_published_names_and_shapes(shared: Path, name: str):
    manifest = json.loads((shared / "manifests" / f"{name}.json").read_text())
    make_model, table = encoders.describe_vit(manifest["config"])
    assert differences(nnx.eval_shape(make_model), table, manifest["tensors"]) == []
