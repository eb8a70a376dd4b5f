"""Each diffusion supervisor, whole, against diffusers' pipeline on one checkpoint: text, pictures, training loss and gradient, adapters, export."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import smoke
from proxy_jax.data import loader
from proxy_jax.models import parameters
from proxy_jax.stages import learners, random_weights
from proxy_jax.supervisors import diffusion, latent, noise
from proxy_jax.supervisors.latent import EMBEDDINGS, EMBEDDINGS_FILE, LatentSupervisor, NewTokens
from proxy_jax.training import lora
from proxy_jax.weights.table import save

PROMPTS = ("a photo of sks dog", "A Red-Haired DOG, on the beach at 7:30!", "")
LONG = "an oil painting of a dog that reads " + "and reads " * 20
SEED, INDICES, STEPS = 7, np.asarray([5, 9]), 10
RANK, ALPHA = 4, 8.0
LORA_FILE = lora.file_name("transformer")
SELF_AND_CROSS = ["to_k", "to_q", "to_v", "to_out.0"]
JOINT = [f"attn.{name}" for name in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", *SELF_AND_CROSS)]


@dataclasses.dataclass(frozen=True)
class Family:
    """What differs between the families of supervisors."""

    name: str
    guidance_scale: float
    tokens: int  # of an encoded prompt
    length: dict[str, int]  # arguments of diffusers' encode_prompt and pipeline
    tokenizers: tuple[str, ...]
    targets: list[str]  # the modules that diffusers' DreamBooth LoRA script adapts by default
    more: str  # a pattern of other layers that ours adapts too
    buffers: frozenset[str] = frozenset()  # tensors of the denoiser's file that are no parameters


SD3 = Family(
    "sd3",
    guidance_scale=7.0,
    tokens=154,
    length={"max_sequence_length": 77},
    tokenizers=("CLIPTokenizer", "CLIPTokenizer", "T5Tokenizer"),
    targets=JOINT,
    more=r"patch_in|.*\.img_mlp\.fc[12]|last_block\.txt_modulation\.dense",
    buffers=frozenset({"pos_embed.pos_embed"}),
)
FAMILIES = [
    SD3,
    dataclasses.replace(SD3, name="sd35", guidance_scale=4.5, more=r"dual_blocks\.attention2\.img_[qkvo]"),
    Family(
        "sdxl",
        guidance_scale=5.0,
        tokens=77,
        length={},
        tokenizers=("CLIPTokenizer", "CLIPTokenizer"),
        targets=SELF_AND_CROSS,
        more=r".*\.(value|gate|out|conv[12]|shortcut|resample\.conv)",
    ),
    Family(
        "flux",
        guidance_scale=3.5,
        tokens=77,
        length={"max_sequence_length": 77},
        tokenizers=("CLIPTokenizer", "T5Tokenizer"),
        targets=[*JOINT, *(f"{mlp}.net.{layer}" for mlp in ("ff", "ff_context") for layer in ("0.proj", "2"))],
        more=r"single_blocks\.(mlp|out|modulation\.dense)|double_blocks\.txt\.modulation\.dense",
    ),
]


def psnr(actual: np.ndarray, expected: np.ndarray) -> float:
    """Of pictures in 0..1, in decibels."""
    return float(-10 * np.log10(np.maximum(np.mean(np.square(actual - expected)), 1e-12)))


def channels_first(x: np.ndarray):
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def channels_last(x) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request) -> Family:
    return request.param


@pytest.fixture(scope="module")
def config(family):
    return smoke.get_config(family.name)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory) -> Path:
    """A workdir with the supervisor's part of the stage random_weights; its other parts would double the time."""
    pytest.importorskip("torch", reason="the oracle is diffusers on torch")
    pytest.importorskip("diffusers", reason="the oracle is diffusers")
    pytest.importorskip("peft", reason="diffusers needs PEFT to load adapters")
    workdir = tmp_path_factory.mktemp("parity")
    sizes = config.random_weights.to_dict()["supervisor"]
    random_weights.supervisor(sizes, workdir / random_weights.NAME / "supervisor", config.seed)
    return workdir


@pytest.fixture(scope="module")
def learner(config, workdir) -> LatentSupervisor:
    return learners.supervisor(config, workdir)


