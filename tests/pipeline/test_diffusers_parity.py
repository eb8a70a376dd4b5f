"""The whole SD3 supervisor against diffusers' pipeline on one checkpoint: text, pictures, training loss and gradient, adapters, export."""

import dataclasses
import json
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
from proxy_jax.stages.tuning import LORA_FILE
from proxy_jax.supervisors import noise, sd3
from proxy_jax.training import lora
from proxy_jax.weights.table import save

PROMPTS = ("a photo of sks dog", "A Red-Haired DOG, on the beach at 7:30!", "")
LONG = "an oil painting of a dog that reads " + "and reads " * 20
SEED, INDICES, STEPS = 7, np.asarray([5, 9]), 10
RANK, ALPHA = 4, 8.0
# The modules that diffusers' SD3 DreamBooth LoRA script adapts by default.
TARGETS = [f"attn.{name}" for name in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "to_k", "to_out.0", "to_q", "to_v")]


def psnr(actual: np.ndarray, expected: np.ndarray) -> float:
    """Of pictures in 0..1, in decibels."""
    return float(-10 * np.log10(np.mean(np.square(actual - expected))))


def channels_first(x: np.ndarray):
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def channels_last(x) -> np.ndarray:
    return np.moveaxis(x.detach().numpy(), 1, -1)


@pytest.fixture(scope="module")
def config():
    return smoke.get_config()


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
def learner(config, workdir) -> sd3.SD3Supervisor:
    return learners.supervisor(config, workdir)


@pytest.fixture(scope="module")
def pipe(workdir):
    import diffusers
    import torch

    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(workdir / random_weights.NAME / "supervisor")
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
        latents = sd3.sample_latents(model, rows_, twice, jax.random.key(SEED), indices, shape=(8, 8, 16), shift=3.0, **options)
        return pictures.astype(np.float32) / 255, np.asarray(latents)

    return ours


def draw_theirs(pipe, guidance_scale: float, output_type: str = "np") -> np.ndarray:
    """The pictures (or latents) that diffusers draws from our noise and the prompts' text."""
    unit = noise.unit_noise(jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(SEED), INDICES), (8, 8, 16))
    options = {"num_inference_steps": STEPS, "guidance_scale": guidance_scale, "height": 32, "width": 32, "max_sequence_length": 77}
    return pipe(list(PROMPTS[:2]), latents=channels_first(np.asarray(unit)), output_type=output_type, **options).images


@pytest.fixture(scope="module")
def base(pipe) -> np.ndarray:
    """diffusers' pictures with guidance and without any adapter."""
    return draw_theirs(pipe, 7.0)


def test_the_folder_is_complete(pipe, learner):
    """diffusers and transformers find every weight of every part in it, and nothing else."""
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    index = json.loads((learner.folder / "model_index.json").read_text())
    parts = {name: value for name, value in index.items() if name.startswith(("transformer", "vae", "text_encoder"))}
    assert len(parts) == 5
    for name, (library, class_name) in parts.items():
        found, info = getattr(libraries[library], class_name).from_pretrained(learner.folder / name, output_loading_info=True)
        assert type(found) is type(getattr(pipe, name))
        assert not any(info.values()), (name, info)
    assert [type(getattr(pipe, name)).__name__ for name in ("tokenizer", "tokenizer_2", "tokenizer_3")] == ["CLIPTokenizer"] * 2 + ["T5Tokenizer"]


def test_prompts(pipe, learner, text):
    import torch

    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        lengths = [len(getattr(pipe, name)(prompt).input_ids) for prompt in (*PROMPTS, LONG)]
        assert max(lengths[:3]) < 77 < lengths[3]  # only the long one is truncated
    without = type(pipe)(**(pipe.components | {"text_encoder_3": None, "tokenizer_3": None}))
    zeros = dataclasses.replace(learner, with_t5=False).encode_prompts(PROMPTS[:1])
    for what, ours, oracle, prompts in (("all", text, pipe, [*PROMPTS, LONG]), ("no T5", zeros, without, list(PROMPTS[:1]))):
        with torch.no_grad():
            embeds, _, pooled, _ = oracle.encode_prompt(prompts, prompts, prompts, do_classifier_free_guidance=False, max_sequence_length=77)
        errors = [np.abs(ours["prompt_embeds"] - embeds.numpy()).max(axis=(1, 2)), np.abs(ours["pooled"] - pooled.numpy()).max(axis=1)]
        print(f"text ({what}): prompt_embeds {errors[0].max():.1e}, pooled {errors[1].max():.1e}")
        assert ours["prompt_embeds"].shape == embeds.shape == (len(prompts), 154, 64) and max(map(np.max, errors)) < 1e-4
    assert np.abs(text["pooled"][0] - text["pooled"][1:]).max(axis=1).min() > 1e-2


