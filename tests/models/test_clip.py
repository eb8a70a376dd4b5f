"""CLIP against transformers: random small models through the production loader, export back, golden cases, published names."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from proxy_jax.models import parameters
from proxy_jax.models.clip import CLIP, CLIPConfig, CLIPText, CLIPTextConfig, CLIPVisionConfig
from proxy_jax.models.layers import Compute
from proxy_jax.weights import clip, hub
from proxy_jax.weights.golden import Case, encoders
from proxy_jax.weights.table import WeightsError, differences

NO_TORCH = "the oracle needs torch"
TOLERANCE = 2e-5
TEXT = dict(vocab_size=60, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=12)
VISION = dict(hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8)
# rows: end tokens once, repeated (the padding of SD's tokenizer), and at the very end
IDS = np.array([[58, 3, 7, 59, 0, 0, 0, 0], [58, 9, 59, 59, 59, 59, 59, 59], [58, 1, 2, 3, 4, 5, 6, 59]])
MASK = np.array([[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], [1] * 8])


def randomised(model, seed: int = 0):
    """`model` with noise on every parameter, so that biases and norms count."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def close(ours: jax.Array, theirs, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs.detach().numpy(), rtol=0, atol=tolerance)


def check_text(ours, theirs) -> None:
    close(ours.last_hidden, theirs.last_hidden_state)
    close(ours.penultimate, theirs.hidden_states[-2])


@pytest.mark.parametrize(
    ("hidden_act", "eos_token_id", "mask"), [("quick_gelu", 2, None), ("gelu", 59, MASK)], ids=["quick_gelu-legacy_eos", "gelu-eos-mask"]
)
def test_text_with_projection_matches_transformers_both_ways(tmp_path, hidden_act, eos_token_id, mask):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    import transformers

    config = transformers.CLIPTextConfig(**TEXT, projection_dim=20, hidden_act=hidden_act, eos_token_id=eos_token_id, bos_token_id=58)
    oracle = randomised(transformers.CLIPTextModelWithProjection(config))
    oracle.save_pretrained(tmp_path / "official")
    model = hub.load_pretrained(tmp_path / "official", CLIPText, CLIPTextConfig, clip.text_table, compute=Compute())
    ours = model(IDS, mask)
    with torch.no_grad():
        attention_mask = None if mask is None else torch.tensor(mask)
        theirs = oracle(torch.tensor(IDS), attention_mask=attention_mask, output_hidden_states=True)
    check_text(ours, theirs)
    close(ours.text_embeds, theirs.text_embeds)
    ends = [3, 2, 7]
    np.testing.assert_array_equal(ours.pooled, np.asarray(ours.last_hidden)[np.arange(3), ends])
    official = json.loads((tmp_path / "official" / "config.json").read_text())
    hub.save_pretrained(model, clip.text_table(model.config), tmp_path / "ours", config=official)
    back, info = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


def test_text_without_projection_reads_short_and_published_names(tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    import transformers

    oracle = randomised(transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT, eos_token_id=59, bos_token_id=58)))
    oracle.save_pretrained(tmp_path / "short")
    stored = load_file(tmp_path / "short" / "model.safetensors")
    short = {name.removeprefix("text_model."): value for name, value in stored.items()}  # as transformers 5 has it, whichever is installed
    save_file(short, tmp_path / "short" / "model.safetensors", {"format": "pt"})
    build, table = functools.partial(CLIPText, projection=False), functools.partial(clip.text_table, projection=False)
    model = hub.load_pretrained(tmp_path / "short", build, CLIPTextConfig, table, compute=Compute())
    ours = model(IDS)
    with torch.no_grad():
        theirs = oracle(torch.tensor(IDS), output_hidden_states=True)
    check_text(ours, theirs)
    close(ours.pooled, theirs.pooler_output)
    assert ours.text_embeds is None

    published = clip.text_table(model.config, projection=False)
    official = json.loads((tmp_path / "short" / "config.json").read_text())
    hub.save_pretrained(model, published, tmp_path / "published", config=official)
    stored = load_file(tmp_path / "published" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in stored)
    # an older export: the buffer of positions, and a projection that this model does without
    extra = {"text_model.embeddings.position_ids": np.arange(12)[None], "text_projection.weight": np.ones((20, 48), np.float32)}
    save_file(stored | extra, tmp_path / "published" / "model.safetensors")
    again = hub.load_pretrained(tmp_path / "published", build, CLIPTextConfig, table, compute=Compute())
    np.testing.assert_array_equal(again(IDS).last_hidden, ours.last_hidden)
    back = transformers.CLIPTextModel.from_pretrained(tmp_path / "published")
    with torch.no_grad():
        close(ours.last_hidden, back(torch.tensor(IDS)).last_hidden_state)


