"""The losses of pre-training on hand-made numbers, and the codebook's centres."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.pretraining import autoencoders, contrast


def test_reconstruction_loss_of_a_constant_error():
    pixels = jnp.zeros((2, 16, 16, 3))
    loss = autoencoders.reconstruction_loss(pixels + jnp.array([0.5, 0.0])[:, None, None, None], pixels)
    assert np.asarray(loss) == pytest.approx([0.5 + 2 * 0.25, 0.0])  # no edges


def test_an_error_in_the_middle_weighs_more_than_at_the_border():
    pixels = jnp.zeros((2, 16, 16, 3))
    wrong = pixels.at[0, 8, 8].set(1.0).at[1, 0, 0].set(1.0)
    middle, corner = autoencoders.reconstruction_loss(wrong, pixels)
    # The corner pixel has two neighbours, the middle one four: compare the part without edges.
    assert middle > 1.5 * autoencoders.CENTRE_WEIGHT / 2 * corner


def test_edges_count_where_neighbours_differ():
    pixels = jnp.zeros((1, 16, 16, 3))
    flat = autoencoders.reconstruction_loss(pixels + 0.5, pixels)[0]
    stripes = autoencoders.reconstruction_loss(pixels + 0.5 * jnp.where(jnp.arange(16) % 2, 1.0, -1.0)[:, None], pixels)[0]
    assert float(stripes) == pytest.approx(float(flat) + 0.5 * 1.0, rel=1e-5)


def test_centres_of_clear_clusters_are_found_and_none_is_empty():
    rng = np.random.default_rng(0)
    true = np.eye(4, dtype=np.float32)
    points = np.repeat(true, 50, axis=0) + 0.05 * rng.normal(size=(200, 4)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    centres = autoencoders.sphere_centres(points, 8, seed=0)
    assert np.linalg.norm(centres, axis=1) == pytest.approx(np.ones(8), abs=1e-5)
    nearest = (points @ centres.T).argmax(1)
    assert set(nearest) == set(range(8)), "every centre has points"
    assert ((centres @ true.T).max(1) > 0.98).all() and ((centres @ true.T).max(0) > 0.98).all()
    assert np.array_equal(centres, autoencoders.sphere_centres(points, 8, seed=0))


def test_psnr_of_known_errors():
    image = np.full((1, 4, 4, 3), 100, np.uint8)
    assert autoencoders.psnr(image + np.uint8(20), image)[0] == pytest.approx(20 * np.log10(255 / 20))
    assert autoencoders.psnr(image, image + np.uint8(20))[0] == pytest.approx(20 * np.log10(255 / 20)), "no difference wraps around"


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKL:
    config = AutoencoderKLConfig(block_out_channels=(32, 32), latent_channels=4, use_quant_conv=False, use_post_quant_conv=False)
    return parameters.random(lambda: AutoencoderKL(config, rngs=nnx.Rngs(0)), 3)


def test_a_tokenizer_begins_as_the_autoencoder_where_they_agree(autoencoder):
    config = VQConfig(ch=32, ch_mult=(1, 1), z_channels=32, codebook_size=16, num_res_blocks=1)
    model = parameters.random(lambda: VQModel(config, rngs=nnx.Rngs(0)), 4)
    begun, given = parameters.arrays(autoencoders.begun_as(model, autoencoder)), parameters.arrays(autoencoder)
    same = {name for name in begun if name in given and np.array_equal(begun[name], given[name])}
    own = {name for name, array in parameters.arrays(model).items() if np.array_equal(array, begun[name])}
    assert "encoder.levels.0.blocks.0.conv1.kernel" in same and "decoder.conv_out.kernel" in same
    assert "codebook.embedding" in own and "encoder.conv_out.kernel" in own, "of another shape or not there"
    assert autoencoders.begun_as(model, None) is model


def test_the_kl_loss_pulls_latents_to_the_standard_normal(autoencoder):
    pictures = jnp.asarray(np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8))
    batch = {"pictures": pictures, "row_index": jnp.arange(2)}
    loss = autoencoders.kl_loss(autoencoder, batch, jax.random.key(0))
    mean, logvar = autoencoder.moments(autoencoders.to_pixels(pictures))
    noise = jnp.stack([jax.random.normal(jax.random.fold_in(jax.random.key(0), row), mean.shape[1:]) for row in range(2)])
    drawn = autoencoder.decode(mean + jnp.exp(0.5 * logvar) * noise)
    divergence = -0.5 * (1 + logvar - mean**2 - jnp.exp(logvar)).mean((1, 2, 3))
    expected = autoencoders.reconstruction_loss(drawn, autoencoders.to_pixels(pictures)) + autoencoders.KL_WEIGHT * divergence
    assert np.asarray(loss) == pytest.approx(np.asarray(expected), rel=1e-4)


def test_contrast_is_the_cross_entropy_of_both_directions():
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(5, 8)).astype(np.float32) for _ in range(2))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right)]
    logits = unit[0] @ unit[1].T * 7.0
    rows = -np.diag(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    columns = -np.diag(logits - np.log(np.exp(logits).sum(0, keepdims=True)))
    assert np.asarray(contrast.contrast(left, right, jnp.eye(5), 7.0)) == pytest.approx((rows + columns) / 2, rel=1e-4)


def test_equal_captions_are_no_negatives():
    """Two rows with one caption and one picture embedding: told apart they cost ln 2, shared they cost only the entropy of their target."""
    left = right = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    captions = jnp.array([4, 4, 9])
    alone = np.asarray(contrast.contrast(left, right, jnp.eye(3), 50.0))
    shared = np.asarray(contrast.contrast(left, right, contrast._same(captions), 50.0))
    assert alone[:2] == pytest.approx([np.log(2)] * 2, abs=1e-3) and shared == pytest.approx([np.log(2), np.log(2), 0.0], abs=1e-3)
    apart = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    assert contrast.contrast(apart, apart, contrast._same(captions), 50.0)[0] > 10, "a caption's rows are pulled together"
