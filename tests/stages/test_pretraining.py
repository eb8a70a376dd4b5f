"""Every recipe of the micro checkpoints at small scale: it trains, its loss falls, and what it wrote is read by the loaders of the pipeline."""

import importlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.metrics.encoders import MetricEncoders
from proxy_jax.metrics.probes import Probes
from proxy_jax.models.layers import Compute
from proxy_jax.stages import contract, learners, pretraining
from proxy_jax.weights import hub

pytest.importorskip("skia", reason='the micro-world is drawn with skia: pip install -e ".[microworld]"')
pytestmark = pytest.mark.slow

SIZE, LENGTH = 24, 16
SMALL_VIT = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=SIZE, patch_size=8)
SMALL_CLIP = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, projection_dim=16)
# recipe -> changes to the sizes in its config, and steps
SMALL = {
    "kl": (dict(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2), 40),
    "vq": (dict(ch_mult=(1, 1), z_channels=32, codebook_size=64), 40),
    "text_encoders": (dict(text_encoder=SMALL_CLIP, text_encoder_2=SMALL_CLIP, text_encoder_3=dict(d_model=32, d_ff=64, num_layers=1, d_kv=8)), 60),
    "metrics": (dict(dino=SMALL_VIT, clip=dict(text_config=SMALL_CLIP, vision_config=SMALL_VIT, projection_dim=16)), 60),
    "probes": (SMALL_VIT, 60),
    "supervisor": (
        dict(sample_size=12, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32)
        | dict(pooled_projection_dim=32),
        80,
    ),
    "student": (dict(dim=32, n_layer=2, n_head=2, vocab_size=64, caption_dim=32), 80),
}


def merged(old: dict, new: dict) -> dict:
    return {key: merged(old[key], new[key]) if isinstance(new.get(key), dict) and key in old else new.get(key, old.get(key)) for key in old | new}