def test_clip_matches_transformers_both_ways(tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    import transformers

    text, vision = TEXT | dict(eos_token_id=59, bos_token_id=58, projection_dim=99), VISION | dict(hidden_act="gelu")
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    oracle = randomised(transformers.CLIPModel(config))
    oracle.save_pretrained(tmp_path / "official")
    model = hub.load_pretrained(tmp_path / "official", CLIP, CLIPConfig, clip.table, compute=Compute())
    pixels = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)
    with torch.no_grad():
        nchw = torch.tensor(pixels).permute(0, 3, 1, 2).contiguous()
        tower = oracle.vision_model(pixel_values=nchw)
        theirs = oracle(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK), pixel_values=nchw)
    vision = model.vision(pixels)
    close(vision.last_hidden, tower.last_hidden_state)
    close(vision.pooled, tower.pooler_output)
    image, text = model.image_features(pixels), model.text_features(IDS, MASK)
    close(image, oracle.visual_projection(tower.pooler_output))
    image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    close(text, theirs.text_embeds)
    close(jnp.exp(model.logit_scale[...]) * image @ text.T, theirs.logits_per_image, 1e-4)

    official = json.loads((tmp_path / "official" / "config.json").read_text())
    hub.save_pretrained(model, clip.table(model.config), tmp_path / "ours", config=official)
    back, info = transformers.CLIPModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in oracle.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


def test_scan_equals_unrolled():
    def make(compute: Compute) -> CLIPText:
        return CLIPText(CLIPTextConfig(**TEXT), compute=compute, rngs=nnx.Rngs(0))

    scanned = nnx.jit(lambda: make(Compute()))()
    unrolled = parameters.with_arrays(nnx.eval_shape(lambda: make(Compute(unroll=True, remat="none"))), parameters.arrays(scanned))
    for one, other in zip(scanned(IDS, MASK), unrolled(IDS, MASK), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6)


def test_nested_configs_may_be_dicts():
    config = CLIPConfig(TEXT | dict(projection_dim=99, model_type="clip_text_model"), VISION, projection_dim=20)
    assert config.vision_config == CLIPVisionConfig(**VISION)
    assert config.text_config == CLIPTextConfig(**TEXT, projection_dim=20)  # the joint width wins, as in CLIPModel
    assert CLIPConfig(config.text_config, config.vision_config, 20) == config


def test_too_many_tokens_and_wrong_image_size_are_refused():
    def run(tower: str, inputs: np.ndarray):
        return nnx.eval_shape(lambda: getattr(CLIP(CLIPConfig(TEXT, VISION), rngs=nnx.Rngs(0)), tower)(inputs))

    with pytest.raises(ValueError, match=r"13 tokens.*12 positions"):
        run("text", np.zeros((1, 13), int))
    with pytest.raises(ValueError, match="24 x 24"):
        run("vision", np.zeros((1, 32, 24, 3), np.float32))


def test_activations_are_in_the_compute_dtype():
    def run():
        model = CLIP(CLIPConfig(TEXT, VISION), compute=Compute(dtype=jnp.bfloat16), rngs=nnx.Rngs(0))
        return model.text(IDS), model.image_features(np.zeros((1, 24, 24, 3), np.float32))

    features = nnx.eval_shape(run)
    assert {leaf.dtype for leaf in jax.tree.leaves(features)} == {jnp.dtype(jnp.bfloat16)}


def test_a_file_without_a_projection_is_refused_where_one_is_needed(tmp_path):
    config = CLIPTextConfig(**TEXT)
    bare = nnx.jit(lambda: CLIPText(config, projection=False, rngs=nnx.Rngs(0)))()
    hub.save_pretrained(bare, clip.text_table(config, projection=False), tmp_path, config=TEXT)
    with pytest.raises(WeightsError, match=r"missing: text_projection\.weight"):
        hub.load_pretrained(tmp_path, CLIPText, CLIPTextConfig, clip.text_table, compute=Compute())


@pytest.mark.parametrize("kind", ["clip_text_l", "clip_text_g", "clip_model"])
def test_golden(shared: Path, kind: str):
    case = Case(shared / "golden" / kind)
    comparisons = encoders.KINDS[kind](case)
    inputs = {"input_ids", "attention_mask", "pixel_values"}
    assert {comparison.name for comparison in comparisons} == set(case.io) - inputs
    assert [f"{c.name} {c.error:.1e}" for c in comparisons if not c.passed] == []


MANIFESTS = {
    "sdxl_text_encoder": encoders.describe_clip_text,
    "sd3_text_encoder": encoders.describe_clip_text,
    "sdxl_text_encoder_2": encoders.describe_clip_text,
    "clip_vit_base_patch32": encoders.describe_clip,
    "clip_vit_large_patch14": encoders.describe_clip,
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_published_names_and_shapes(shared: Path, name: str):
    manifest = json.loads((shared / "manifests" / f"{name}.json").read_text())
    options = {"projection": name != "sdxl_text_encoder"} if "text" in name else {}
    make_model, table = MANIFESTS[name](manifest["config"], **options)
    assert differences(nnx.eval_shape(make_model), table, manifest["tensors"]) == []
