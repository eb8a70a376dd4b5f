"""Golden cases of what is no single model: schedules, training targets, decoding, cropping, caption cleaning."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from proxy_jax.data import images
from proxy_jax.models import parameters
from proxy_jax.models.llamagen import LlamaGen, LlamaGenConfig
from proxy_jax.students.caption_cleaning import clean_caption
from proxy_jax.students.decoding import Sampling
from proxy_jax.students.llamagen import generate, left_pad
from proxy_jax.supervisors import noise
from proxy_jax.weights import hub, llamagen
from proxy_jax.weights.golden import Case, Comparison, Run
from proxy_jax.weights.table import load
from proxy_jax.weights.tensors import open_tensors


def schedulers(case: Case) -> list[Comparison]:
    """The flow-matching runs (fm_*): timesteps, sigmas and every latent on the way."""
    io, config, out = case.io, case.config, []
    for run in sorted({name.split("/")[0] for name in io if name.startswith("fm_")}):
        family, steps, *rest = run.removeprefix("fm_").split("_")
        if family == "flux":
            c = config["flow_flux"]
            points = dict(base=(c["base_image_seq_len"], c["base_shift"]), top=(c["max_image_seq_len"], c["max_shift"]))
            sigmas = noise.dynamic_sigmas(int(steps), int(rest[0].removeprefix("seq")), **points)
        elif family == "schnell":
            sigmas = noise.dynamic_sigmas(int(steps), 0, base=(0, 0.0), top=(1, 0.0))
        else:
            sigmas = noise.sampling_sigmas(int(steps), config[f"flow_{family}"]["shift"])
        out.append(Comparison(f"{run}/sigmas", sigmas, io[f"{run}/sigmas"], 1e-5))
        out.append(Comparison(f"{run}/timesteps", sigmas[:-1] * noise.TRAIN_STEPS, io[f"{run}/timesteps"], 1e-2))
        path = [io["noise"]]
        for i in range(int(steps)):
            path.append(noise.euler(lambda x, t: 0.3 * x - 0.5 * (t[0] / 1000), path[-1], sigmas[i : i + 2]))
        out.append(Comparison(f"{run}/latents", np.stack(path), io[f"{run}/latents"], 1e-4))
    return out


def training_targets(case: Case) -> list[Comparison]:
    """SD3's and FLUX's noisy latents, weights and losses (the DDPM ones belong to SDXL)."""
    io, config = case.io, case.config
    x, unit, velocity = io["latents"], io["noise"], io["model_pred"]
    out = []
    for family, shift, kind in (("sd3", config["flow"]["shift"], "logit_normal"), ("flux", 1.0, "none")):
        table = noise.training_sigmas(shift)
        u = noise.Weighting(kind).density(jnp.asarray(io["z_normal"]), jnp.asarray(io["u_uniform"]))
        sigmas = noise.table_sigmas(u, shift)
        expected_table = io[f"{family}_train_sigmas_table"][: noise.TRAIN_STEPS]
        out += [
            Comparison(f"{family}_train_sigmas_table", table, expected_table, 1e-6),
            Comparison(f"{family}_train_timesteps_table", table * noise.TRAIN_STEPS, io[f"{family}_train_timesteps_table"], 1e-3),
            Comparison(f"{family}_u", u, io[f"{family}_u"], 1e-6),
            Comparison(f"{family}_sigmas", sigmas, io[f"{family}_sigmas"], 1e-6),
            Comparison(f"{family}_timesteps", sigmas * noise.TRAIN_STEPS, io[f"{family}_timesteps"], 1e-3),
            Comparison(f"{family}_noisy", noise.add_noise(x, unit, sigmas), io[f"{family}_noisy"], 1e-5),
        ]
        for name in ("logit_normal", "none", "sigma_sqrt", "cosmap"):
            weight = noise.Weighting(name).weight(sigmas)
            out.append(Comparison(f"{family}_weight_{name}", weight, io[f"{family}_weight_{name}"], 1e-5, relative=True))

        def loss(precondition: bool, kind=kind, sigmas=sigmas) -> jax.Array:
            return noise.flow_loss(velocity, x, unit, sigmas, weighting=noise.Weighting(kind), precondition_outputs=precondition)

        out.append(Comparison(f"{family}_loss_velocity", loss(False).mean(), io[f"{family}_loss_velocity"], 1e-5))
        if family == "sd3":
            both = loss(True)
            prior = both[: len(both) // 2].mean() + config["prior_loss_weight"] * both[len(both) // 2 :].mean()
            out.append(Comparison("sd3_loss_preconditioned", both.mean(), io["sd3_loss_preconditioned"], 1e-5))
            out.append(Comparison("sd3_loss_prior_preservation", prior, io["sd3_loss_prior_preservation"], 1e-5))
    mode = noise.Weighting("mode", mode_scale=config["sd3"]["mode_scale"]).density(None, jnp.asarray(io["u_uniform"]))
    return [*out, Comparison("mode_u", mode, io["mode_u"], 1e-6)]


@functools.partial(parameters.jit, static_argnames=("grid", "sampling", "guided_steps"))
def _greedy(model: LlamaGen, condition, mask, *, grid: int, sampling: Sampling, guided_steps: int = -1):
    indices = jnp.arange(condition.shape[0])
    return generate(model, condition, mask, jax.random.key(0), indices, grid=grid, sampling=sampling, guided_steps=guided_steps, collect_logits=True)


def _decoder(case: Case) -> tuple[LlamaGen, int]:
    config = hub.config_from(LlamaGenConfig, case.config)
    tensors = open_tensors(case.weights)
    model = load(lambda: LlamaGen(config, rngs=nnx.Rngs(0)), llamagen.table(config), tensors, source=str(case.weights))
    return model, round(case.config["block_size"] ** 0.5)


def _compare_tokens(name: str, io: dict, suffix: str, tokens, logits) -> list[Comparison]:
    found = [Comparison(f"tokens_{name}", tokens, io[f"tokens_{suffix}"], 0)]
    if f"step_logits_{suffix}" in io:
        found.append(Comparison(f"step_logits_{name}", logits.swapaxes(0, 1), io[f"step_logits_{suffix}"], 1e-4))
    return found


def llamagen_generate(case: Case) -> list[Comparison]:
    """Greedy decoding with and without guidance, from what the text encoder returns."""
    io = case.io
    model, grid = _decoder(case)
    caption, mask = left_pad(io["t5_raw_rightpad"], io["t5_mask"])
    out = [Comparison("caption_leftpad", caption, io["caption_leftpad"], 0), Comparison("emb_mask", mask, io["emb_mask"], 0)]
    for suffix, scale, guided in (("cfg7_5", 7.5, -1), ("cfg1", 1.0, -1), ("cfg7_5_interval5", 7.5, 5)):
        sampling = Sampling(guidance_scale=scale, temperature=0)
        out += _compare_tokens(suffix, io, suffix, *_greedy(model, caption, mask, grid=grid, sampling=sampling, guided_steps=guided))
    return out


def llamagen_generate_c2i(case: Case) -> list[Comparison]:
    """Greedy class-conditional decoding (the arrays of llamagen_gpt_c2i that its model runner leaves)."""
    io = case.io
    model, grid = _decoder(case)
    labels = jnp.asarray(io["labels"])
    mask = jnp.ones((len(labels), 1), bool)
    out = []
    for suffix, scale in (("cfg4", 4.0), ("cfg1", 1.0)):
        out += _compare_tokens(suffix, io, suffix, *_greedy(model, labels, mask, grid=grid, sampling=Sampling(guidance_scale=scale, temperature=0)))
    return out


def llamagen_center_crop(case: Case) -> list[Comparison]:
    """The official crop, exactly, and its tensor."""
    io, out = case.io, []
    for i, size in enumerate(case.config["sizes"]):
        cropped = images.center_crop_arr(Image.fromarray(io[f"in_{i}"]), size)
        out.append(Comparison(f"out_{i}", cropped, io[f"out_{i}"], 0))
        out.append(Comparison(f"tensor_{i}", images.to_float(cropped).transpose(2, 0, 1), io[f"tensor_{i}"], 1e-6))
    return out


def t5_caption_cleaning(case: Case) -> list[Comparison]:
    """Every caption, letter for letter; an array per caption: 1 where ours is the official one."""
    pairs = json.loads((case.folder / "pairs.json").read_text())
    same = np.asarray([clean_caption(pair["input"]) == pair["cleaned"] for pair in pairs])
    return [Comparison("cleaned", same, np.ones(len(pairs), bool), 0)]


KINDS: dict[str, Run] = {
    "schedulers": schedulers,
    "training_targets": training_targets,
    "llamagen_generate": llamagen_generate,
    "llamagen_gpt_c2i": llamagen_generate_c2i,
    "llamagen_center_crop": llamagen_center_crop,
    "t5_caption_cleaning": t5_caption_cleaning,
}
