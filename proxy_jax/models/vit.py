"""ViT (Dosovitskiy et al., arXiv 2010.11929) without a pooler, as DINO (arXiv 2104.14294) and DINOv2 (arXiv 2304.07193) use it.

DINOv2 differs by a learned scale on each branch (`layerscale_value`), and in the names of its tensors.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.clip import Block
from proxy_jax.models.layers import Buffer, Compute, Conv, LayerNorm, scan_layers, stack, tokens

INTERPOLATIONS = ("size", "scale")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Field names as in the official config.json of ViTModel and Dinov2Model. Raises ValueError for a SwiGLU MLP (DINOv2 giant)."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int | None = None  # ViT; DINOv2 gives mlp_ratio instead
    mlp_ratio: int = 4
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-12
    layerscale_value: float | None = None  # a number makes it a DINOv2
    use_swiglu_ffn: bool = False

    def __post_init__(self):
        if self.use_swiglu_ffn:
            raise ValueError("use_swiglu_ffn: only the plain MLP (DINOv2 small, base, large) is supported")

    @property
    def mlp_width(self) -> int:
        """Width of the MLPs' middle."""
        return self.hidden_size * self.mlp_ratio if self.intermediate_size is None else self.intermediate_size

    @property
    def grid(self) -> int:
        """Patches along one side of an image of `image_size`."""
        return self.image_size // self.patch_size


def bicubic_matrix(n_in: int, n_out: int, step: float) -> np.ndarray:
    """Matrix [n_out, n_in] of torch's bicubic interpolation along one axis: half-pixel centres, border clamped, no antialiasing.

    step: input samples per output sample. The kernel is Keys' with a = -0.75 (jax.image.resize has a = -0.5).
    """
    a = -0.75
    source = (np.arange(n_out) + 0.5) * step - 0.5
    matrix = np.zeros((n_out, n_in))
    for tap in range(-1, 3):
        index = np.floor(source) + tap
        d = np.abs(source - index)
        near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(matrix, (np.arange(n_out), np.clip(index, 0, n_in - 1).astype(int)), np.where(d <= 1, near, far))
    return matrix.astype(np.float32)


class ViT(nnx.Module):
    """The encoder. Images of any size: position embeddings of another grid are interpolated.

    interpolation: "size": the exact ratio of the grids (transformers 5); "scale": the original DINO's scale factor, whose sampling
    grid is that of 0.1 patches more. Raises ValueError for another one.
    """

    def __init__(self, config: ViTConfig, *, interpolation: str = "size", compute: Compute = Compute(), rngs: nnx.Rngs):
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is one of {INTERPOLATIONS}, not {interpolation!r}")
        self.config, self.compute, self.interpolation = config, compute, interpolation
        width, patch = config.hidden_size, config.patch_size
        self.patch = Conv(config.num_channels, width, patch, stride=patch, rngs=rngs)
        self.class_embed = nnx.Param(parameters.initial(jax.random.normal, rngs, (1, 1, width)) * 0.02, axes=("scalar", "position", "embed"))
        positions = parameters.initial(jax.random.normal, rngs, (1, 1 + config.grid**2, width)) * 0.02
        self.position_embed = nnx.Param(positions, axes=("scalar", "position", "embed"))
        # DINOv2 masks patches with it in pre-training only; kept so that an export is complete
        self.mask_token = None if config.layerscale_value is None else Buffer(jnp.zeros((1, width)), axes=("position", "embed"))

        def make(rngs: nnx.Rngs) -> Block:
            options = dict(activation=config.hidden_act, eps=config.layer_norm_eps, qkv_bias=config.qkv_bias, layer_scale=config.layerscale_value)
            return Block(width, config.mlp_width, config.num_attention_heads, **options, rngs=rngs)

        self.blocks = stack(make, config.num_hidden_layers, rngs)
        self.norm = LayerNorm(width, eps=config.layer_norm_eps)

    def positions(self, height: int, width: int) -> jax.Array:
        """Position embeddings [1, 1 + height * width, d], float32, for a grid of height x width patches."""
        table, grid = self.position_embed[...].astype(jnp.float32), self.config.grid
        if (height, width) == (grid, grid):
            return table
        more = 0.1 if self.interpolation == "scale" else 0.0
        rows, columns = (bicubic_matrix(grid, n, grid / (n + more)) for n in (height, width))
        patches = rearrange(table[0, 1:], "(h w) d -> h w d", h=grid)
        patches = jnp.einsum("ih,jw,hwd->ijd", rows, columns, patches, precision="highest")
        return jnp.concatenate([table[:, :1], rearrange(patches, "i j d -> 1 (i j) d")], axis=1)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Normed states [b, 1 + n, d], the class token first, of normalised pixels [b, height, width, 3]; n patches of whole size fit in."""
        x = self.patch(pixels.astype(self.compute.dtype))
        b, height, width, d = x.shape
        first = jnp.broadcast_to(self.class_embed[...].astype(x.dtype), (b, 1, d))
        x = jnp.concatenate([first, rearrange(x, "b h w d -> b (h w) d")], axis=1)
        x = tokens(x + self.positions(height, width).astype(x.dtype))
        x, _ = scan_layers(self.blocks, lambda block, x, _: (block(x), None), x, compute=self.compute)
        return self.norm(x)
