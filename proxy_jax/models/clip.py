"""CLIP's text and vision encoders (Radford et al., arXiv 2103.00020), as transformers lays them out; OpenCLIP's text towers too.

Both towers are pre-norm transformers with the same block. Diffusion models condition on the text tower's penultimate states.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.attention import Segments, attention, key_segments
from proxy_jax.models.layers import ACTIVATIONS, Compute, Conv, Dense, Embed, LayerNorm, scan_layers, stack, tokens, with_subjects
from proxy_jax.sharding import constrain

LEGACY_EOS = 2  # what config.json says in older exports, whatever the tokenizer's end token is


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig:
    """Field names as in the official config.json; the defaults are transformers' own."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    bos_token_id: int = 49406
    pad_token_id: int = 1
    projection_dim: int = 512


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Field names as in the official config.json; the defaults are transformers' own."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers. The nested configs may be given as the dicts of config.json; fields that we do not use are passed over."""

    text_config: CLIPTextConfig
    vision_config: CLIPVisionConfig
    projection_dim: int = 512

    def __post_init__(self):
        text, vision = _nested(CLIPTextConfig, self.text_config), _nested(CLIPVisionConfig, self.vision_config)
        # the joint space's width is this config's; the text config's own projection_dim is not used by CLIPModel
        object.__setattr__(self, "text_config", dataclasses.replace(text, projection_dim=self.projection_dim))
        object.__setattr__(self, "vision_config", vision)


def _nested(config_class: type, values):
    if isinstance(values, config_class):
        return values
    return config_class(**{field.name: values[field.name] for field in dataclasses.fields(config_class) if field.name in values})


class CLIPTextOutput(NamedTuple):
    """last_hidden [b, l, d] after the final norm; penultimate [b, l, d], the last layer's input; pooled [b, d], last_hidden at the
    end token; text_embeds [b, projection_dim], pooled projected (None without a projection).
    """

    last_hidden: jax.Array
    penultimate: jax.Array
    pooled: jax.Array
    text_embeds: jax.Array | None


class CLIPVisionOutput(NamedTuple):
    """last_hidden [b, 1 + n, d] without a final norm; pooled [b, d], the normed class row."""

    last_hidden: jax.Array
    pooled: jax.Array


class Block(nnx.Module):
    """Pre-norm attention and MLP with biases; `layer_scale`: the start value of a learned scale on each branch (DINOv2)."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        num_heads: int,
        *,
        activation: str,
        eps: float,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = LayerNorm(width, eps=eps)
        self.q = Dense(width, width, bias=qkv_bias, axes=("embed", "heads"), rngs=rngs)
        self.k = Dense(width, width, bias=qkv_bias, axes=("embed", "heads"), rngs=rngs)
        self.v = Dense(width, width, bias=qkv_bias, axes=("embed", "heads"), rngs=rngs)
        self.o = Dense(width, width, axes=("heads", "embed"), rngs=rngs)
        self.mlp_norm = LayerNorm(width, eps=eps)
        self.fc1 = Dense(width, mlp_width, axes=("embed", "mlp"), rngs=rngs)
        self.fc2 = Dense(mlp_width, width, axes=("mlp", "embed"), rngs=rngs)
        scaled = layer_scale is not None
        self.attention_scale = nnx.Param(jnp.full(width, layer_scale), axes=("scalar",)) if scaled else None
        self.mlp_scale = nnx.Param(jnp.full(width, layer_scale), axes=("scalar",)) if scaled else None
        self.num_heads, self.activation = num_heads, activation

    def __call__(self, x: jax.Array, *, segments: Segments | None = None, start: int | None = None) -> jax.Array:
        y = self.attention_norm(x)
        q, k, v = (rearrange(layer(y), "b l (h d) -> b l h d", h=self.num_heads) for layer in (self.q, self.k, self.v))
        q, k, v = (constrain(part, "batch", "length", "act_heads", "head_dim") for part in (q, k, v))
        attended = self.o(rearrange(attention(q, k, v, segments=segments, start=start), "b l h d -> b l (h d)"))
        x = x + _scaled(attended, self.attention_scale)
        y = ACTIVATIONS[self.activation](self.fc1(self.mlp_norm(x)))
        return tokens(x + _scaled(self.fc2(constrain(y, "batch", "length", "act_mlp")), self.mlp_scale))


def _scaled(x: jax.Array, scale: nnx.Param | None) -> jax.Array:
    return x if scale is None else x * scale[...].astype(x.dtype)


def _blocks(config: CLIPTextConfig | CLIPVisionConfig, rngs: nnx.Rngs) -> nnx.Module:
    def make(rngs: nnx.Rngs) -> Block:
        sizes = (config.hidden_size, config.intermediate_size, config.num_attention_heads)
        return Block(*sizes, activation=config.hidden_act, eps=config.layer_norm_eps, rngs=rngs)

    return stack(make, config.num_hidden_layers, rngs)


class CLIPText(nnx.Module):
    """The causal text tower; `projection` adds the matrix into the joint space (CLIPTextModelWithProjection)."""

    def __init__(self, config: CLIPTextConfig, *, projection: bool = True, compute: Compute = Compute(), rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        width = config.hidden_size
        self.token_embed = Embed(config.vocab_size, width, rngs=rngs)
        self.subject_embed = nnx.data(None)
        self.position_embed = Embed(config.max_position_embeddings, width, axes=("position", "embed"), rngs=rngs)
        self.blocks = _blocks(config, rngs)
        self.norm = LayerNorm(width, eps=config.layer_norm_eps)
        self.projection = Dense(width, config.projection_dim, bias=False, axes=("embed", "embed_out"), rngs=rngs) if projection else None

    def embed(self, input_ids: jax.Array) -> jax.Array:
        """Token plus position embeddings [b, l, d]; ids from vocab_size on are the rows of `subject_embed`.

        Raises ValueError if there are more tokens than positions.
        """
        length, limit = input_ids.shape[1], self.config.max_position_embeddings
        if length > limit:
            raise ValueError(f"{length} tokens; this CLIP text encoder has {limit} positions")
        x = self.token_embed(input_ids, self.compute.dtype)
        if self.subject_embed is not None:
            x = with_subjects(x, self.subject_embed, jnp.maximum(input_ids - (self.config.vocab_size - 1), 0))
        return tokens(x + self.position_embed(jnp.arange(length), self.compute.dtype))

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> CLIPTextOutput:
        """input_ids [b, l]; attention_mask [b, l]: 1 on the tokens to attend to, all by default (as diffusers calls it)."""
        x = self.embed(input_ids)
        segments = None if attention_mask is None else key_segments(attention_mask, input_ids.shape[1])

        def body(block: Block, carry: tuple[jax.Array, jax.Array], _):
            x, _previous = carry
            return (block(x, segments=segments, start=0), x), None

        (x, penultimate), _ = scan_layers(self.blocks, body, (x, x), compute=self.compute)
        last_hidden = self.norm(x)
        pooled = jnp.take_along_axis(last_hidden, self._end(input_ids)[:, None, None], axis=1)[:, 0]
        return CLIPTextOutput(last_hidden, penultimate, pooled, None if self.projection is None else self.projection(pooled))

    def _end(self, input_ids: jax.Array) -> jax.Array:
        """Index [b] of the first end token; by the legacy rule it is the highest id, which is a new token's where there is one (transformers)."""
        eos = self.config.eos_token_id
        return jnp.argmax(input_ids if eos == LEGACY_EOS else input_ids == eos, axis=-1)