@pytest.fixture(scope="module")
def pipe(workdir):
    import diffusers
    import torch

    pipe = diffusers.DiffusionPipeline.from_pretrained(workdir / random_weights.NAME / "supervisor")
    pipe.set_progress_bar_config(disable=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on tensors this small more threads only wait for each other
    yield pipe
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(learner):
    return learner.load_model(lambda name: jnp.float32)


@pytest.fixture(scope="module")
def text(learner) -> dict[str, np.ndarray]:
    """Our columns of the three PROMPTS and LONG."""
    return learner.encode_prompts([*PROMPTS, LONG])


@pytest.fixture(scope="module")
def draw(learner, text):
    """draw(model, guidance_scale) -> our pictures of the first two PROMPTS in 0..1, and their latents."""
    rows, empty = ({name: values[part] for name, values in text.items()} for part in (slice(0, 2), slice(2, 3)))

    def ours(model, guidance_scale: float) -> tuple[np.ndarray, np.ndarray]:
        options = {"steps": STEPS, "guidance_scale": guidance_scale}
        pictures = learner.draw(model, rows, empty, SEED, INDICES, options)
        twice = {name: np.repeat(values, 2, axis=0) for name, values in empty.items()}
        rows_, twice, indices = jax.tree.map(jnp.asarray, (rows, twice, INDICES.astype(np.int32)))
        latents = learner.sample(model, rows_, twice, jax.random.key(SEED), indices, options)
        return pictures.astype(np.float32) / 255, np.asarray(latents)

    return ours


@pytest.fixture(scope="module")
def draw_theirs(learner, family):
    """draw_theirs(pipe, guidance_scale, output_type) -> the pictures (or latents) that diffusers draws from our noise and the prompts' text."""
    packed = family.name == "flux"
    unit = noise.unit_noise(jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(SEED), INDICES), learner.latent_shape)
    options = {"num_inference_steps": STEPS, "height": 32, "width": 32} | family.length

    def theirs(pipe, guidance_scale: float = family.guidance_scale, output_type: str = "np") -> np.ndarray:
        latents = channels_first(np.asarray(unit))
        latents = pipe._pack_latents(latents, *latents.shape) if packed else latents
        images = pipe(list(PROMPTS[:2]), latents=latents, output_type=output_type, guidance_scale=guidance_scale, **options).images
        if output_type == "np":
            return images
        return channels_last(pipe._unpack_latents(images, 32, 32, pipe.vae_scale_factor) if packed else images)

    return theirs


@pytest.fixture(scope="module")
def base(pipe, draw_theirs) -> np.ndarray:
    """diffusers' pictures with guidance and without any adapter."""
    return draw_theirs(pipe)


def test_the_folder_is_complete(pipe, learner, family):
    """diffusers and transformers find every weight of every part in it, and nothing else."""
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    index = json.loads((learner.folder / "model_index.json").read_text())
    parts = {name: value for name, value in index.items() if name.startswith((learner.lora_prefix, "vae", "text_encoder"))}
    assert len(parts) == 2 + len(family.tokenizers)
    for name, (library, class_name) in parts.items():
        found, info = getattr(libraries[library], class_name).from_pretrained(learner.folder / name, output_loading_info=True)
        assert type(found) is type(getattr(pipe, name))
        assert not any(info.values()), (name, info)
    tokenizers = sorted(name for name in index if name.startswith("tokenizer"))
    assert tuple(type(getattr(pipe, name)).__name__ for name in tokenizers) == family.tokenizers


def test_prompts(pipe, learner, text, family):
    import torch

    tokenizers = [name for name in pipe.components if name.startswith("tokenizer")]
    for name in tokenizers:
        lengths = [len(getattr(pipe, name)(prompt).input_ids) for prompt in (*PROMPTS, LONG)]
        assert max(lengths[:3]) < 77 < lengths[3]  # only the long one is truncated
    cases = [("all", text, pipe, [*PROMPTS, LONG])]
    if family.name in ("sd3", "sd35"):
        without = type(pipe)(**(pipe.components | {"text_encoder_3": None, "tokenizer_3": None}))
        zeros = dataclasses.replace(learner, with_t5=False).encode_prompts(PROMPTS[:1])
        cases.append(("no T5", zeros, without, list(PROMPTS[:1])))
    for what, ours, oracle, prompts in cases:
        with torch.no_grad():
            if family.name == "flux":
                embeds, pooled, _ = oracle.encode_prompt(prompts, prompts, **family.length)
            else:
                embeds, _, pooled, _ = oracle.encode_prompt(*[prompts] * len(tokenizers), do_classifier_free_guidance=False, **family.length)
        errors = [np.abs(ours["prompt_embeds"] - embeds.numpy()).max(axis=(1, 2)), np.abs(ours["pooled"] - pooled.numpy()).max(axis=1)]
        print(f"text ({what}): prompt_embeds {errors[0].max():.1e}, pooled {errors[1].max():.1e}")
        assert ours["prompt_embeds"].shape == embeds.shape == (len(prompts), family.tokens, 64) and max(map(np.max, errors)) < 1e-4
    assert np.abs(text["pooled"][0] - text["pooled"][1:]).max(axis=1).min() > 1e-2


