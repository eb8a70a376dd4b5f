"""The check command on cases of other sizes than any that ship: made here from the installed diffusers and transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from proxy_jax.weights import check
from tests.weights.student_cases import STUDENTS, draws

torch = pytest.importorskip("torch", reason="the cases are made by the official models, which need torch ([test] extra)")


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def sd35_transformer():
    return sd3_transformer(qk_norm="rms_norm", dual_attention_layers=(0, 1))


def sd3_transformer(**more):
    from diffusers import SD3Transformer2DModel

    config = dict(sample_size=12, patch_size=2, in_channels=6, out_channels=6, num_layers=4, attention_head_dim=8, num_attention_heads=5)
    config |= dict(joint_attention_dim=24, caption_projection_dim=40, pooled_projection_dim=20, pos_embed_max_size=10) | more
    model = randomised(SD3Transformer2DModel(**config))
    inputs = dict(hidden_states=draws(3, 6, 8, 12), timestep=torch.tensor([3.0, 400.0, 999.0]))
    inputs |= dict(encoder_hidden_states=draws(3, 7, 24), pooled_projections=draws(3, 20))
    outputs = dict(
        output=model(**inputs, return_dict=False)[0],
        patch_embed_out=model.pos_embed(inputs["hidden_states"]),
        temb=model.time_text_embed(inputs["timestep"], inputs["pooled_projections"]),
    )
    return config, model.state_dict(), inputs | outputs


def sdxl_unet():
    from diffusers import UNet2DConditionModel

    config = dict(block_out_channels=(8, 24), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1, norm_num_groups=4)
    config |= dict(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 3), attention_head_dim=(2, 3))
    config |= dict(cross_attention_dim=20, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=6)
    model = randomised(UNet2DConditionModel(**config, projection_class_embeddings_input_dim=46))
    sample, timesteps, states, pooled, ids = draws(2, 4, 6, 10), torch.tensor([700.0, 3.0]), draws(2, 5, 20), draws(2, 10), draws(2, 6).abs() * 100
    added = dict(text_embeds=pooled, time_ids=ids)
    embedded = model.add_time_proj(ids.flatten()).reshape(2, -1)
    io = dict(sample=sample, timesteps=timesteps, encoder_hidden_states=states, time_id_emb=embedded, **added)
    io |= dict(output=model(sample, timesteps, states, added_cond_kwargs=added).sample, time_emb=model.time_embedding(model.time_proj(timesteps)))
    io |= dict(aug_emb=model.add_embedding(torch.cat([pooled, embedded], dim=-1)))
    return config | dict(projection_class_embeddings_input_dim=46), model.state_dict(), io


def flux_transformer():
    """Without guidance, as schnell is."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    config = dict(in_channels=24, num_layers=3, num_single_layers=1, attention_head_dim=12, num_attention_heads=3, joint_attention_dim=20)
    config |= dict(pooled_projection_dim=10, guidance_embeds=False, axes_dims_rope=(2, 6, 4))
    model = randomised(FluxTransformer2DModel(**config))
    latents, timestep, states, pooled, txt_ids = draws(2, 6, 10, 4), torch.tensor([0.7, 0.003]), draws(2, 4, 20), draws(2, 10), torch.zeros(4, 3)
    packed, img_ids = FluxPipeline._pack_latents(latents, 2, 6, 10, 4), FluxPipeline._prepare_latent_image_ids(2, 5, 2, "cpu", torch.float32)
    output = model(packed, states, pooled, timestep, img_ids, txt_ids).sample
    rope_cos, rope_sin = model.pos_embed(torch.cat([txt_ids, img_ids]))
    io = dict(latents=latents, timestep=timestep, encoder_hidden_states=states, pooled_projections=pooled, txt_ids=txt_ids, packed=packed)
    io |= dict(temb=model.time_text_embed(timestep * 1000, pooled), rope_cos=rope_cos, rope_sin=rope_sin)
    return config, model.state_dict(), io | dict(output_packed=output, output_unpacked=FluxPipeline._unpack_latents(output, 80, 32, 8))


