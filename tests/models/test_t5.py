"""T5's encoder against transformers: random small models through the production loader, export back, golden case, published names."""

import functools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from proxy_jax.models.layers import Compute
from proxy_jax.models.t5 import T5Config, T5Encoder, relative_buckets
from proxy_jax.weights import hub, t5
from proxy_jax.weights.golden import Case, encoders
from proxy_jax.weights.table import differences
from proxy_jax.weights.tensors import open_tensors

NO_TORCH = "the oracle needs torch"
# heads * d_kv is not d_model
SIZES = dict(vocab_size=50, d_model=40, d_kv=12, num_heads=3, d_ff=56, num_layers=3, feed_forward_proj="gated-gelu")
IDS = np.array([[5, 9, 14, 3, 1, 0, 0, 0, 0, 0, 0, 0], [7, 2, 2, 8, 33, 21, 9, 40, 41, 6, 4, 1]])
MASK = (IDS > 0).astype(np.int32)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A random T5EncoderModel with wide-ranging biases, its folder, and its outputs on IDS with and without MASK."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    import transformers

    torch.manual_seed(0)
    # few buckets, so that a short text reaches the logarithmic ones
    config = transformers.T5Config(**SIZES, relative_attention_num_buckets=8, relative_attention_max_distance=10)
    oracle = transformers.T5EncoderModel(config).eval()
    for parameter in oracle.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    folder = tmp_path_factory.mktemp("t5")
    oracle.save_pretrained(folder)
    with torch.no_grad():
        masked = oracle(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).last_hidden_state.numpy()
        plain = oracle(torch.tensor(IDS)).last_hidden_state.numpy()
    return oracle, folder, masked, plain


@pytest.fixture(scope="module")
def model(official):
    return hub.load_pretrained(official[1], T5Encoder, T5Config, t5.table, compute=Compute())


def test_encoder_matches_transformers(official, model):
    _, _, masked, plain = official
    np.testing.assert_allclose(model(IDS, MASK), masked, rtol=0, atol=2e-5)
    np.testing.assert_allclose(model(IDS), plain, rtol=0, atol=2e-5)
    assert np.abs(masked[0] - plain[0]).max() > 1e-3  # the mask does something


def test_scan_equals_unrolled(official, model):
    unrolled = hub.load_pretrained(official[1], T5Encoder, T5Config, t5.table, compute=Compute(unroll=True, remat="none"))
    np.testing.assert_allclose(model(IDS, MASK), unrolled(IDS, MASK), rtol=0, atol=5e-6)


def test_export_loads_in_transformers(official, model, tmp_path):
    import torch
    import transformers

    oracle, folder, _, _ = official
    hub.save_pretrained(model, t5.table(model.config), tmp_path, config=json.loads((folder / "config.json").read_text()))
    back, info = transformers.T5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


def test_whole_t5_and_either_name_of_the_embedding(official, model, tmp_path):
    stored = load_file(official[1] / "model.safetensors")
    assert "shared.weight" in stored and "encoder.embed_tokens.weight" not in stored
    decoder = {"decoder.block.0.layer.0.layer_norm.weight": np.ones(40, np.float32), "lm_head.weight": np.ones((50, 40), np.float32)}
    (tmp_path / "config.json").write_text((official[1] / "config.json").read_text())
    embedding = stored.pop("shared.weight")
    for names in (("shared.weight", "encoder.embed_tokens.weight"), ("encoder.embed_tokens.weight",)):
        save_file(stored | decoder | dict.fromkeys(names, embedding), tmp_path / "model.safetensors")
        table_of = functools.partial(t5.table, names=open_tensors(tmp_path).shapes())
        again = hub.load_pretrained(tmp_path, T5Encoder, T5Config, table_of, compute=Compute())
        np.testing.assert_array_equal(again.token_embed.embedding[...], model.token_embed.embedding[...])


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (16, 20), (8, 10)])
def test_relative_buckets_match_transformers(num_buckets, max_distance):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(300)[None, :] - torch.arange(300)[:, None]
    expected = T5Attention._relative_position_bucket(distance, bidirectional=True, num_buckets=num_buckets, max_distance=max_distance)
    np.testing.assert_array_equal(relative_buckets(300, num_buckets, max_distance), expected.numpy())


def test_other_mlps_are_refused():
    with pytest.raises(ValueError, match="'relu'"):
        T5Config(**SIZES | dict(feed_forward_proj="relu"))


def test_activations_are_in_the_compute_dtype():
    compute = Compute(dtype=jnp.bfloat16)
    assert nnx.eval_shape(lambda: T5Encoder(T5Config(**SIZES), compute=compute, rngs=nnx.Rngs(0))(IDS, MASK)).dtype == jnp.bfloat16


def test_golden(shared: Path):
    case = Case(shared / "golden" / "t5_encoder")
    comparisons = encoders.KINDS["t5_encoder"](case)
    assert {comparison.name for comparison in comparisons} == set(case.io) - {"input_ids", "attention_mask"}
    assert [f"{c.name} {c.error:.1e}" for c in comparisons if not c.passed] == []


@pytest.mark.parametrize("name", ["sd3_text_encoder_3", "flan_t5_xl_encoder"])
def test_published_names_and_shapes(shared: Path, name: str):
    manifest = json.loads((shared / "manifests" / f"{name}.json").read_text())
    make_model, table = encoders.describe_t5(manifest["config"])
    assert differences(nnx.eval_shape(make_model), table, manifest["tensors"]) == []