@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])
def test_pictures(pipe, model, draw, draw_theirs, base, family, guided, monkeypatch):
    guidance_scale = family.guidance_scale if guided else 1.0
    decode, at_a_time = latent.decode, []
    monkeypatch.setattr(latent, "decode", lambda vae, latents: at_a_time.append(len(latents)) or decode(vae, latents))
    if guided:
        monkeypatch.setattr(latent, "DECODED_PIXELS", 32 * 32)
    pictures, latents = draw(model, guidance_scale)
    assert at_a_time == ([1, 1] if guided else [2])
    expected = draw_theirs(pipe, guidance_scale, "latent")
    decibels = psnr(pictures, base if guided else draw_theirs(pipe, guidance_scale))
    error = np.abs(latents - expected).max()
    print(f"{STEPS} steps, guidance {guidance_scale}: latents {error:.1e} of {np.abs(expected).max():.1f}, pictures {decibels:.1f} dB")
    assert error < 1e-3 and decibels > 40
    if not guided:  # the comparison tells pictures apart
        assert psnr(pictures, base) < 40 and psnr(base[:1], base[1:]) < 40


def test_what_guidance_leads_away_from_is_what_the_index_says(pipe, learner, model, draw, draw_theirs, base, family, monkeypatch):
    """SDXL: zeros if force_zeros_for_empty_prompt (as in test_pictures), else the encoded empty prompt. The others have no such choice."""
    if family.name == "sdxl":
        monkeypatch.setattr(learner, "zeros_for_empty_prompt", False)
        pipe.register_to_config(force_zeros_for_empty_prompt=False)
        try:
            theirs = draw_theirs(pipe)
        finally:
            pipe.register_to_config(force_zeros_for_empty_prompt=True)
        decibels, change = psnr(draw(model, family.guidance_scale)[0], theirs), psnr(base, theirs)
        print(f"away from the empty prompt: {decibels:.1f} dB (from zeros {change:.1f} dB)")
        assert decibels > 40 and change < 40


@pytest.fixture(scope="module")
def batch(learner, text):
    """A batch with prior preservation as the stage makes it, of four random pictures; and the draws of its noise."""
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    rows = learner.encode_images(pictures) | {loader.TABLE_INDEX: np.asarray([0, 0, 1, 1])}
    instance, prior = ({name: values[part] for name, values in rows.items()} for part in (slice(0, 2), slice(2, 4)))
    instance |= learner.crop_columns(np.asarray([(300, 200, 8, 0), (64, 90, 0, 7)]))
    batches = loader.paired(instance, prior, prior_weight=0.7, batch_size=4, seed=0, tables=text, shuffle=False)
    rng, shape = np.random.default_rng(1), (4, *learner.latent_shape)
    draws = SimpleNamespace(latent=rng.standard_normal(shape, np.float32), unit=rng.standard_normal(shape, np.float32))
    draws.normal = np.float32([-1.2, 0.1, 0.4, 1.5])
    draws.timesteps = np.asarray([3, 250, 600, 998])
    return pictures, next(batches) | {"row_index": np.arange(4)}, draws


def prior_preserved(square):
    """Of squared errors, the loss with prior preservation of weight 0.7 as diffusers' scripts put it together."""
    instance, prior = square.reshape(4, -1).mean(1).chunk(2)
    return instance.mean() + 0.7 * prior.mean()


def scaled_latents(pipe, pictures, draws):
    config = pipe.vae.config
    distribution = pipe.vae.encode(channels_first(pictures.astype(np.float32)) / 127.5 - 1).latent_dist
    latents = distribution.mean + distribution.std * channels_first(draws.latent)
    return ((latents - (config.shift_factor or 0.0)) * config.scaling_factor).detach()


