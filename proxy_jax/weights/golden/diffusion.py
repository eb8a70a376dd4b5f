"""Golden kinds of the diffusion supervisors and of LlamaGen's image tokenizer. Official arrays are NCHW; ours are NHWC."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.flux import FluxConfig, FluxTransformer, pack, rope_table
from proxy_jax.models.mmdit import SD3Config, SD3Transformer
from proxy_jax.models.unet import UNet, UNetConfig
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.weights import autoencoder_kl, flux, mmdit, unet, vqgan
from proxy_jax.weights.golden import Case, Comparison, Describe, Run, nchw, nhwc
from proxy_jax.weights.hub import config_from
from proxy_jax.weights.table import load
from proxy_jax.weights.tensors import open_tensors

TRANSFORMER_TOLERANCE = 5e-5
UNET_TOLERANCE = 1e-4
LATENT_TOLERANCE = 2e-5
PIXEL_TOLERANCE = 1e-4


def sd3_transformer(case: Case) -> list[Comparison]:
    """SD3 and SD3.5: patch embedding, time embedding and velocity."""
    config, io = config_from(SD3Config, case.config), case.io
    model = load(lambda: SD3Transformer(config, rngs=nnx.Rngs(0)), mmdit.table(config), open_tensors(case.weights), source=str(case.weights))
    latents, timesteps, pooled = nhwc(io["hidden_states"]), io["timestep"], io["pooled_projections"]
    outputs = {
        "patch_embed_out": model.embed_latents(latents),
        "temb": model.embed_time(timesteps, pooled),
        "output": nchw(jax.jit(SD3Transformer.__call__)(model, latents, timesteps, io["encoder_hidden_states"], pooled)),
    }
    return [Comparison(name, np.asarray(ours), io[name], TRANSFORMER_TOLERANCE) for name, ours in outputs.items()]


def sdxl_unet(case: Case) -> list[Comparison]:
    """SDXL's UNet: the embedded timesteps, time ids and pooled text, and the prediction."""
    config, io = config_from(UNetConfig, case.config), case.io
    model = load(lambda: UNet(config, rngs=nnx.Rngs(0)), unet.table(config), open_tensors(case.weights), source=str(case.weights))
    latents, timesteps, pooled, ids = nhwc(io["sample"]), io["timesteps"], io["text_embeds"], io["time_ids"]
    embedded = {"time_emb": model.embed_time(timesteps), "time_id_emb": model.embed_time_ids(ids), "aug_emb": model.embed_added(pooled, ids)}
    output = jax.jit(UNet.__call__)(model, latents, timesteps, io["encoder_hidden_states"], pooled, ids)
    return [
        *(Comparison(name, np.asarray(ours), io[name], TRANSFORMER_TOLERANCE) for name, ours in embedded.items()),
        Comparison("output", nchw(output), io["output"], UNET_TOLERANCE),
    ]


def flux_transformer(case: Case) -> list[Comparison]:
    """FLUX.1: patches, rotary tables, the embedded timesteps, guidance and pooled text, and velocity."""
    config, io = config_from(FluxConfig, case.config), case.io
    model = load(lambda: FluxTransformer(config, rngs=nnx.Rngs(0)), flux.table(config), open_tensors(case.weights), source=str(case.weights))
    # The official timesteps are in 0..1; a model without guidance_embeds has no guidance.
    latents, timesteps, pooled, guidance = nhwc(io["latents"]), 1000 * io["timestep"], io["pooled_projections"], io.get("guidance")
    rope = rope_table(config, len(io["txt_ids"]), *(size // 2 for size in latents.shape[1:3])).repeat(2, axis=1)
    velocity = jax.jit(FluxTransformer.__call__)(model, latents, timesteps, io["encoder_hidden_states"], pooled, guidance)
    outputs = {
        "packed": pack(latents),
        "rope_cos": rope[..., 0],
        "rope_sin": rope[..., 1],
        "temb": model.embed_vec(timesteps, guidance, pooled),
        "output_packed": pack(velocity),
        "output_unpacked": nchw(velocity),
    }
    return [Comparison(name, np.asarray(ours), io[name], TRANSFORMER_TOLERANCE) for name, ours in outputs.items()]


def autoencoder_kl_case(case: Case) -> list[Comparison]:
    """AutoencoderKL: moments, the sample they give with the case's noise, scaling, decoding."""
    config, io = config_from(AutoencoderKLConfig, case.config), case.io
    model = load(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0)), autoencoder_kl.table(config), open_tensors(case.weights), source=str(case.weights))
    mean, logvar = jax.jit(AutoencoderKL.moments)(model, nhwc(io["image"]))
    std = jnp.exp(0.5 * logvar)
    sample = mean + std * nhwc(io["noise"])
    model_input = model.scale(sample)
    decode = jax.jit(AutoencoderKL.decode)
    latents = {"mean": mean, "logvar": logvar, "std": std, "sample": sample, "model_input": model_input}
    pixels = {"decoded_sample": decode(model, model.unscale(model_input)), "decoded_latent_in": decode(model, nhwc(io["latent_in"]))}
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).sum((1, 2, 3))
    return [
        *(Comparison(name, nchw(ours), io[name], LATENT_TOLERANCE) for name, ours in latents.items()),
        *(Comparison(name, nchw(ours), io[name], PIXEL_TOLERANCE) for name, ours in pixels.items()),
        Comparison("kl", np.asarray(kl), io["kl"], LATENT_TOLERANCE, relative=True),  # a sum over all latents
    ]


