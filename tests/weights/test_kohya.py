"""kohya's naming: every module against diffusers' converters of original checkpoints, and adapters there and back.

That diffusers draws the same with such a file: tests/pipeline/test_diffusers_parity.py.
"""

import numpy as np
import pytest

from configs import smoke
from proxy_jax.models.flux import FluxConfig
from proxy_jax.models.mmdit import SD3Config
from proxy_jax.models.unet import UNetConfig
from proxy_jax.weights import flux, hub, kohya, mmdit, unet
from proxy_jax.weights.table import WeightsError

SDXL = UNetConfig(
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=2048,
    attention_head_dim=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10),
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    addition_embed_type="text_time",
    use_linear_projection=True,
)
SD35 = mmdit.table(hub.config_from(SD3Config, smoke.SD35))


class Originals(dict):
    """Tensors of an original checkpoint; norms are not among them."""

    def pop(self, name):
        import torch

        assert name in self or name.endswith((".scale", "pos_embed")), name
        return super().pop(name, torch.zeros(1))


def sdxl(tensors):
    from diffusers.loaders import single_file_utils

    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    tensors.clear()
    return single_file_utils.convert_ldm_unet_checkpoint(prefixed, {"layers_per_block": 2, "addition_embed_type": "text_time"})


def sd35(tensors):
    from diffusers.loaders import single_file_utils

    return single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(tensors)


def flux_dev(tensors):
    from diffusers.loaders import single_file_utils

    return single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(tensors)


@pytest.mark.parametrize(
    ("table", "convert", "size"),
    [(unet.table(SDXL), sdxl, 2), (SD35, sd35, 2), (flux.table(FluxConfig(num_layers=2, num_single_layers=2, guidance_embeds=True)), flux_dev, 3072)],
    ids=["sdxl", "sd35", "flux"],
)
def test_every_module_is_where_diffusers_finds_it(table, convert, size):
    """size: of the pieces of an original module; of FLUX.1 diffusers' converter knows the published one only."""
    torch = pytest.importorskip("torch", reason="the oracle is diffusers on torch")
    pytest.importorskip("diffusers", reason="its converters are the oracle")
    slots, originals = kohya.slots(table), Originals()
    for slot in slots.values():
        originals[f"{slot.module}.weight"] = torch.rand(slot.count * size, 1)
        originals[f"{slot.module}.bias"] = torch.zeros(slot.count * size)
    given = dict(originals)
    found = convert(originals)
    assert not originals and len({kohya.key(module) for module in slots}) == len(slots)
    for module, slot in slots.items():
        pieces = given[f"{slot.module}.weight"].reshape(slot.count, size)
        assert torch.equal(found[f"{module}.weight"], pieces[list(slot.rows)].reshape(-1, 1)), (module, slot)


def test_adapters_there_and_back():
    """Exactly, with our note on who shares an original module; without it, as kohya's own files are, they change the weights alike."""
    rng, modules = np.random.default_rng(0), kohya.slots(SD35)
    left_out = {"transformer_blocks.0.attn.to_k"}  # one of three
    adapters = {
        module: (rng.normal(size=(2, 5)).astype(np.float32), rng.normal(size=(6 * len(slot.rows), 2)).astype(np.float32))
        for module, slot in modules.items()
        if module not in left_out
    }
    scales = dict.fromkeys(adapters, 0.75)
    tensors, members = kohya.fuse(adapters, scales, SD35)
    assert tensors["lora_unet_joint_blocks_1_x_block_attn_qkv.lora_down.weight"].shape == (6, 5)
    assert tensors["lora_unet_joint_blocks_1_x_block_attn_qkv.lora_up.weight"].shape == (18, 6)
    assert tensors["lora_unet_joint_blocks_1_x_block_attn_qkv.alpha"] == 4.5
    back, same_scales = kohya.split(tensors, members, SD35)
    assert back.keys() == adapters.keys() and same_scales == scales
    for module, pair in adapters.items():
        for ours, theirs in zip(back[module], pair, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=module)
    shared, shared_scales = kohya.split(tensors, {}, SD35)
    assert shared.keys() == modules.keys() and shared_scales == dict.fromkeys(modules, 0.75)
    for module, (a, b) in shared.items():
        expected = adapters[module][1] @ adapters[module][0] if module in adapters else 0
        np.testing.assert_allclose(b @ a, np.broadcast_to(expected, (len(b), 5)), atol=1e-6, err_msg=module)


def test_diffusers_names_and_no_alpha_are_read_and_what_has_no_place_is_refused():
    """Other tools write the names of diffusers' modules so; without an alpha it is the rank."""
    module, table = "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k", unet.table(SDXL)
    name, a, b = kohya.key(module), np.ones((2, 3), np.float16), np.ones((4, 2), np.float16)
    adapters, scales = kohya.split({name + kohya.DOWN: a, name + kohya.UP: b}, {}, table)
    assert list(adapters) == [module] and scales[module] == 1.0
    np.testing.assert_array_equal(adapters[module][0], a)
    for other in ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_unet_down_blocks_7_resnets_0_conv1"):
        with pytest.raises(WeightsError, match=rf"2 tensors are no LoRA of this model in kohya's naming: \['{other}"):
            kohya.split({other + kohya.DOWN: a, other + kohya.UP: b}, {}, table)
    name = kohya.key("joint_blocks.0.x_block.attn.qkv")
    with pytest.raises(WeightsError, match="B has 4 outputs, which are not 3 equal pieces"):
        kohya.split({name + kohya.DOWN: a, name + kohya.UP: b}, {}, SD35)


def test_refuses_what_one_module_cannot_hold():
    names = [f"transformer_blocks.0.attn.to_{part}" for part in "qk"]
    adapters = {name: (np.ones((rank, 5), np.float32), np.ones((6, rank), np.float32)) for name, rank in zip(names, (2, 3), strict=True)}
    with pytest.raises(ValueError, match=r"to_q, .*to_k have the ranks and scales \[\(2, 1\.0\), \(3, 1\.0\)\]"):
        kohya.fuse(adapters, dict.fromkeys(names, 1.0), SD35)