def small_config(recipe: str, folder: Path):
    """The recipe's own config at small size; the checkpoints it needs are those that the recipes before it left in `folder`."""
    config = importlib.import_module(f"configs.micro.{recipe}").get_config()
    sizes, steps = SMALL[recipe]
    with config.unlocked():
        config.pretraining.model = merged(config.pretraining.model.to_dict(), sizes)
    if recipe == "text_encoders":
        with config.unlocked():
            config.pretraining.model.vision = merged(config.pretraining.model.vision.to_dict(), SMALL_VIT)
    config.pretraining.update(pictures=512, resolution=SIZE, pictures_cache=str(folder / "pictures"))
    config.pretraining.training.update(steps=steps, batch_size=32, warmup_steps=2, learning_rate=3e-3, checkpoint_every=1000, log_every=1000)
    config.pretraining.unquantised.update(steps=20, batch_size=32, warmup_steps=2, checkpoint_every=1000, log_every=1000)
    vq = str(folder / "vq" / "pretraining" / "weights" / "vq.safetensors")
    if recipe == "vq":
        config.pretraining.parts.start = str(folder / "kl" / "pretraining" / "weights" / "vae")
    if recipe == "probes":
        config.pretraining.parts.vq = vq
    if recipe == "supervisor":
        config.pretraining.parts.encoders = str(folder / "pipeline")
    config.student.vq, config.student.text_encoder = vq, str(folder / "pipeline" / "text_encoder_3")
    config.supervisor.resolution = config.student.resolution = SIZE
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the workdir of each recipe, in their order, and a pipeline put together of what they trained."""
    folder = tmp_path_factory.mktemp("micro")
    for recipe in SMALL:
        contract.complete(pretraining.NAME, pretraining, small_config(recipe, folder), folder / recipe)
        weights = folder / recipe / "pretraining" / "weights"
        if recipe in ("kl", "text_encoders"):
            pretraining.shutil.copytree(weights, folder / "pipeline", dirs_exist_ok=True)
        if recipe == "text_encoders":  # LlamaGen looks for T5's tokenizer beside it
            pretraining.shutil.copytree(folder / "pipeline" / "tokenizer_3", folder / "pipeline" / "text_encoder_3", dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize("recipe", SMALL)
def test_the_loss_falls(recipe, trained):
    lines = (trained / recipe / "pretraining" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == SMALL[recipe][1]
    assert np.mean(losses[-8:]) < 0.97 * np.mean(losses[:8]), losses


@pytest.mark.parametrize("recipe", SMALL)
def test_the_card_tells_how_it_was_trained(recipe, trained):
    folder = trained / recipe / "pretraining"
    card = json.loads((folder / "card.json").read_text())
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert card["recipe"] == recipe and card["seed"] == 0 and card["steps"] == len(losses)
    assert card["loss"]["means"][0] == pytest.approx(losses[0], abs=1e-4)
    text = (folder / "README.md").read_text()
    assert all(f"| {name} | {value:.4g} |" in text for name, value in card["scores"].items())
    files = [file for file in (folder / "weights").rglob("*.safetensors")]
    assert files
    for file in files:
        shapes = pretraining.open_tensors(file).shapes()
        assert all(pretraining.open_tensors(file).read(name, tuple(slice(None) for _ in shape)).dtype == np.float16 for name, shape in shapes.items())


def test_the_metrics_and_the_probe_load_and_read(trained):
    weights = trained / "metrics" / "pretraining" / "weights"
    metric = MetricEncoders.load(weights / "dino", weights / "clip", compute=Compute(), dino_preprocessing="dreambench")
    pictures = pretraining._drawn().held_out(SIZE).pictures[:5]
    assert metric.dino(list(pictures)).shape == (5, 32) and metric.clip_text(["a dog in the snow"]).shape == (1, 16)
    read = Probes.load(trained / "probes" / "pretraining" / "weights" / "probes").read(pictures)
    assert set(read) == set(pretraining.attributes.ATTRIBUTES)
    assert all(value in pretraining.attributes.ATTRIBUTES[name] for name, values in read.items() for value in values)


def test_the_generators_draw_from_what_was_written(trained):
    """The base folder with the trained part in it is a whole pipeline: loaded by the learners, it draws."""
    config = small_config("supervisor", trained)
    base = trained / "supervisor" / "pretraining"
    pretraining.shutil.copytree(base / "weights" / "transformer", base / "base" / "transformer", dirs_exist_ok=True)
    config.supervisor.checkpoint = str(base / "base")
    config.student.gpt = str(trained / "student" / "pretraining" / "weights" / "gpt.safetensors")
    for learner, options in (
        (learners.supervisor(config, trained), dict(steps=2, guidance_scale=2.0)),
        (learners.student(config, trained), dict(guidance_scale=2.0, top_k=0, top_p=1.0, temperature=1.0)),
    ):
        text = learner.encode_prompts(["a dog", "a cat in the snow", ""])
        rows, empty = {k: v[:2] for k, v in text.items()}, {k: v[2:] for k, v in text.items()}
        drawn = learner.draw(learner.load_model(lambda name: jnp.float32), rows, empty, 0, np.arange(2), options)
        assert drawn.shape == (2, SIZE, SIZE, 3) and drawn.std() > 0


def test_the_autoencoder_says_how_its_latents_are_scaled(trained):
    content = hub.read_json(trained / "kl" / "pretraining" / "weights" / "vae" / "config.json")
    model = hub.load_pretrained(
        trained / "kl" / "pretraining" / "weights" / "vae",
        pretraining.autoencoders.AutoencoderKL,
        pretraining.AutoencoderKLConfig,
        pretraining.autoencoder_kl.table,
        compute=Compute(),
    )
    pictures = pretraining._world(small_config("kl", trained)).pictures  # what the scale was measured on
    mean = np.asarray(model.moments(pretraining.autoencoders.to_pixels(jnp.asarray(pictures[:128])))[0])
    scaled = np.asarray(model.scale(jnp.asarray(mean)))
    assert abs(scaled.mean()) < 0.1 and abs(scaled.std() - 1) < 0.1
    assert content["latent_channels"] == 16 and isinstance(model, nnx.Module)
