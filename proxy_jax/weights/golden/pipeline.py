"""Golden cases of what is no single model: schedules, training targets, decoding, cropping, caption cleaning."""

import dataclasses
import functools
import json
from collections.abc import Callable

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
from proxy_jax.supervisors import diffusion, noise
from proxy_jax.weights import hub, llamagen
from proxy_jax.weights.golden import Case, Comparison, Run
from proxy_jax.weights.table import load
from proxy_jax.weights.tensors import open_tensors


def schedulers(case: Case) -> list[Comparison]:
    """Timesteps, sigmas and every latent on the way of the Euler, DDIM and flow-matching runs."""
    runs = sorted({name.split("/")[0] for name in case.io} - {"noise"})
    kinds = {"euler": _euler_run, "ddim": _ddim_run, "fm": _flow_run}
    return [comparison for run in runs for comparison in kinds[run.split("_")[0]](case, run)]


def _path(start: np.ndarray, steps: int, step: Callable[[np.ndarray, int], jax.Array]) -> np.ndarray:
    """`start` and what each step(latents, i) leads to, stacked."""
    found = [start]
    for i in range(steps):
        found.append(np.asarray(step(found[-1], i)))
    return np.stack(found)


def _epsilon(x: jax.Array, t: jax.Array) -> jax.Array:
    """The case's stand-in for a model that predicts the noise."""
    return 0.1 * x + 0.02 * jnp.sin(t[0] / 100)


def _euler_run(case: Case, run: str) -> list[Comparison]:
    io, schedule, steps = case.io, hub.config_from(diffusion.Schedule, case.config["euler"]), int(run.removeprefix("euler_"))
    timesteps, sigmas, scale = schedule.timesteps(steps), schedule.sigmas(steps), schedule.euler_start(steps)

    def step(x: np.ndarray, i: int) -> jax.Array:
        return diffusion.euler(_epsilon, x, timesteps[i : i + 1], sigmas[i : i + 2], schedule.prediction_type)

    return [
        Comparison(f"{run}/timesteps", timesteps, io[f"{run}/timesteps"], 0),
        Comparison(f"{run}/sigmas", sigmas, io[f"{run}/sigmas"], 1e-4),
        Comparison(f"{run}/init_noise_sigma", np.asarray(scale), io[f"{run}/init_noise_sigma"], 1e-4),
        Comparison(f"{run}/latents", _path(io["noise"] * np.float32(scale), steps, step), io[f"{run}/latents"], 1e-4 * scale),
    ]


def _ddim_run(case: Case, run: str) -> list[Comparison]:
    io, schedule, steps = case.io, hub.config_from(diffusion.Schedule, case.config["ddim"]), int(run.removeprefix("ddim_"))
    timesteps, alphas = schedule.timesteps(steps), schedule.ddim_alphas(steps)

    def step(x: np.ndarray, i: int) -> jax.Array:
        return diffusion.ddim(_epsilon, x, timesteps[i : i + 1], alphas[i : i + 1], schedule.prediction_type)

    return [
        Comparison(f"{run}/timesteps", timesteps, io[f"{run}/timesteps"], 0),
        Comparison(f"{run}/latents", _path(io["noise"], steps, step), io[f"{run}/latents"], 1e-4),
    ]


def _flow_run(case: Case, run: str) -> list[Comparison]:
    io, config, (family, number, *rest) = case.io, case.config, run.removeprefix("fm_").split("_")
    steps = int(number)
    if family == "sd3":
        sigmas, mu = noise.sampling_sigmas(steps, config["flow_sd3"]["shift"]), 0.0  # no dynamic shift
    else:
        c = config["flow_flux"]
        line = ((c["base_image_seq_len"], c["base_shift"]), (c["max_image_seq_len"], c["max_shift"])) if family == "flux" else ((0, 0.0), (1, 0.0))
        tokens = int(rest[0].removeprefix("seq")) if family == "flux" else 0
        sigmas, mu = noise.dynamic_sigmas(steps, tokens, base=line[0], top=line[1]), noise.dynamic_mu(tokens, *line)

    def step(x: np.ndarray, i: int) -> jax.Array:
        return noise.euler(lambda x, t: 0.3 * x - 0.5 * (t[0] / 1000), x, sigmas[i : i + 2])

    return [
        Comparison(f"{run}/mu", np.asarray(mu), io[f"{run}/mu"], 1e-6),
        Comparison(f"{run}/sigmas", sigmas, io[f"{run}/sigmas"], 1e-5),
        Comparison(f"{run}/timesteps", sigmas[:-1] * noise.TRAIN_STEPS, io[f"{run}/timesteps"], 1e-2),
        Comparison(f"{run}/latents", _path(io["noise"], steps, step), io[f"{run}/latents"], 1e-4),
    ]


