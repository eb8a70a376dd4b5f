"""The LlamaGen student: cached decoding against teacher forcing, batches against single prompts, and the loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.layers import Compute, subject_embed
from proxy_jax.models.llamagen import LlamaGen, LlamaGenConfig
from proxy_jax.students.decoding import Sampling, guide
from proxy_jax.students.llamagen import LlamaGenStudent, caption_of, generate, left_pad
from proxy_jax.students.subjects import subject_rows

GRID, SLOTS = 3, 6
CONFIG = LlamaGenConfig(dim=32, n_layer=2, n_head=4, vocab_size=40, caption_dim=16, cls_token_num=SLOTS, multiple_of=16)


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen(CONFIG, compute=Compute(remat="none"), rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def captions():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, SLOTS, CONFIG.caption_dim)).astype(np.float32)
    return left_pad(features, np.arange(SLOTS) < np.asarray([2, 6, 4])[:, None])


@functools.partial(parameters.jit, static_argnames=("sampling",))
def draw(model, caption, mask, indices, *, sampling):
    return generate(model, caption, mask, jax.random.key(7), indices, grid=GRID, sampling=sampling, collect_logits=True)


@parameters.jit
def teacher_forced(model, caption, mask, tokens, drop):
    hidden = model.hidden_states(caption, mask, tokens[:, :-1], grid=GRID, drop=drop)
    return model.logits(hidden[:, SLOTS - 1 :])


def test_left_pad_puts_valid_rows_last():
    features = np.arange(1, 9, dtype=np.float32).reshape(1, 4, 2)
    out, mask = left_pad(features, np.asarray([[1, 1, 0, 0]]))
    np.testing.assert_array_equal(out[0], [[0, 0], [0, 0], [1, 2], [3, 4]])
    np.testing.assert_array_equal(mask, [[False, False, True, True]])


def test_subject_rows_number_the_pieces_of_each_token():
    ids = np.asarray([[3, 7, 5, 7, 9, 1], [7, 5, 3, 7, 1, 0], [7, 7, 7, 5, 5, 7]])
    np.testing.assert_array_equal(subject_rows(ids, {"a": [7, 5], "b": [9]}), [[0, 1, 2, 0, 3, 0], [1, 2, 0, 0, 0, 0], [0, 0, 1, 2, 0, 0]])
    assert not subject_rows(ids, {"a": [7, 5, 9]}).any() and not subject_rows(ids, {}).any()


def test_learned_features_stand_in_their_places_only(model, captions):
    caption, mask = captions
    rows = np.zeros((3, SLOTS), np.int32)
    rows[0, 4:6], rows[2, 3] = (1, 2), 2
    learned = np.random.default_rng(3).normal(size=(2, CONFIG.caption_dim)).astype(np.float32)
    own = LlamaGen(CONFIG, compute=Compute(remat="none"), rngs=nnx.Rngs(0))
    own.subject_embed = subject_embed(learned)
    expected = caption.copy()
    expected[0, 4:6], expected[2, 3] = learned, learned[1]
    text = {"caption": caption, "caption_mask": mask, "subject_rows": rows}
    np.testing.assert_array_equal(caption_of(own, text), expected)
    np.testing.assert_array_equal(caption_of(model, text), caption)
    batch = text | {"tokens": jnp.zeros((3, GRID**2), jnp.int32), "row_index": jnp.arange(3)}
    student = made(0.0)
    losses = [student.loss(model, batch | {"caption": features}, jax.random.key(0)) for features in (expected, caption)]
    np.testing.assert_allclose(student.loss(own, batch, jax.random.key(0)), losses[0], atol=1e-6)
    assert abs(losses[0] - losses[1])[0] > 1e-4


def made(class_dropout: float) -> LlamaGenStudent:
    """A student without files: enough for its loss."""
    common = dict(resolution=48, class_dropout=class_dropout, dropout=0.0, compute=Compute())
    return LlamaGenStudent(gpt=None, vq=None, text_encoder=None, **common)


def test_cached_decoding_equals_teacher_forcing(model, captions):
    sampling = Sampling(guidance_scale=3.0, top_k=10)
    tokens, logits = draw(model, *captions, jnp.arange(3), sampling=sampling)
    conditional, unconditional = (teacher_forced(model, *captions, tokens, jnp.full(3, drop)) for drop in (False, True))
    np.testing.assert_allclose(logits, guide(conditional, unconditional, 3.0), atol=1e-4)
    assert len({tuple(row) for row in np.asarray(tokens).tolist()}) == 3


@pytest.mark.parametrize("sampling", [Sampling(guidance_scale=3.0, top_k=10), Sampling(guidance_scale=1.0, temperature=0)], ids=["seeded", "greedy"])
def test_a_prompt_alone_gives_its_tokens_in_a_batch(model, captions, sampling):
    caption, mask = captions
    together, _ = draw(model, caption, mask, jnp.asarray([5, 6, 7]), sampling=sampling)
    for row in range(3):
        alone, _ = draw(model, caption[row : row + 1], mask[row : row + 1], jnp.asarray([5 + row]), sampling=sampling)
        np.testing.assert_array_equal(alone[0], together[row])


def test_padding_of_the_caption_changes_nothing(model, captions):
    caption, mask = captions
    tokens = jnp.zeros((3, GRID**2), jnp.int32)
    noisy = np.where(mask[..., None], caption, 99.0).astype(np.float32)
    drop = jnp.zeros(3, bool)
    np.testing.assert_allclose(teacher_forced(model, noisy, mask, tokens, drop), teacher_forced(model, caption, mask, tokens, drop), atol=1e-5)


def test_loss_is_cross_entropy_and_class_dropout_hides_the_caption(model, captions):
    caption, mask = captions
    tokens = jax.random.randint(jax.random.key(1), (3, GRID**2), 0, CONFIG.vocab_size)
    batch = {"caption": caption, "caption_mask": mask, "tokens": tokens, "row_index": jnp.arange(3)}
    for rate in (0.0, 1.0):
        log_p = jax.nn.log_softmax(teacher_forced(model, caption, mask, tokens, jnp.full(3, rate == 1.0)))
        expected = -jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0].mean(-1)
        np.testing.assert_allclose(made(rate).loss(model, batch, jax.random.key(0)), expected, atol=1e-5)


def test_dropout_changes_the_states_only_with_a_key(model, captions):
    caption, mask = captions
    tokens = jnp.zeros((3, GRID**2 - 1), jnp.int32)
    plain = model.hidden_states(caption, mask, tokens, grid=GRID, dropout_rate=0.5)
    keys = [jax.random.split(jax.random.key(seed), 3) for seed in (0, 0, 1)]
    dropped = [model.hidden_states(caption, mask, tokens, grid=GRID, dropout_rate=0.5, keys=k) for k in keys]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.abs(dropped[0] - dropped[2]).max() > 0.1 and np.abs(dropped[0] - plain).max() > 0.1
    alone = model.hidden_states(caption[1:2], mask[1:2], tokens[1:2], grid=GRID, dropout_rate=0.5, keys=jax.random.split(jax.random.key(0), 3)[1:2])
    np.testing.assert_allclose(alone[0], dropped[0][1], atol=1e-5)


def test_another_prompt_of_the_same_batch_size_compiles_nothing(model, captions):
    caption, mask = captions
    sampling = Sampling(guidance_scale=3.0, top_k=10)
    draw(model, caption, mask, jnp.arange(3), sampling=sampling)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None)
    tokens, _ = draw(model, caption[::-1].copy(), mask[::-1].copy(), jnp.asarray([3, 4, 5]), sampling=sampling)
    jax.block_until_ready(tokens)
    assert compiled == []
    jax.block_until_ready(draw(model, caption[:2], mask[:2], jnp.arange(2), sampling=sampling))
    assert compiled, "a new batch size must compile: the listener hears nothing"
