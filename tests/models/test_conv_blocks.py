"""What the convolutional blocks have beyond the autoencoders' use, against diffusers' blocks (the autoencoders' tests cover the rest)."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models.conv_blocks import Downsample, ResnetBlock
from proxy_jax.weights.conv_blocks import resnet
from proxy_jax.weights.table import Table, conv, linear, load


class StateDict:
    """A torch module's parameters, as the loader wants them."""

    def __init__(self, module):
        self.arrays = {f"block.{name}": tensor.numpy() for name, tensor in module.state_dict().items()}

    def shapes(self):
        return {name: array.shape for name, array in self.arrays.items()}

    def read(self, name, index):
        return self.arrays[name][index]


class Holder(nnx.Module):
    def __init__(self, block):
        self.block = block


@pytest.fixture
def torch():
    torch = pytest.importorskip("torch", reason="diffusers' PyTorch blocks are the oracle")
    torch.manual_seed(0)
    return torch


def nchw(torch, x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


@pytest.mark.parametrize("n_out", [8, 12])
def test_residual_block_with_time_embedding(torch, n_out):
    blocks = pytest.importorskip("diffusers.models.resnet", reason="diffusers' PyTorch blocks are the oracle")
    oracle = blocks.ResnetBlock2D(in_channels=8, out_channels=n_out, temb_channels=6, groups=4, eps=1e-5)
    rng = np.random.default_rng(0)
    x, time = rng.normal(size=(2, 5, 7, 8)).astype(np.float32), rng.normal(size=(2, 6)).astype(np.float32)
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = np.moveaxis(oracle(nchw(torch, x), torch.from_numpy(time)).numpy(), 1, -1)
    entries = resnet("block", "block", shortcut="conv_shortcut" if n_out != 8 else None) + linear("block.time_emb_proj", "block.time")
    make = lambda: Holder(ResnetBlock(8, n_out, groups=4, eps=1e-5, time_dim=6, rngs=nnx.Rngs(0)))  # noqa: E731
    block = load(make, Table(tuple(entries)), StateDict(oracle)).block
    np.testing.assert_allclose(block(jnp.asarray(x), jnp.asarray(time)), expected, atol=1e-5)
    assert np.abs(block(jnp.asarray(x), jnp.zeros_like(time)) - expected).max() > 1e-2


def test_symmetric_downsampling(torch):
    blocks = pytest.importorskip("diffusers.models.downsampling", reason="diffusers' PyTorch blocks are the oracle")
    oracle = blocks.Downsample2D(4, use_conv=True, padding=1, name="op")
    x = np.random.default_rng(0).normal(size=(2, 6, 9, 4)).astype(np.float32)
    with torch.no_grad():
        expected = np.moveaxis(oracle(nchw(torch, x)).numpy(), 1, -1)
    make = lambda: Holder(Downsample(4, symmetric=True, rngs=nnx.Rngs(0)))  # noqa: E731
    block = load(make, Table(tuple(conv("block.conv", "block.conv"))), StateDict(oracle)).block
    np.testing.assert_allclose(block(jnp.asarray(x)), expected, atol=1e-5)