def llamagen_vq(case: Case) -> list[Comparison]:
    """LlamaGen's tokenizer: latents, indices (exactly), codes, losses, decoding."""
    config, io = config_from(VQConfig, case.config), case.io
    model = load(lambda: VQModel(config, rngs=nnx.Rngs(0)), vqgan.table(config), open_tensors(case.weights), source=str(case.weights))

    @jax.jit
    def encode(model: VQModel, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return model.encoder(images), model.latents(images), model.encode(images)

    hidden, latents, indices = encode(model, nhwc(io["image"]))
    quantized, codes = model.codebook.quantize(latents), model.quantize(latents)[1]
    distances = jnp.square(model.codebook.project(latents)[..., None, :] - model.codebook.vectors()).sum(-1)
    nearest = jnp.sort(distances, axis=-1).reshape(-1, config.codebook_size)
    decode = jax.jit(VQModel.decode)
    values = {
        "encoder_out": nchw(hidden),
        "latent_pre_quant": nchw(latents),
        "quantized": nchw(codes),
        "margin": nearest[:, 1] - nearest[:, 0],
        "vq_loss": quantized.codebook_loss,
        "commit_loss_weighted": quantized.commitment_loss,
    }
    pixels = {"recon": decode(model, indices), "codes_decoded": decode(model, io["codes_in"])}
    return [
        Comparison("indices", np.asarray(indices), io["indices"], 0.0),
        *(Comparison(name, np.asarray(ours), io[name], LATENT_TOLERANCE) for name, ours in values.items()),
        *(Comparison(name, nchw(ours), io[name], PIXEL_TOLERANCE) for name, ours in pixels.items()),
    ]


KINDS: dict[str, Run] = {
    "sd3_transformer": sd3_transformer,
    "sd35_transformer": sd3_transformer,
    "sdxl_unet": sdxl_unet,
    "flux_transformer": flux_transformer,
    "autoencoder_kl": autoencoder_kl_case,
    "autoencoder_kl_noquant": autoencoder_kl_case,
    "llamagen_vq": llamagen_vq,
}


def _describe(model_class: type, config_class: type, table) -> Describe:
    """A manifest's model and table, from the fields of its config that `config_class` has."""

    def describe(official: dict):
        config = config_from(config_class, official)
        return lambda: model_class(config, rngs=nnx.Rngs(0)), table(config)

    return describe


MANIFESTS: dict[str, Describe] = {
    r"sd3.*_transformer": _describe(SD3Transformer, SD3Config, mmdit.table),
    r"sdxl_.*unet": _describe(UNet, UNetConfig, unet.table),
    r"flux1_.*transformer": _describe(FluxTransformer, FluxConfig, flux.table),
    r"(sd3|sdxl)_vae": _describe(AutoencoderKL, AutoencoderKLConfig, autoencoder_kl.table),
    r"llamagen_vq(16|8)": _describe(VQModel, VQConfig, vqgan.table),
}