def autoencoder_kl():
    from diffusers import AutoencoderKL

    config = dict(block_out_channels=(8, 16), latent_channels=6, layers_per_block=1, norm_num_groups=4, use_quant_conv=True, use_post_quant_conv=True)
    config |= dict(scaling_factor=0.2)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    model = randomised(AutoencoderKL(**config, **blocks))
    image, noise, latent = draws(2, 3, 16, 20).clamp(-1, 1), draws(2, 6, 8, 10), draws(1, 6, 5, 4)
    posterior = model.encode(image).latent_dist
    sample = posterior.mean + posterior.std * noise
    io = dict(image=image, noise=noise, latent_in=latent, mean=posterior.mean, logvar=posterior.logvar, std=posterior.std, sample=sample)
    io |= dict(model_input=sample * 0.2, decoded_sample=model.decode(sample).sample, decoded_latent_in=model.decode(latent).sample, kl=posterior.kl())
    return config, model.state_dict(), io


def clip_text_l():
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = dict(vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=9)
    config |= dict(projection_dim=20, hidden_act="quick_gelu", layer_norm_eps=1e-5, eos_token_id=2, bos_token_id=0, pad_token_id=1)
    model = randomised(CLIPTextModelWithProjection(CLIPTextConfig(**config)))
    ids = torch.tensor([[58, 5, 6, 59, 59, 59, 59, 59, 59], [58, 7, 8, 9, 10, 11, 12, 13, 59]])
    out = model(input_ids=ids, output_hidden_states=True)
    states, last = out.hidden_states, out.last_hidden_state
    io = dict(input_ids=ids.int(), hidden_penultimate=states[-2], last_hidden_state=last, text_embeds=out.text_embeds, hidden_0=states[0])
    io |= dict(pooled=last[torch.arange(2), ids.argmax(-1)])
    names = {name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": t for name, t in model.state_dict().items()}
    return config, names, io


def dino_vit():
    from transformers import ViTConfig, ViTModel

    config = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=24, patch_size=4)
    config |= dict(hidden_act="gelu", qkv_bias=True, layer_norm_eps=1e-12)
    model = randomised(ViTModel(ViTConfig(**config), add_pooling_layer=False))
    native, other = draws(2, 3, 24, 24), draws(1, 3, 32, 20)
    last = model(native).last_hidden_state
    io = dict(pixels_native=native, pixels_other=other, last_hidden_native=last, cls_native=last[:, 0])
    io |= dict(cls_other_size=model(other, interpolate_pos_encoding=True).last_hidden_state[:, 0])
    return config, None, io | {"model": model}


def dinov2():
    from transformers import Dinov2Config, Dinov2Model

    config = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=3, image_size=24, patch_size=6)
    config |= dict(hidden_act="gelu", layer_norm_eps=1e-6, layerscale_value=1.0)
    model = randomised(Dinov2Model(Dinov2Config(**config)))
    native, other = draws(2, 3, 24, 24), draws(1, 3, 36, 18)
    last = model(native).last_hidden_state
    io = dict(pixels_native=native, pixels_other=other, last_hidden_native=last, cls_native=last[:, 0])
    return config, None, io | dict(cls_other_size=model(other).last_hidden_state[:, 0], model=model)


def written(make, folder: Path) -> Path:
    """The case as a folder; tensor names as the official library writes them to disk where it renames them in memory."""
    config, tensors, io = make()
    folder.mkdir(parents=True)
    model = io.pop("model", None)
    if tensors is None:
        model.save_pretrained(folder / "saved")
        tensors = {name: torch.from_numpy(value) for name, value in load_file(folder / "saved" / "model.safetensors").items()}
    save_file({name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}, folder / "weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    np.savez(folder / "io.npz", **{name: value.detach().numpy() for name, value in io.items()})
    return folder


@pytest.mark.parametrize(
    "make",
    [sd3_transformer, sd35_transformer, sdxl_unet, flux_transformer, autoencoder_kl, clip_text_l, dino_vit, dinov2, *STUDENTS],
    ids=lambda make: make.__name__,
)
def test_another_size_passes_and_another_weight_misses(make, tmp_path, capsys):
    folder = written(make, tmp_path / make.__name__)
    assert check.main(["golden", str(folder)]) == 0, capsys.readouterr().out
    tensors = load_file(folder / "weights.safetensors")
    name = max((name for name in tensors if name.endswith("weight")), key=lambda name: tensors[name].size)
    save_file(tensors | {name: tensors[name] * 1.1}, folder / "weights.safetensors")
    assert check.main(["golden", str(folder)]) == 1
    assert "MISS" in capsys.readouterr().out