@pytest.mark.parametrize("guidance_scale", [7.0, 1.0])
def test_pictures(pipe, model, draw, base, guidance_scale):
    pictures, latents = draw(model, guidance_scale)
    expected = channels_last(draw_theirs(pipe, guidance_scale, "latent"))
    decibels = psnr(pictures, base if guidance_scale == 7.0 else draw_theirs(pipe, guidance_scale))
    error = np.abs(latents - expected).max()
    print(f"{STEPS} steps, guidance {guidance_scale}: latents {error:.1e} of {np.abs(expected).max():.1f}, pictures {decibels:.1f} dB")
    assert error < 1e-3 and decibels > 40
    if guidance_scale == 1.0:  # the comparison tells pictures apart
        assert psnr(pictures, base) < 40 and psnr(base[:1], base[1:]) < 40


@pytest.fixture(scope="module")
def batch(learner, text):
    """A batch with prior preservation as the stage makes it, of four random pictures; and the draws of its noise."""
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    rows = learner.encode_images(pictures) | {loader.TABLE_INDEX: np.asarray([0, 0, 1, 1])}
    instance, prior = ({name: values[part] for name, values in rows.items()} for part in (slice(0, 2), slice(2, 4)))
    batches = loader.paired(instance, prior, prior_weight=0.7, batch_size=4, seed=0, tables=text, shuffle=False)
    rng = np.random.default_rng(1)
    draws = SimpleNamespace(latent=rng.standard_normal((4, 8, 8, 16), np.float32), unit=rng.standard_normal((4, 8, 8, 16), np.float32))
    draws.normal = np.float32([-1.2, 0.1, 0.4, 1.5])
    return pictures, next(batches) | {"row_index": np.arange(4)}, draws


