"""Every recipe of the micro checkpoints at small scale: it trains, its loss falls, and what it wrote is read by the loaders of the pipeline."""

import importlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from proxy_jax.data.microworld.attributes import ATTRIBUTES
from proxy_jax.metrics.encoders import MetricEncoders
from proxy_jax.metrics.probes import Probes
from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.layers import Compute
from proxy_jax.pretraining import autoencoders
from proxy_jax.stages import contract, evaluation, learners, pretraining
from proxy_jax.weights import autoencoder_kl, hub
from proxy_jax.weights.tensors import open_tensors

dataset = pytest.importorskip("proxy_jax.data.microworld.dataset", reason='the micro-world is drawn with skia: pip install -e ".[microworld]"')
pytestmark = pytest.mark.slow

SIZE, LENGTH = 16, 16
SMALL_VIT = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=SIZE, patch_size=8)
SMALL_CLIP = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, projection_dim=16)
SMALL_TEXT = SMALL_CLIP | dict(hidden_size=16, intermediate_size=32)  # both side by side are as wide as T5
# recipe -> changes to the sizes in its config, and steps
SMALL = {
    "kl": (dict(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2), 24),
    "vq": (dict(ch_mult=(1, 1), z_channels=32, codebook_size=64), 24),
    "text_encoders": (
        dict(text_encoder=SMALL_TEXT, text_encoder_2=SMALL_TEXT, vision=SMALL_VIT)
        | dict(text_encoder_3=dict(d_model=32, d_ff=64, num_layers=1, d_kv=8)),
        60,
    ),
    "metrics": (dict(dino=SMALL_VIT, clip=dict(text_config=SMALL_CLIP, vision_config=SMALL_VIT, projection_dim=16)), 60),
    "probes": (dict(block_out_channels=(8, 16, 16)), 60),
    "sd3": (
        dict(sample_size=12, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32)
        | dict(pooled_projection_dim=32),
        80,
    ),
    "sdxl": (
        dict(block_out_channels=(16, 32), layers_per_block=1, attention_head_dim=(1, 2), cross_attention_dim=32, norm_num_groups=8)
        | dict(projection_class_embeddings_input_dim=64),
        60,
    ),
    "student": (dict(dim=32, n_layer=2, n_head=2, vocab_size=64, caption_dim=32), 80),
}


def merged(old: dict, new: dict) -> dict:
    return {key: merged(old[key], new[key]) if isinstance(new.get(key), dict) and key in old else new.get(key, old.get(key)) for key in old | new}


def small_config(recipe: str, folder: Path):
    """The recipe's own config at small size; the checkpoints it needs are those that the recipes before it left in folder/checkpoints."""
    config = importlib.import_module(f"configs.micro.{recipe}").get_config(str(folder / "checkpoints"))
    sizes, steps = SMALL[recipe]
    with config.unlocked():
        config.pretraining.model = merged(config.pretraining.model.to_dict(), sizes)
    rows = 16 if recipe in ("kl", "vq") else 32  # convolutions are slow
    config.pretraining.update(pictures=512, resolution=SIZE, pictures_cache=str(folder / "pictures"))
    config.pretraining.training.update(steps=steps, batch_size=rows, warmup_steps=2, learning_rate=3e-3, checkpoint_every=1000, log_every=1000)
    config.pretraining.training.ema_decay = 0.0
    config.pretraining.unquantised.update(steps=20, batch_size=rows, warmup_steps=2, checkpoint_every=1000, log_every=1000)
    config.supervisor.resolution = config.student.resolution = SIZE
    config.evaluation.supervisor.steps = 2
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with the workdir of each recipe, trained in their order, and the checkpoints that they put together."""
    folder = tmp_path_factory.mktemp("micro")
    for recipe in SMALL:
        contract.complete(pretraining.NAME, pretraining, small_config(recipe, folder), folder / recipe)
    return folder


def curves(folder: Path) -> dict[str, list[float]]:
    """The losses of every training of a recipe, by its folder's name."""
    return {
        file.parent.name: [json.loads(line)["loss"] for line in file.read_text().splitlines()]
        for file in [*folder.glob("metrics.jsonl"), *folder.glob("*/metrics.jsonl")]
    }


@pytest.mark.parametrize("recipe", SMALL)
def test_every_loss_falls(recipe, trained):
    found = curves(trained / recipe / "pretraining")
    assert set(found) == {"vq": {"unquantised", "pretraining"}, "metrics": {"dino", "pretraining"}}.get(recipe, {"tuned", "pretraining"} & set(found))
    assert found
    for name, losses in found.items():
        assert len(losses) == (20 if name == "unquantised" else SMALL[recipe][1])
        assert np.mean(losses[-8:]) < 0.97 * np.mean(losses[:8]), (name, losses)