def noise_levels(pipe, draws):
    """timesteps and sigmas [4, 1, 1, 1] as the scripts of the flow models draw them."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    u = torch.sigmoid(torch.from_numpy(draws.normal))
    timesteps = scheduler.timesteps[(u * scheduler.config.num_train_timesteps).long()]
    sigmas = torch.stack([scheduler.sigmas[(scheduler.timesteps == t).nonzero().item()] for t in timesteps]).reshape(-1, 1, 1, 1)
    return timesteps, sigmas


def sd3_loss(pipe, pictures, columns, draws, *, other: bool):
    """One step's loss as diffusers' train_dreambooth_sd3.py computes it; other: of the velocity, with weights of the timesteps."""
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    x, unit = scaled_latents(pipe, pictures, draws), channels_first(draws.unit)
    timesteps, sigmas = noise_levels(pipe, draws)
    noisy = (1.0 - sigmas) * x + sigmas * unit
    predicted = pipe.transformer(noisy, columns["prompt_embeds"], columns["pooled"], timesteps, return_dict=False)[0]
    target = unit - x
    if not other:
        predicted, target = predicted * (-sigmas) + noisy, x
    weights = compute_loss_weighting_for_sd3("sigma_sqrt" if other else "logit_normal", sigmas)
    return prior_preserved(weights * (predicted - target) ** 2)


def flux_loss(pipe, pictures, columns, draws, *, other: bool):
    """One step's loss as diffusers' train_dreambooth_lora_flux.py computes it with --guidance_scale=1; other: with weights of the timesteps."""
    import torch
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    x, unit = scaled_latents(pipe, pictures, draws), channels_first(draws.unit)
    (timesteps, sigmas), (height, width) = noise_levels(pipe, draws), x.shape[2:]
    noisy = (1.0 - sigmas) * x + sigmas * unit
    predicted = pipe.transformer(
        hidden_states=pipe._pack_latents(noisy, *noisy.shape),
        timestep=timesteps / 1000,
        guidance=torch.tensor([1.0]).expand(4),
        pooled_projections=columns["pooled"],
        encoder_hidden_states=columns["prompt_embeds"],
        txt_ids=torch.zeros(columns["prompt_embeds"].shape[1], 3),
        img_ids=pipe._prepare_latent_image_ids(4, height // 2, width // 2, "cpu", torch.float32),
        return_dict=False,
    )[0]
    scale = pipe.vae_scale_factor
    predicted = pipe._unpack_latents(predicted, height * scale, width * scale, scale)
    weights = compute_loss_weighting_for_sd3("sigma_sqrt" if other else "none", sigmas)
    return prior_preserved(weights * (predicted - (unit - x)) ** 2)


def sdxl_loss(pipe, pictures, columns, draws, *, other: bool):
    """One step's loss as diffusers' train_dreambooth_lora_sdxl.py computes it; other: of the velocity, with --snr_gamma=5."""
    import torch
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    x, unit, timesteps = scaled_latents(pipe, pictures, draws), channels_first(draws.unit), torch.from_numpy(draws.timesteps)
    added = {"text_embeds": columns["pooled"], "time_ids": columns["time_ids"]}
    noisy = scheduler.add_noise(x, unit, timesteps)
    predicted = pipe.unet(noisy, timesteps, columns["prompt_embeds"], added_cond_kwargs=added, return_dict=False)[0]
    if not other:
        return prior_preserved((predicted - unit) ** 2)
    snr = compute_snr(scheduler, timesteps)
    weights = snr.clamp(max=5.0) / (snr + 1)
    return prior_preserved(weights.reshape(-1, 1, 1, 1) * (predicted - scheduler.get_velocity(x, unit, timesteps)) ** 2)


SCRIPT_LOSSES = {"sd3": sd3_loss, "sd35": sd3_loss, "sdxl": sdxl_loss, "flux": flux_loss}


def other_learner(learner, family):
    """The learner with the loss that the scripts' functions call other."""
    if family.name in ("sd3", "sd35"):
        return dataclasses.replace(learner, weighting=noise.Weighting("sigma_sqrt"), precondition_outputs=False)
    if family.name == "flux":
        return dataclasses.replace(learner, weighting=noise.Weighting("sigma_sqrt"))
    other = dataclasses.replace(learner, snr_gamma=5.0)
    other.schedule = dataclasses.replace(learner.schedule, prediction_type="v_prediction")
    return other


def give_draws(monkeypatch, draws, times: int) -> None:
    """Puts given draws in the place of so many losses' random ones."""
    given = iter([draws.latent, draws.unit] * times)
    monkeypatch.setattr(noise, "unit_noise", lambda keys, shape: jnp.asarray(next(given)))
    u = noise.Weighting().density(jnp.asarray(draws.normal), jnp.zeros(4))
    monkeypatch.setattr(noise, "draw_sigmas", lambda keys, weighting, shift: noise.table_sigmas(u, shift))
    monkeypatch.setattr(diffusion, "draw_timesteps", lambda keys, count: jnp.asarray(draws.timesteps))