def training_targets(case: Case) -> list[Comparison]:
    """What the models of SDXL, SD3 and FLUX regress to: noisy latents, targets, weights and losses."""
    io, config = case.io, case.config
    mode = noise.Weighting("mode", mode_scale=config["sd3"]["mode_scale"]).density(None, jnp.asarray(io["u_uniform"]))
    found = [*_ddpm_targets(io, config["ddpm"]), Comparison("mode_u", mode, io["mode_u"], 1e-6)]
    found += _flow_targets(io, "sd3", config["flow"]["shift"], "logit_normal") + _flow_targets(io, "flux", 1.0, "none")

    x, velocity = io["latents"], io["model_pred"]
    sigmas = noise.table_sigmas(noise.Weighting("logit_normal").density(jnp.asarray(io["z_normal"]), None), config["flow"]["shift"])
    clean = noise.denoised(velocity, noise.add_noise(x, io["noise"], sigmas), sigmas)
    losses = noise.flow_loss(velocity, x, io["noise"], sigmas, weighting=noise.Weighting("logit_normal"), precondition_outputs=True)
    prior = losses[: len(losses) // 2].mean() + config["prior_loss_weight"] * losses[len(losses) // 2 :].mean()
    return [
        *found,
        Comparison("sd3_preconditioned_pred", clean, io["sd3_preconditioned_pred"], 1e-5),
        Comparison("sd3_loss_preconditioned", losses.mean(), io["sd3_loss_preconditioned"], 1e-5),
        Comparison("sd3_loss_prior_preservation", prior, io["sd3_loss_prior_preservation"], 1e-5),
    ]


def _ddpm_targets(io: dict[str, np.ndarray], config: dict) -> list[Comparison]:
    x, unit, prediction = io["latents"], io["noise"], io["model_pred"]
    table = hub.config_from(diffusion.Schedule, config | {"timestep_spacing": "leading"}).alphas_cumprod  # the spacing is the sampler's
    a = jnp.asarray(table[io["ddpm_timesteps"]])

    def loss(snr_gamma: float) -> jax.Array:
        return diffusion.diffusion_loss(prediction, x, unit, a, prediction_type="epsilon", snr_gamma=snr_gamma).mean()

    weights = diffusion.min_snr_weight(a, 5.0, "epsilon")
    return [
        Comparison("ddpm_alphas_cumprod", table, io["ddpm_alphas_cumprod"], 1e-6),
        Comparison("ddpm_noisy", diffusion.add_noise(x, unit, a), io["ddpm_noisy"], 1e-5),
        Comparison("ddpm_target_v", diffusion.target(x, unit, a, "v_prediction"), io["ddpm_target_v"], 1e-5),
        Comparison("ddpm_snr", diffusion.signal_to_noise(a), io["ddpm_snr"], 1e-4, relative=True),  # 1 - a loses digits where a is near 1
        Comparison("ddpm_minsnr5_weight_eps", weights, io["ddpm_minsnr5_weight_eps"], 1e-4, relative=True),
        Comparison("ddpm_mse_eps", loss(0.0), io["ddpm_mse_eps"], 1e-5),
        Comparison("ddpm_minsnr5_loss_eps", loss(5.0), io["ddpm_minsnr5_loss_eps"], 1e-5),
    ]


def _flow_targets(io: dict[str, np.ndarray], family: str, shift: float, kind: str) -> list[Comparison]:
    x, unit, velocity = io["latents"], io["noise"], io["model_pred"]
    table = noise.training_sigmas(shift)
    u = noise.Weighting(kind).density(jnp.asarray(io["z_normal"]), jnp.asarray(io["u_uniform"]))
    sigmas = noise.table_sigmas(u, shift)
    loss = noise.flow_loss(velocity, x, unit, sigmas, weighting=noise.Weighting(kind), precondition_outputs=False).mean()
    out = [
        Comparison("train_sigmas_table", table, io[f"{family}_train_sigmas_table"][: noise.TRAIN_STEPS], 1e-6),  # some add a last 0
        Comparison("train_timesteps_table", table * noise.TRAIN_STEPS, io[f"{family}_train_timesteps_table"], 1e-3),
        Comparison("u", u, io[f"{family}_u"], 1e-6),
        Comparison("indices", noise.table_indices(u), io[f"{family}_indices"], 0),
        Comparison("sigmas", sigmas, io[f"{family}_sigmas"], 1e-6),
        Comparison("timesteps", sigmas * noise.TRAIN_STEPS, io[f"{family}_timesteps"], 1e-3),
        Comparison("noisy", noise.add_noise(x, unit, sigmas), io[f"{family}_noisy"], 1e-5),
        Comparison("loss_velocity", loss, io[f"{family}_loss_velocity"], 1e-5),
    ]
    for name in ("logit_normal", "none", "sigma_sqrt", "cosmap"):
        weight = noise.Weighting(name).weight(sigmas)
        out.append(Comparison(f"weight_{name}", weight, io[f"{family}_weight_{name}"], 1e-5, relative=True))
    return [dataclasses.replace(comparison, name=f"{family}_{comparison.name}") for comparison in out]


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