class CLIPVision(nnx.Module):
    """The vision tower: a ViT with a norm before its blocks."""

    def __init__(self, config: CLIPVisionConfig, *, compute: Compute = Compute(), rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        width, patch = config.hidden_size, config.patch_size
        self.patch = Conv(config.num_channels, width, patch, stride=patch, bias=False, rngs=rngs)
        self.class_embed = nnx.Param(parameters.initial(jax.random.normal, rngs, (width,)) * 0.02, axes=("embed",))
        self.position_embed = Embed((config.image_size // patch) ** 2 + 1, width, axes=("position", "embed"), rngs=rngs)
        self.pre_norm = LayerNorm(width, eps=config.layer_norm_eps)
        self.blocks = _blocks(config, rngs)
        self.post_norm = LayerNorm(width, eps=config.layer_norm_eps)

    def __call__(self, pixels: jax.Array) -> CLIPVisionOutput:
        """pixels [b, image_size, image_size, 3], already normalised. Raises ValueError for another size."""
        size = self.config.image_size
        if pixels.shape[1:3] != (size, size):
            raise ValueError(f"images of {pixels.shape[1:3]} pixels; this CLIP vision encoder takes {size} x {size}")
        x = rearrange(self.patch(pixels.astype(self.compute.dtype)), "b h w d -> b (h w) d")
        first = jnp.broadcast_to(self.class_embed[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first, x], axis=1)
        x = self.pre_norm(tokens(x + self.position_embed(jnp.arange(x.shape[1]), x.dtype)))
        x, _ = scan_layers(self.blocks, lambda block, x, _: (block(x), None), x, compute=self.compute)
        return CLIPVisionOutput(x, self.post_norm(x[:, 0]))


class CLIP(nnx.Module):
    """Both towers with their projections into the joint space (CLIPModel)."""

    def __init__(self, config: CLIPConfig, *, compute: Compute = Compute(), rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        self.text = CLIPText(config.text_config, compute=compute, rngs=rngs)
        self.vision = CLIPVision(config.vision_config, compute=compute, rngs=rngs)
        width = config.vision_config.hidden_size
        self.vision_projection = Dense(width, config.projection_dim, bias=False, axes=("embed", "embed_out"), rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(2.6592), axes=())  # ln(1 / 0.07), the paper's start

    def image_features(self, pixels: jax.Array) -> jax.Array:
        """[b, projection_dim], not normalised, of normalised pixels [b, height, width, 3]."""
        return self.vision_projection(self.vision(pixels).pooled)

    def text_features(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """[b, projection_dim], not normalised, of input_ids [b, l] with their mask [b, l]."""
        return self.text(input_ids, attention_mask).text_embeds