def test_training_loss_and_gradient(pipe, learner, model, batch, family, monkeypatch, tmp_path):
    """The loss, and its gradient in every weight (ours under diffusers' names), with our random draws replaced by given ones.

    A second loss, of another target and with weights of the timesteps, goes through the same program.
    """
    import torch

    pictures, columns, draws = batch
    other = other_learner(learner, family)
    give_draws(monkeypatch, draws, times=2)

    def losses_of(values: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        changed, key = parameters.with_arrays(model, values), jax.random.key(0)
        losses = [jnp.mean(one.loss(changed, columns, key) * columns[loader.LOSS_WEIGHT]) for one in (learner, other)]
        return losses[0], losses[1]

    (loss, other_loss), grads = jax.jit(jax.value_and_grad(losses_of, has_aux=True))(parameters.arrays(model))
    save(parameters.with_arrays(model, grads), learner.table, tmp_path / "grads.safetensors")
    ours = load_file(tmp_path / "grads.safetensors")

    tensors = {name: torch.from_numpy(np.asarray(column)) for name, column in columns.items()}
    expected, other_expected = (SCRIPT_LOSSES[family.name](pipe, pictures, tensors, draws, other=flag) for flag in (False, True))
    named = dict(getattr(pipe, learner.lora_prefix).named_parameters())
    theirs = dict(zip(named, torch.autograd.grad(expected, list(named.values())), strict=True))
    assert set(ours) - family.buffers == set(theirs)
    norm = np.sqrt(sum(float(grad.square().sum()) for grad in theirs.values()))
    distance = np.sqrt(sum(np.square(ours[name] - grad.numpy()).sum() for name, grad in theirs.items()))
    errors = [abs(float(loss) / expected.item() - 1), abs(float(other_loss) / other_expected.item() - 1), distance / norm]
    values = expected.item(), other_expected.item()
    print(f"loss {errors[0]:.1e} of {values[0]:.4f}, other loss {errors[1]:.1e} of {values[1]:.4f}, gradient {errors[2]:.1e} (relative)")
    assert max(errors[:2]) < 1e-5 and errors[2] < 1e-4


@pytest.fixture(scope="module")
def adapted(config, learner, family):
    """Our model with the config's adapters and more, made to do something (much larger ones make ten guided steps chaotic: roundings show)."""
    model = learner.load_model(lambda name: jnp.float32)
    lora.attach(model, f"{config.subject_tuning.lora.pattern}|{family.more}", RANK, ALPHA, jax.random.key(1))
    rng = np.random.default_rng(2)
    values = {name: value for name, value in parameters.arrays(model, lora.is_lora).items() if name.endswith(".b")}
    return parameters.with_arrays(model, {name: jnp.asarray(0.1 * rng.standard_normal(b.shape), jnp.float32) for name, b in values.items()})


@pytest.fixture(scope="module")
def adapted_pictures(draw, adapted, family) -> np.ndarray:
    return draw(adapted, family.guidance_scale)[0]


def assert_same_with_adapters(pipe, file: Path, adapted_pictures, draw_theirs, base) -> None:
    """diffusers draws with the adapters of `file` what we draw with them, and not what either draws without."""
    pipe.load_lora_weights(file)
    try:
        theirs = draw_theirs(pipe)
    finally:
        pipe.unload_lora_weights()
    decibels, change = psnr(adapted_pictures, theirs), psnr(base, theirs)
    print(f"the adapters of {file.name} in diffusers: {decibels:.1f} dB (without them {change:.1f} dB)")
    assert decibels > 40 and change < 30


def test_diffusers_draws_with_our_adapters(pipe, learner, adapted, adapted_pictures, draw_theirs, base, tmp_path):
    lora.save(learner.parts(adapted), tmp_path / LORA_FILE)
    assert_same_with_adapters(pipe, tmp_path, adapted_pictures, draw_theirs, base)


def test_kohyas_naming(pipe, learner, adapted, adapted_pictures, draw_theirs, base, family, tmp_path, monkeypatch):
    """Read back they are the same adapters; diffusers, which reads it for SDXL and FLUX.1, draws the same with them."""
    from diffusers.loaders import lora_conversion_utils, lora_pipeline

    path = tmp_path / "kohya.safetensors"
    lora.save_kohya(learner.parts(adapted), path)
    again = learner.load_model(lambda name: jnp.float32)
    assert lora.load(learner.parts(again), path) == sorted(lora.adapted(adapted))
    read = parameters.arrays(again, lora.is_lora)
    for name, value in parameters.arrays(adapted, lora.is_lora).items():
        np.testing.assert_array_equal(read[name], value, err_msg=name)
    assert {layer.lora.scale for layer in lora.adapted(again).values()} == {ALPHA / RANK}
    if family.name in ("sdxl", "flux"):
        # diffusers' converter knows the published width only.
        name, scope = "_convert_kohya_flux_lora_to_diffusers", dict(vars(lora_conversion_utils))
        exec(inspect.getsource(scope[name]).replace("dims=[3072, 3072, 3072, 12288]", "dims=[64, 64, 64, 256]"), scope)
        monkeypatch.setattr(lora_pipeline, name, scope[name])
        assert_same_with_adapters(pipe, path, adapted_pictures, draw_theirs, base)


def test_we_draw_with_the_adapters_of_diffusers(pipe, learner, config, draw, draw_theirs, base, family, tmp_path):
    """Saved as its script for the family saves them: for SDXL under diffusers' own older names. The config adapts the same modules."""
    import peft
    import torch
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers

    torch.manual_seed(3)
    denoiser = getattr(pipe, learner.lora_prefix)
    denoiser.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=family.targets, init_lora_weights=False))
    try:
        layers, metadata = peft.get_peft_model_state_dict(denoiser), _collate_lora_metadata({learner.lora_prefix: denoiser})
        layers = convert_state_dict_to_diffusers(layers) if family.name == "sdxl" else layers
        type(pipe).save_lora_weights(tmp_path, **{f"{learner.lora_prefix}_lora_layers": layers}, **metadata)
        theirs = draw_theirs(pipe)
    finally:
        pipe.unload_lora_weights()
    assert any(".lora.down." in name for name in load_file(tmp_path / LORA_FILE)) == (family.name == "sdxl")
    model = learner.load_model(lambda name: jnp.float32)
    paths = lora.load(learner.parts(model), tmp_path / LORA_FILE)
    assert paths == sorted(path for path in lora.layers_of(model) if re.fullmatch(config.subject_tuning.lora.pattern, path))
    decibels, change = psnr(draw(model, family.guidance_scale)[0], theirs), psnr(base, theirs)
    print(f"diffusers' adapters here: {len(paths)} kernels, {decibels:.1f} dB (without them {change:.1f} dB)")
    assert decibels > 40 and change < 30


