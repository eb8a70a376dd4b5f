"""Chameleon's decoder against transformers' (random small models through the production loader), its cache, golden case, published names."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.attention import visible
from proxy_jax.models.chameleon import Chameleon, ChameleonConfig, positions_of
from proxy_jax.models.decoder import HeadNorm, segments_of
from proxy_jax.models.layers import Compute
from proxy_jax.weights import chameleon, hub
from proxy_jax.weights.golden import Case, lumina
from proxy_jax.weights.region import CheckpointError
from proxy_jax.weights.table import differences, load
from proxy_jax.weights.tensors import open_tensors

# heads of 16 channels; a head's norm is its own
SIZES = dict(vocab_size=70, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3)
VQ = dict(base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=8, embed_dim=8, num_embeddings=4, resolution=16)
LETTERS = {"<image>": 20, "<racm3:break>": 21, "<eoss>": 22} | {f"IMGIMG{letter}Z": 4 + i for i, letter in enumerate("ABCD")}
IDS = np.random.default_rng(0).integers(4, SIZES["vocab_size"], (2, 11))
MASK = np.arange(11) >= np.asarray([0, 4])[:, None]


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A random ChameleonForConditionalGeneration's folder, and the logits of its decoder on IDS with MASK."""
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    import transformers

    torch.manual_seed(0)
    config = transformers.ChameleonConfig(**SIZES, vq_config=VQ, vocabulary_map=LETTERS, rope_parameters=dict(rope_type="default", rope_theta=500.0))
    oracle = transformers.ChameleonForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        ids, mask = torch.tensor(IDS), torch.tensor(MASK).int()
        states = oracle.model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).last_hidden_state
        logits = oracle.lm_head(states).numpy()  # its forward hides the image tokens'
    folder = tmp_path_factory.mktemp("chameleon")
    oracle.save_pretrained(folder)
    return folder, logits


def loaded(folder: Path, **compute) -> Chameleon:
    tensors = open_tensors(folder)
    config = chameleon.read_config(hub.read_json(folder / "config.json"), tensors)
    return load(lambda: Chameleon(config, compute=Compute(**compute), rngs=nnx.Rngs(0)), chameleon.table(config), tensors)


@pytest.fixture(scope="module")
def model(official):
    return loaded(official[0])


@jax.jit
def logits_of(model, ids, mask):
    return model.logits(model.hidden_states(model.embed(ids), mask))


def test_logits_match_transformers(official, model):
    assert model.config.qk_norm_rows == 3 and model.config.rope_theta == 500.0
    ours = logits_of(model, IDS, MASK)
    np.testing.assert_allclose(np.asarray(ours)[MASK], official[1][MASK], atol=2e-5)
    other = logits_of(model, IDS, np.ones_like(MASK))
    assert np.abs(other - ours)[1, 4:].max() > 1e-2, "the mask does something"


def test_scan_equals_unrolled(official, model):
    np.testing.assert_allclose(logits_of(loaded(official[0], unroll=True, remat="none"), IDS, MASK), logits_of(model, IDS, MASK), atol=5e-6)


def test_a_shard_shares_its_norm(model):
    """Lumina-mGPT's layout: fewer rows than heads, each for a run of heads."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 4))
    rows = {"scale": jnp.arange(8.0).reshape(2, 4), "bias": jnp.arange(8.0, 16).reshape(2, 4)}
    shared = parameters.with_arrays(HeadNorm(2, 4), rows)(x)
    each = parameters.with_arrays(HeadNorm(6, 4), {name: jnp.repeat(value, 3, axis=0) for name, value in rows.items()})(x)
    np.testing.assert_array_equal(shared, each)
    head = np.asarray(x[1, 2, 4])
    np.testing.assert_allclose(shared[1, 2, 4], (head - head.mean()) / np.sqrt(head.var() + 1e-5) * rows["scale"][1] + rows["bias"][1], atol=1e-5)


def test_the_cache_gives_the_same_states(model):
    whole = model.hidden_states(model.embed(IDS), MASK[:, :6])

    @jax.jit
    def pieces(model):
        cache, states, slot = model.init_cache(2, 11), [], 0
        for count in (6, 1, 3, 1):
            hidden, cache = model.extend(model.embed(IDS[:, slot : slot + count]), cache, slot, MASK[:, :6])
            states.append(hidden)
            slot += count
        return jnp.concatenate(states, 1)

    np.testing.assert_allclose(pieces(model), whole, atol=1e-5)


def test_masks_and_positions_by_hand():
    mask = jnp.asarray([[0, 1], [1, 1]])
    np.testing.assert_array_equal(positions_of(mask, 4), [[0, 0, 1, 2], [0, 1, 2, 3]])
    segments = segments_of(mask, 4)
    padded, whole = visible((segments, segments), 0, 4, 4)[:, 0]
    np.testing.assert_array_equal(padded, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]])
    np.testing.assert_array_equal(whole, np.tril(np.ones((4, 4))))
    np.testing.assert_array_equal(visible((segments[:, 2:3], segments), jnp.asarray(2), 1, 4)[0, 0], [[0, 1, 1, 0]])


@pytest.mark.parametrize("change", [dict(swin_norm=True), dict(num_key_value_heads=1), dict(mlp_bias=True), dict(hidden_act="gelu")])
def test_other_chameleons_are_refused(change):
    with pytest.raises(ValueError, match=f"this one has {{'{next(iter(change))}'"):
        ChameleonConfig(**SIZES | change)


def test_what_is_no_chameleon_is_refused(official):
    content = hub.read_json(official[0] / "config.json")
    with pytest.raises(CheckpointError, match="scaled rotary embeddings"):
        chameleon.read_config(content | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, open_tensors(official[0]))
    with pytest.raises(CheckpointError, match=r"no Chameleon decoder: it has no model\.layers\.0\.self_attn\.q_norm\.weight but"):
        chameleon.read_config(content, Named(("a", "b")))


@dataclasses.dataclass
class Named:
    """A checkpoint of names alone."""

    names: tuple[str, ...]

    def shapes(self):
        return dict.fromkeys(self.names, (1,))


def test_bfloat16_is_near(official, model):
    half = loaded(official[0], dtype=jnp.bfloat16)
    ours, expected = logits_of(half, IDS, MASK), logits_of(model, IDS, MASK)
    assert ours.dtype == jnp.float32
    assert 0 < np.abs(ours - expected)[MASK].max() < 0.05 * np.abs(expected).max()


def test_golden(shared: Path):
    case = Case(shared / "golden" / "chameleon_lm")
    comparisons = lumina.KINDS["chameleon_lm"](case)
    inputs = {"input_ids", "input_ids_left", "attention_mask", "attention_mask_left", "labels"}
    assert {comparison.name for comparison in comparisons} == set(case.io) - inputs
    assert [f"{c.name} {c.error:.1e}" for c in comparisons if not c.passed] == []


def test_published_names_and_shapes(shared: Path):
    manifest = json.loads((shared / "manifests" / "lumina_mgpt_7b_768.json").read_text())
    make_model, table = lumina.MANIFESTS[r"lumina_mgpt_.*"](manifest["config"])
    assert differences(nnx.eval_shape(make_model), table, manifest["tensors"] | manifest["optional_vqmodel_tensors"]) == []
