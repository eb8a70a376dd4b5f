"""Chameleon's image tokenizer: the encoding half against transformers', Meta's file layout, the golden case, the published names."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from proxy_jax.models import parameters
from proxy_jax.models.vqgan import CHAMELEON, VQConfig, VQModel
from proxy_jax.weights import chameleon_vqgan
from proxy_jax.weights.golden import Case, lumina
from proxy_jax.weights.region import CheckpointError
from proxy_jax.weights.table import differences, export, load
from proxy_jax.weights.tensors import open_tensors

DDCONFIG = dict(z_channels=8, ch=32, ch_mult=[1, 1, 2], num_res_blocks=1, in_channels=3, out_ch=3, resolution=16, attn_resolutions=[8])
META = dict(embed_dim=6, n_embed=24, ddconfig=DDCONFIG)


def loaded(path: Path) -> VQModel:
    config = chameleon_vqgan.read_config(path)
    return load(lambda: VQModel(config, rngs=nnx.Rngs(0)), chameleon_vqgan.table(config), open_tensors(path), source=str(path))


def test_the_encoding_half_equals_transformers(tmp_path):
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE, ChameleonVQVAEConfig

    torch.manual_seed(0)
    sizes = dict(embed_dim=6, num_embeddings=24, latent_channels=8, resolution=16, base_channels=32, channel_multiplier=[1, 1, 2], num_res_blocks=1)
    oracle = ChameleonVQVAE(ChameleonVQVAEConfig(**sizes, attn_resolutions=[8])).eval()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (parameter.ndim == 1) * 0.2)
        pixels = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
        before = oracle.quant_conv(oracle.encode(pixels).last_hidden_state)
        # Codes near latents, so that many are used.
        oracle.quantize.embedding.weight.copy_(before.movedim(1, -1).reshape(-1, 6)[::2][:24] + 1e-3)
        outputs = oracle.encode(pixels)
        expected = np.moveaxis(before.numpy(), 1, -1)
    tensors = {f"model.vqmodel.{name}": tensor.numpy() for name, tensor in oracle.state_dict().items()}
    assert any(".down.1.attn.0." in name for name in tensors)
    others = dict.fromkeys(("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"), np.zeros((2, 2), np.float32))
    save_file(tensors | others, tmp_path / "model.safetensors")
    # transformers leaves out of config.json what is as it would be without
    (tmp_path / "config.json").write_text(json.dumps({"vq_config": sizes | {"attn_resolutions": [8]}}))
    ours = loaded(tmp_path)
    assert ours.decoder is None
    latents = jax.jit(VQModel.latents)(ours, images)
    np.testing.assert_allclose(latents, expected, atol=5e-5)
    indices = ours.quantize(latents)[0]
    np.testing.assert_array_equal(indices.ravel(), outputs.image_tokens.numpy().ravel())
    assert len(np.unique(indices)) > 10


def test_metas_file_with_its_discriminator(tmp_path):
    torch = pytest.importorskip("torch", reason="Meta's file is a pickle of torch's")
    config = chameleon_vqgan.config_of(META)
    model = parameters.random(lambda: VQModel(config, rngs=nnx.Rngs(0)), seed=0)
    tensors = export(model, chameleon_vqgan.table(config))
    assert {"decoder.up.1.attn.1.q.weight", "decoder.up.2.upsample.conv.weight", "decoder.up.1.block.0.nin_shortcut.weight"} <= set(tensors)
    assert "decoder.up.0.upsample.conv.weight" not in tensors, "0 is the full resolution"
    state = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()} | {"loss.discriminator.main.0.weight": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "vqgan.ckpt")
    (tmp_path / "vqgan.json").write_text(json.dumps(META))
    again = loaded(tmp_path / "vqgan.ckpt")
    for name, value in parameters.arrays(model).items():
        np.testing.assert_array_equal(parameters.arrays(again)[name], value)
    pixels = jax.eval_shape(VQModel.decode, again, jnp.zeros((1, 2, 3), jnp.int32))
    assert pixels.shape == (1, 8, 12, 3)


def test_sizes_are_read_or_the_published_ones(tmp_path):
    assert chameleon_vqgan.read_config(tmp_path / "vqgan.ckpt") == CHAMELEON
    published = dict(z_channels=256, ch=128, ch_mult=[1, 1, 2, 2, 4], num_res_blocks=2, in_channels=3, out_ch=3, resolution=512, attn_resolutions=[])
    assert chameleon_vqgan.config_of(dict(embed_dim=256, n_embed=8192, ddconfig=published)) == CHAMELEON
    assert chameleon_vqgan.config_of(META).attention_levels == (1,)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no vq_config"):
        chameleon_vqgan.read_config(tmp_path)


def test_levels_with_attention_may_be_counted_from_either_end():
    def names(*levels: int) -> set[str]:
        config = VQConfig(ch_mult=(1, 1, 1), ch=32, attention_levels=levels)
        return set(parameters.arrays(nnx.eval_shape(lambda: VQModel(config, rngs=nnx.Rngs(0)))))

    assert names(2) == names(-1) > names()
    assert {name.split(".")[2] for name in names(2) if "attentions" in name and name.startswith("decoder")} == {"0"}, "the lowest comes first"


def test_golden(shared: Path):
    comparisons = lumina.KINDS["chameleon_vqgan"](Case(shared / "golden" / "chameleon_vqgan"))
    assert [c.tolerance for c in comparisons if c.name == "indices"] == [0.0]
    assert [f"{c.name} {c.error:.1e}" for c in comparisons if not c.passed] == []


def test_published_names_and_shapes(shared: Path):
    manifest = json.loads((shared / "manifests" / "chameleon_vqgan.json").read_text())
    make_model, table = lumina.MANIFESTS["chameleon_vqgan"](manifest["config"])
    assert differences(nnx.eval_shape(make_model), table, manifest["tensors"]) == []
    # The encoding half inside transformers' Chameleon has the same names under a prefix.
    half = chameleon_vqgan.config_of({})
    listed = json.loads((shared / "manifests" / "lumina_mgpt_7b_768.json").read_text())
    tensors = listed["optional_vqmodel_tensors"] | listed["tensors"]
    assert differences(nnx.eval_shape(lambda: VQModel(half, rngs=nnx.Rngs(0))), chameleon_vqgan.table(half), tensors) == []