@pytest.fixture(scope="module")
def tuned(learner) -> LatentSupervisor:
    """The learner with its text encoders as part of the model."""
    return dataclasses.replace(learner, tune_text=True)


@pytest.fixture(scope="module")
def said(family):
    """said(pipe) -> the columns that diffusers makes of four prompts, the first two of PROMPTS twice each."""

    def theirs(pipe) -> dict:
        guidance = {} if family.name == "flux" else {"do_classifier_free_guidance": False}
        prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
        found = pipe.encode_prompt(*[prompts] * len(family.tokenizers), **guidance, **family.length)
        return {"prompt_embeds": found[0], "pooled": found[1 if family.name == "flux" else 2]}

    return theirs


@pytest.fixture(scope="module")
def with_text(pipe, learner, tuned, batch, said, draw_theirs, family, tmp_path_factory) -> SimpleNamespace:
    """Adapters of the denoiser and of its text encoders by PEFT, in a file that diffusers wrote; what it makes of prompts.

    Of SDXL also the pictures, and a loss and its gradient: what runs the encoders is the same in all families.
    """
    import peft
    import torch
    from diffusers.training_utils import _collate_lora_metadata
    from diffusers.utils import convert_state_dict_to_diffusers

    folder, (pictures, columns, draws) = tmp_path_factory.mktemp("text"), batch
    parts = {name: getattr(pipe, name) for name in (learner.lora_prefix, *learner.clips)}
    torch.manual_seed(4)
    for name, part in parts.items():
        targets = ["q_proj", "k_proj", "v_proj", "out_proj"] if name in learner.clips else family.targets
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False)
        peft.inject_adapter_in_model(config, part)  # as add_adapter does, for which transformers wants a newer PEFT
        part.peft_config = {"default": config}
    try:
        states = {name: peft.get_peft_model_state_dict(part) for name, part in parts.items()}
        layers = {f"{name}_lora_layers": state for name, state in states.items()}
        if family.name == "sdxl":
            layers = {name: convert_state_dict_to_diffusers(layer) for name, layer in layers.items()}
        type(pipe).save_lora_weights(folder, **layers, **_collate_lora_metadata(parts))
        text, gradient, found = said(pipe), {}, SimpleNamespace(parts=list(parts))
        if family.name == "sdxl":
            found.pictures = draw_theirs(pipe)
            tensors = {name: torch.from_numpy(np.asarray(column)) for name, column in columns.items()} | text
            loss = sdxl_loss(pipe, pictures, tensors, draws, other=False)
            named = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.named_parameters() if ".lora_" in key}
            grads = torch.autograd.grad(loss, list(named.values()), materialize_grads=True)
            found.loss, gradient = loss.item(), dict(zip(named, grads, strict=True))
    finally:
        pipe.unload_lora_weights()

    def official(name: str) -> str:
        """Of a CLIPTextModel transformers 5 leaves out text_model, which every published file has."""
        return re.sub(r"^(text_encoder\w*\.)(?=encoder)", r"\1text_model.", name.replace(".default", ""))

    found.text = {name: value.detach().numpy() for name, value in text.items()}
    found.gradient = {official(name): grad.numpy() for name, grad in gradient.items()}
    found.adapters = {official(f"{name}.{key}"): value.numpy() for name, state in states.items() for key, value in state.items()}
    found.model = tuned.load_model(lambda name: jnp.float32)
    lora.load(tuned.parts(found.model), folder / LORA_FILE)
    return found