@pytest.mark.parametrize("recipe", SMALL)
def test_the_card_tells_how_it_was_trained_and_how_good_it_is(recipe, trained):
    folder = trained / recipe / "pretraining"
    card, found = json.loads((folder / "card.json").read_text()), curves(folder)
    assert card["recipe"] == recipe and not card["resumed"]
    first = {name or "pretraining": curve["means"][0] for name, curve in card["losses"].items()}
    assert first == {name: pytest.approx(losses[0], abs=1e-4) for name, losses in found.items()}
    assert card["scores"] and all(np.isfinite(value) for value in card["scores"].values())
    text = (folder / "README.md").read_text()
    assert all(f"| {name} | {value:.4g} |" in text for name, value in card["scores"].items())
    assert (trained / "checkpoints" / "cards" / recipe / "README.md").read_text() == text


def test_weights_are_halved(trained):
    files = list((trained / "checkpoints").rglob("*.safetensors"))
    assert len(files) == 5 + 4 + 1 + 3 + 2  # SD3's, SDXL's, the text encoder's copy, the metrics, vq and gpt
    for file in files:
        tensors = open_tensors(file)
        assert {tensors.read(name, tuple(slice(None) for _ in shape)).dtype for name, shape in tensors.shapes().items()} == {np.dtype(np.float16)}


def test_the_metrics_and_the_probe_load_and_read(trained):
    weights = trained / "checkpoints" / "metrics"
    metric = MetricEncoders.load(weights / "dino", weights / "clip", compute=Compute(), dino_preprocessing="dreambench")
    pictures = dataset.held_out(SIZE).pictures[:5]
    assert metric.dino(list(pictures)).shape == (5, 32) and metric.clip_text(["a dog in the snow"]).shape == (1, 16)
    probes = Probes.load(weights / "probes")
    read = evaluation.read(probes, [picture.repeat(2, 0).repeat(2, 1) for picture in pictures])  # resized to what the probe learned from
    assert set(read) == set(ATTRIBUTES)
    assert all(value in ATTRIBUTES[name] for name, values in read.items() for value in values)


@pytest.mark.parametrize("recipe", ["sd3", "sdxl", "student"])
def test_the_generators_draw_with_what_was_trained(trained, recipe):
    """The checkpoints are a whole pipeline: loaded by the learners, it draws, and not what it would draw with the weights it began with."""
    config, base = small_config(recipe, trained), trained / recipe / "pretraining" / "base"
    if recipe == "student":
        make, fields, begun = learners.student, config.student, base / "gpt.safetensors"
        options = dict(guidance_scale=2.0, top_k=0, top_p=1.0, temperature=1.0)
    else:
        make, fields, begun, options = learners.supervisor, config.supervisor, base, dict(steps=2, guidance_scale=2.0)
    drawn = []
    for start in (None, begun):
        if start is not None:
            fields["gpt" if recipe == "student" else "checkpoint"] = str(start)
        learner = make(config, trained)
        text = learner.encode_prompts(["a dog", "a cat in the snow", ""])
        rows, empty = {k: v[:2] for k, v in text.items()}, {k: v[2:] for k, v in text.items()}
        drawn.append(learner.draw(learner.load_model(lambda name: jnp.float32), rows, empty, 0, np.arange(2), options))
    assert drawn[0].shape == (2, SIZE, SIZE, 3) and not np.array_equal(*drawn)


def test_the_autoencoder_says_how_its_latents_are_scaled(trained):
    folder = trained / "checkpoints" / "supervisor" / "vae"
    model = hub.load_pretrained(folder, AutoencoderKL, AutoencoderKLConfig, autoencoder_kl.table, compute=Compute())
    pictures = dataset.world(0, 512, SIZE, trained / "pictures").pictures  # what the scale was measured on
    scaled = np.asarray(model.scale(model.moments(autoencoders.to_pixels(jnp.asarray(pictures)))[0]))
    assert abs(scaled.mean()) < 0.02 and abs(scaled.std() - 1) < 0.02


def test_other_fields_of_a_learner_are_other_inputs(trained):
    config = small_config("student", trained)
    before = pretraining.inputs(config, trained / "student")
    config.proxy_tuning.class_dropout = 0.5
    assert pretraining.inputs(config, trained / "student") != before
    config.pretraining.recipe = "gan"
    with pytest.raises(contract.StageError, match="'gan'; known: vq, kl"):
        pretraining.inputs(config, trained / "student")