def script_loss(pipe, pictures, draws, embeds, pooled, *, scheme: str, precondition: bool):
    """One step's loss as diffusers' train_dreambooth_sd3.py computes it, with prior preservation of weight 0.7."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    distribution = pipe.vae.encode(channels_first(pictures.astype(np.float32)) / 127.5 - 1).latent_dist
    latents = distribution.mean + distribution.std * channels_first(draws.latent)
    x = ((latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor).detach()
    unit = channels_first(draws.unit)
    u = torch.sigmoid(torch.from_numpy(draws.normal))
    timesteps = scheduler.timesteps[(u * scheduler.config.num_train_timesteps).long()]
    sigmas = torch.stack([scheduler.sigmas[(scheduler.timesteps == t).nonzero().item()] for t in timesteps]).reshape(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * x + sigmas * unit
    predicted = pipe.transformer(noisy, embeds, pooled, timesteps, return_dict=False)[0]
    if precondition:
        predicted, target = predicted * (-sigmas) + noisy, x
    else:
        target = unit - x
    square = compute_loss_weighting_for_sd3(scheme, sigmas) * (predicted - target) ** 2
    instance, prior = square.reshape(4, -1).mean(1).chunk(2)
    return instance.mean() + 0.7 * prior.mean()


def test_training_loss_and_gradient(pipe, learner, model, batch, monkeypatch, tmp_path):
    """The loss, and its gradient in every weight (ours under diffusers' names), with our random draws replaced by given ones.

    A second loss, of the velocity and with weights of the timesteps, goes through the same program.
    """
    import torch

    pictures, columns, draws = batch
    other = dataclasses.replace(learner, weighting=noise.Weighting("sigma_sqrt"), precondition_outputs=False)
    given = iter([draws.latent, draws.unit] * 2)
    monkeypatch.setattr(sd3.noise, "unit_noise", lambda keys, shape: jnp.asarray(next(given)))
    u = learner.weighting.density(jnp.asarray(draws.normal), jnp.zeros(4))
    monkeypatch.setattr(sd3.noise, "draw_sigmas", lambda keys, weighting, shift: noise.table_sigmas(u, shift))

    def losses_of(values: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        changed, key = parameters.with_arrays(model, values), jax.random.key(0)
        losses = [jnp.mean(one.loss(changed, columns, key) * columns[loader.LOSS_WEIGHT]) for one in (learner, other)]
        return losses[0], losses[1]

    (loss, other_loss), grads = jax.jit(jax.value_and_grad(losses_of, has_aux=True))(parameters.arrays(model))
    save(parameters.with_arrays(model, grads), learner.table, tmp_path / "grads.safetensors")
    ours = load_file(tmp_path / "grads.safetensors")

    embeds, pooled = (torch.from_numpy(np.asarray(columns[name])) for name in ("prompt_embeds", "pooled"))
    expected = script_loss(pipe, pictures, draws, embeds, pooled, scheme="logit_normal", precondition=True)
    other_expected = script_loss(pipe, pictures, draws, embeds, pooled, scheme="sigma_sqrt", precondition=False)
    named = dict(pipe.transformer.named_parameters())
    theirs = dict(zip(named, torch.autograd.grad(expected, list(named.values())), strict=True))
    assert set(ours) - {"pos_embed.pos_embed"} == set(theirs)
    norm = np.sqrt(sum(float(grad.square().sum()) for grad in theirs.values()))
    distance = np.sqrt(sum(np.square(ours[name] - grad.numpy()).sum() for name, grad in theirs.items()))
    errors = [abs(float(loss) / expected.item() - 1), abs(float(other_loss) / other_expected.item() - 1), distance / norm]
    values = expected.item(), other_expected.item()
    print(f"loss {errors[0]:.1e} of {values[0]:.4f}, other loss {errors[1]:.1e} of {values[1]:.4f}, gradient {errors[2]:.1e} (relative)")
    assert max(errors[:2]) < 1e-5 and errors[2] < 1e-4


@pytest.fixture(scope="module")
def adapted(config, learner):
    """Our model with the config's adapters, made to do something."""
    model = learner.load_model(lambda name: jnp.float32)
    lora.attach(model, config.subject_tuning.lora.pattern, RANK, ALPHA, jax.random.key(1))
    rng = np.random.default_rng(2)
    values = {name: value for name, value in parameters.arrays(model, lora.is_lora).items() if name.endswith(".b")}
    return parameters.with_arrays(model, {name: jnp.asarray(0.3 * rng.standard_normal(b.shape), jnp.float32) for name, b in values.items()})


@pytest.fixture(scope="module")
def adapted_pictures(draw, adapted) -> np.ndarray:
    return draw(adapted, 7.0)[0]


def test_diffusers_draws_with_our_adapters(pipe, learner, adapted, adapted_pictures, base, tmp_path):
    lora.save(adapted, tmp_path / LORA_FILE, learner.table, prefix=learner.lora_prefix)
    pipe.load_lora_weights(tmp_path)
    try:
        theirs = draw_theirs(pipe, 7.0)
    finally:
        pipe.unload_lora_weights()
    decibels, change = psnr(adapted_pictures, theirs), psnr(base, theirs)
    print(f"our adapters in diffusers: {decibels:.1f} dB (without them {change:.1f} dB)")
    assert decibels > 40 and change < 30


def test_we_draw_with_the_adapters_of_diffusers(pipe, learner, draw, base, tmp_path):
    import peft
    import torch
    from diffusers.training_utils import _collate_lora_metadata

    torch.manual_seed(3)
    pipe.transformer.add_adapter(peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights=False))
    try:
        layers, metadata = peft.get_peft_model_state_dict(pipe.transformer), _collate_lora_metadata({"transformer": pipe.transformer})
        type(pipe).save_lora_weights(tmp_path, transformer_lora_layers=layers, **metadata)
        theirs = draw_theirs(pipe, 7.0)
    finally:
        pipe.unload_lora_weights()
    model = learner.load_model(lambda name: jnp.float32)
    paths = lora.load(model, tmp_path / LORA_FILE, learner.table, prefix=learner.lora_prefix)
    decibels, change = psnr(draw(model, 7.0)[0], theirs), psnr(base, theirs)
    print(f"diffusers' adapters here: {len(paths)} kernels, {decibels:.1f} dB (without them {change:.1f} dB)")
    assert decibels > 40 and change < 30


def test_merged_adapters_and_the_whole_export(pipe, learner, draw, adapted, adapted_pictures, base, tmp_path):
    """Folded into the kernels they draw the same; so does the exported denoiser, here and in diffusers."""
    import diffusers

    merged = lora.merge(adapted)
    pictures = draw(merged, 7.0)[0]
    learner.save_model(merged, tmp_path)
    exported, info = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "transformer", output_loading_info=True)
    assert not any(info.values()), info
    other = type(pipe)(**(pipe.components | {"transformer": exported}))
    other.set_progress_bar_config(disable=True)
    theirs = draw_theirs(other, 7.0)
    again = parameters.arrays(learner.load_model(lambda name: jnp.float32, tuned=tmp_path))
    for name, value in parameters.arrays(merged).items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    print(f"merged: {psnr(pictures, adapted_pictures):.1f} dB; exported to diffusers: {psnr(pictures, theirs):.1f} dB")
    assert psnr(pictures, adapted_pictures) > 40 and psnr(pictures, theirs) > 40 and psnr(base, theirs) < 30