def test_what_adapted_text_encoders_say(tuned, with_text, base, family):
    """Under the file that diffusers wrote, as its scripts do with --train_text_encoder; SDXL draws with it too."""
    text = tuned.encode_prompts(PROMPTS)
    _, ours = tuned.conditioned(with_text.model, text)
    for name, theirs in with_text.text.items():
        np.testing.assert_allclose(ours[name][:2], theirs[1:3], atol=1e-4, err_msg=name)
    if family.name == "sdxl":
        rows, empty = ({name: values[part] for name, values in text.items()} for part in (slice(0, 2), slice(2, 3)))
        pictures = tuned.draw(with_text.model, rows, empty, SEED, INDICES, {"steps": STEPS, "guidance_scale": family.guidance_scale})
        decibels, change = psnr(pictures / np.float32(255), with_text.pictures), psnr(base, with_text.pictures)
        print(f"diffusers' adapters, of text encoders too, here: {decibels:.1f} dB (without them {change:.1f} dB)")
        assert decibels > 40 and change < 30


def test_gradient_of_adapters_on_text_encoders(tuned, with_text, text, batch, family, monkeypatch, tmp_path):
    """Of diffusers' loss, of SDXL, through the encoders."""
    if family.name != "sdxl":
        return
    _, columns, draws = batch
    give_draws(monkeypatch, draws, times=1)
    np.testing.assert_array_equal(columns["pooled"], text["pooled"][[0, 0, 1, 1]])
    ids = {name: values[[0, 0, 1, 1]] for name, values in tuned.encode_prompts(PROMPTS).items()}
    columns = {name: column for name, column in columns.items() if name not in text} | ids

    def loss_of(values: dict[str, jax.Array]) -> jax.Array:
        losses = tuned.loss(parameters.with_arrays(with_text.model, values), columns, jax.random.key(0))
        return jnp.mean(losses * columns[loader.LOSS_WEIGHT])

    loss, grads = jax.jit(jax.value_and_grad(loss_of))(parameters.arrays(with_text.model, lora.is_lora))
    lora.save(tuned.parts(parameters.with_arrays(with_text.model, grads)), tmp_path / LORA_FILE)
    ours = load_file(tmp_path / LORA_FILE)
    assert abs(float(loss) / with_text.loss - 1) < 1e-5 and set(ours) == set(with_text.gradient)
    for part in with_text.parts:
        theirs = {name: grad for name, grad in with_text.gradient.items() if name.startswith(f"{part}.")}
        norm = np.sqrt(sum(np.square(grad).sum() for grad in theirs.values()))
        distance = np.sqrt(sum(np.square(ours[name] - grad).sum() for name, grad in theirs.items()))
        print(f"gradient of the adapters of {part}: {norm:.1e}, {distance / norm:.1e} (relative)")
        assert norm > 0 and distance < 1e-4 * norm


def test_files_with_adapters_on_text_encoders(pipe, tuned, with_text, said, draw_theirs, family, tmp_path, monkeypatch):
    """They hold what PEFT has; kohya's naming is read back; diffusers makes the same of prompts with them."""
    from transformers.integrations import peft as integration

    parts, paths = tuned.parts(with_text.model), [tmp_path / name for name in ("ours.safetensors", "kohya.safetensors")]
    lora.save(parts, paths[0])
    lora.save_kohya(parts, paths[1])
    ours = load_file(paths[0])
    assert set(ours) == set(with_text.adapters)
    for name, tensor in with_text.adapters.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)
    again = tuned.load_model(lambda name: jnp.float32)
    lora.load(tuned.parts(again), paths[1])
    read = parameters.arrays(again, lora.is_lora)
    for name, value in parameters.arrays(with_text.model, lora.is_lora).items():
        np.testing.assert_array_equal(read[name], value, err_msg=name)
    monkeypatch.setattr(integration, "check_peft_version", lambda **_: None)  # transformers 5.24 asks for one that is not out
    for path in paths if family.name == "sdxl" else paths[:1]:
        pipe.load_lora_weights(path)
        try:
            for name, value in said(pipe).items():
                np.testing.assert_allclose(value.detach().numpy(), with_text.text[name], atol=1e-5, err_msg=name)
            assert family.name != "sdxl" or psnr(draw_theirs(pipe), with_text.pictures) > 60
        finally:
            pipe.unload_lora_weights()


