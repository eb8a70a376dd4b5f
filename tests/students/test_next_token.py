"""The next-token loss: in chunks the same as whole, and memory that grows neither with the length nor with the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models.layers import Dense
from proxy_jax.students.next_token import CHUNK_ELEMENTS, next_token_loss

WIDTH, Z_LOSS = 8, 1e-2


def make_head(vocab: int) -> Dense:
    return Dense(WIDTH, vocab, bias=False, axes=("embed", "vocab"), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("chunk", [1, 3, 4, None])
def test_chunked_loss_equals_the_whole_and_so_do_its_gradients(chunk):
    rng, head = np.random.default_rng(2), make_head(40)
    hidden = jnp.asarray(rng.normal(size=(2, 7, WIDTH)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 40, (2, 7)))

    def whole(hidden):
        logits = head(hidden)
        entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
        return entropy + Z_LOSS * jax.nn.logsumexp(logits, -1) ** 2

    def chunked(hidden):
        return next_token_loss(hidden, head, targets, chunk, z_loss=Z_LOSS)

    np.testing.assert_allclose(chunked(hidden), whole(hidden), atol=1e-5)
    ours, expected = (jax.grad(lambda hidden, loss=loss: loss(hidden).sum())(hidden) for loss in (chunked, whole))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_memory_is_flat_in_length_and_vocabulary():
    """The compiled backward pass, head included: of 4 × 4096 positions' 4 GiB of logits over 65536 tokens it holds two chunks."""

    def peak(vocab, length):
        graph, state = nnx.split(nnx.eval_shape(lambda: make_head(vocab)))
        step = jax.jit(jax.grad(lambda hidden, state, targets: next_token_loss(hidden, nnx.merge(graph, state), targets).sum(), argnums=(0, 1)))
        shapes = jax.ShapeDtypeStruct((4, length, WIDTH), jnp.float32), state, jax.ShapeDtypeStruct((4, length), jnp.int32)
        return step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    most = peak(65536, 4096)
    assert most < 2.2 * 4 * CHUNK_ELEMENTS < 4 * 4 * 4096 * 65536 / 10
    for vocab, length in ((65536, 1024), (8192, 4096)):
        assert abs(peak(vocab, length) / most - 1) < 0.05