def test_new_tokens(pipe, learner, family, tmp_path):
    """They start from the class noun's embeddings; diffusers (of SD3, transformers), given our file, makes the same of prompts with them.

    The end token is found as with the published configs, whose eos_token_id is 2.
    """
    import torch

    prompts = ["a photo of sks dog", "A Red-Haired SKS, on the beach at 7:30!", "a dog"]
    tuned = dataclasses.replace(learner, tune_text=True, new_tokens=NewTokens("sks", 2, "toy"))
    start, model = (tuned.load_model(lambda name: jnp.float32) for _ in range(2))
    rng = np.random.default_rng(5)
    learned = {f"{name}.subject_embed": jnp.asarray(0.1 * rng.standard_normal((2, 32)), jnp.float32) for name in tuned.clips}
    tuned.save_subjects(parameters.with_arrays(model, learned), tmp_path)
    tuned.load_subjects(model, tmp_path)

    parts = {name: part for name, part in pipe.components.items() if not name.startswith(("text_encoder", "tokenizer"))}
    theirs = type(pipe).from_pretrained(learner.folder, **parts)
    for name in tuned.clips:
        encoder, tokenizer = getattr(theirs, name), getattr(theirs, name.replace("text_encoder", "tokenizer"))
        pieces = tokenizer("toy", add_special_tokens=False).input_ids
        first = encoder.get_input_embeddings().weight.detach().numpy()[pieces[:2]]
        np.testing.assert_array_equal(getattr(start, name).subject_embed[...], first)
        rows = torch.from_numpy(load_file(tmp_path / EMBEDDINGS_FILE)[EMBEDDINGS[name]])
        if family.name in ("sdxl", "flux"):
            theirs.load_textual_inversion(rows, token="<sks>", text_encoder=encoder, tokenizer=tokenizer)
        else:
            tokenizer.add_tokens(["<sks>", "<sks>_1"])
            encoder.resize_token_embeddings(len(tokenizer)).weight.data[-2:] = rows
        for module in (*encoder.modules(), getattr(model, name)):
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = 2
        getattr(model, name).config = dataclasses.replace(getattr(model, name).config, eos_token_id=2)
    asked = [re.sub("(?i)sks", "<sks>" if family.name in ("sdxl", "flux") else "<sks><sks>_1", prompt) for prompt in prompts]
    asked = [prompts if name.startswith("T5") else asked for name in family.tokenizers]
    guidance = {} if family.name == "flux" else {"do_classifier_free_guidance": False}
    with torch.no_grad():
        found = theirs.encode_prompt(*asked, **guidance, **family.length)
    expected = {"prompt_embeds": found[0].numpy(), "pooled": found[1 if family.name == "flux" else 2].numpy()}
    text = tuned.encode_prompts(prompts)
    (_, ours), (_, before) = tuned.conditioned(model, text), tuned.conditioned(start, text)
    for name, values in expected.items():
        np.testing.assert_allclose(ours[name], values, atol=1e-4, err_msg=name)
    assert np.abs(ours["pooled"][:2] - before["pooled"][:2]).max(axis=1).min() > 1e-2
    assert np.array_equal(ours["pooled"][2], before["pooled"][2])


def test_merged_adapters_and_the_whole_export(pipe, learner, draw, draw_theirs, adapted, adapted_pictures, base, family, tmp_path):
    """Folded into the kernels they draw the same; so does the exported denoiser, here and in diffusers."""
    part = learner.lora_prefix
    merged = lora.merge(adapted)
    pictures = draw(merged, family.guidance_scale)[0]
    learner.save_model(merged, tmp_path)
    exported, info = type(getattr(pipe, part)).from_pretrained(tmp_path / part, output_loading_info=True)
    assert not any(info.values()), info
    other = type(pipe)(**(pipe.components | {part: exported}))
    other.set_progress_bar_config(disable=True)
    theirs = draw_theirs(other)
    again = parameters.arrays(learner.load_model(lambda name: jnp.float32, tuned=tmp_path))
    for name, value in parameters.arrays(merged).items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    print(f"merged: {psnr(pictures, adapted_pictures):.1f} dB; exported to diffusers: {psnr(pictures, theirs):.1f} dB")
    assert psnr(pictures, adapted_pictures) > 40 and psnr(pictures, theirs) > 40 and psnr(base, theirs) < 30
