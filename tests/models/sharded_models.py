"""Run as a program on 8 virtual devices: every model's outputs, and denoisers' and decoders' gradients, with and without a mesh.

It prints one JSON line of largest errors.

The batch has one row a device of the mesh's batch axes: the least there can be, where XLA's partitioner has gone wrong before.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from proxy_jax import sharding
from proxy_jax.models import parameters
from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.chameleon import Chameleon, ChameleonConfig
from proxy_jax.models.clip import CLIP, CLIPConfig
from proxy_jax.models.flux import FluxConfig, FluxTransformer
from proxy_jax.models.layers import Compute
from proxy_jax.models.llamagen import LlamaGen, LlamaGenConfig
from proxy_jax.models.mmdit import SD3Config, SD3Transformer
from proxy_jax.models.t5 import T5Config, T5Encoder
from proxy_jax.models.unet import UNet, UNetConfig
from proxy_jax.models.vit import ViT, ViTConfig
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.students.decoding import Sampling
from proxy_jax.students.lumina_mgpt import generate
from proxy_jax.students.lumina_tokens import Vocabulary

ROWS, COMPUTE = 4, Compute(remat="none")
TEXT = dict(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12)
VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8)
SD3 = dict(sample_size=8, num_attention_heads=4, attention_head_dim=16, joint_attention_dim=32, caption_projection_dim=64, pooled_projection_dim=32)
SD3 |= dict(patch_size=2, in_channels=4, out_channels=4, pos_embed_max_size=8)
UNET = dict(block_out_channels=(32, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1, norm_num_groups=8)
UNET |= dict(up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2), attention_head_dim=(2, 4))
UNET |= dict(cross_attention_dim=32, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8)
UNET |= dict(projection_class_embeddings_input_dim=80)

LUMINA = ChameleonConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, qk_norm_rows=4)


def draws(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=(ROWS, *shape)).astype(np.float32)


def ids(length: int, top: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, top, (ROWS, length)).astype(np.int32)


def sd3(model, latents, text, pooled):
    return model(latents, jnp.asarray([10.0, 200.0, 500.0, 990.0]), text, pooled)


def flux(model, latents, text, pooled):
    return model(latents, jnp.asarray([10.0, 200.0, 500.0, 990.0]), text, pooled, jnp.asarray([1.0, 2.0, 3.5, 7.0]))


def flux_model() -> FluxTransformer:
    sizes = dict(num_layers=2, num_single_layers=2, num_attention_heads=4, attention_head_dim=16, axes_dims_rope=(4, 4, 8))
    config = FluxConfig(**sizes, joint_attention_dim=32, pooled_projection_dim=32, in_channels=16, guidance_embeds=True)
    return FluxTransformer(config, compute=COMPUTE, rngs=nnx.Rngs(0))


def unet(model, latents, text, pooled, time_ids):
    return model(latents, jnp.asarray([10.0, 200.0, 500.0, 990.0]), text, pooled, time_ids)


def llamagen(model, caption, mask, image_tokens):
    return model.logits(model.hidden_states(caption, mask, image_tokens, grid=3))


def sdxl() -> UNet:
    return UNet(UNetConfig(**UNET), compute=COMPUTE, rngs=nnx.Rngs(0))


def gpt() -> LlamaGen:
    config = LlamaGenConfig(dim=64, n_layer=2, n_head=4, vocab_size=64, caption_dim=32, cls_token_num=6, multiple_of=32)
    return LlamaGen(config, compute=COMPUTE, rngs=nnx.Rngs(0))


def chameleon(model, ids, mask):
    return model.logits(model.hidden_states(model.embed(ids), mask))


def lumina(model, ids, mask):
    """The logits of each step of decoding a picture with guidance: its tokens and the cache on the way."""
    vocabulary = Vocabulary(begin_text=0, end_turn=1, begin_image=2, end_image=3, new_line=4, sizes=(5, 6, 7), image=tuple(range(8, 40)))
    options = dict(vocabulary=vocabulary, grid=(2, 2), sampling=Sampling(guidance_scale=3.0, top_k=0, temperature=0), collect_logits=True)
    _, logits = generate(model, {"prompt": ids, "prompt_mask": mask}, jax.random.key(0), jnp.arange(len(ids)), **options)
    return jnp.where(jnp.isfinite(logits), logits, 0)


def cases() -> dict:
    """name -> (make model, function of model and inputs, inputs)."""
    t5 = T5Config(vocab_size=50, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, feed_forward_proj="gated-gelu")
    vit = ViTConfig(**VISION, hidden_act="gelu", qkv_bias=True, layer_norm_eps=1e-12)
    clip = CLIPConfig(projection_dim=16, text_config=TEXT | dict(hidden_act="gelu"), vision_config=VISION | dict(hidden_act="gelu"))
    lumina_inputs = (ids(9, 64), np.arange(6) >= np.asarray([0, 2, 5, 6])[:, None])  # the last row has no prompt at all
    vae = AutoencoderKLConfig(block_out_channels=(16, 32), latent_channels=4, layers_per_block=1, norm_num_groups=8)
    vq = VQConfig(ch=32, ch_mult=(1, 2), z_channels=32, codebook_size=64, codebook_embed_dim=8, num_res_blocks=1)
    sd3_inputs, image, rngs = (draws(8, 8, 4), draws(5, 32), draws(32)), draws(16, 16, 3), lambda: nnx.Rngs(0)
    unet_inputs = (*sd3_inputs, 100 * np.abs(draws(6)))
    gpt_inputs = (draws(6, 32), np.ones((ROWS, 6), bool), ids(8, 64))
    return {
        "sd3": (lambda: SD3Transformer(SD3Config(**SD3, num_layers=3), compute=COMPUTE, rngs=rngs()), with_gradient(sd3), sd3_inputs),
        "sd35": (
            lambda: SD3Transformer(SD3Config(**SD3, num_layers=4, qk_norm="rms_norm", dual_attention_layers=(0, 1)), compute=COMPUTE, rngs=rngs()),
            sd3,
            sd3_inputs,
        ),
        "flux": (flux_model, flux, sd3_inputs),
        "unet": (sdxl, unet, unet_inputs),
        "flux_gradient": (flux_model, with_gradient(flux), sd3_inputs),
        "unet_gradient": (sdxl, with_gradient(unet), unet_inputs),
        "llamagen": (gpt, with_gradient(llamagen), gpt_inputs),
        "chameleon": (lambda: Chameleon(LUMINA, compute=COMPUTE, rngs=rngs()), with_gradient(chameleon), lumina_inputs),
        "t5": (lambda: T5Encoder(t5, compute=COMPUTE, rngs=rngs()), lambda model, tokens: model(tokens), (ids(9, 50),)),
        "vit": (lambda: ViT(vit, compute=COMPUTE, rngs=rngs()), lambda model, pixels: model(pixels), (image,)),
        "clip": (lambda: CLIP(clip, compute=COMPUTE, rngs=rngs()), lambda m, p, t: (m.image_features(p), m.text_features(t)), (image, ids(12, 50))),
        "vae": (lambda: AutoencoderKL(vae, compute=COMPUTE, rngs=rngs()), lambda m, x: (m.moments(x), m.decode(m.moments(x)[0])), (image,)),
        "vq": (lambda: VQModel(vq, compute=COMPUTE, rngs=rngs()), lambda m, x: (m.latents(x), m.decode(m.encode(x))), (image,)),
        "lumina_decoding": (lambda: Chameleon(LUMINA, compute=COMPUTE, rngs=rngs()), lumina, (ids(6, 64), lumina_inputs[1])),
    }


def with_gradient(function):
    """A function's output, and the gradient of its mean square in every parameter."""

    def run(model, *inputs):
        def loss(values):
            output = function(parameters.with_arrays(model, values), *inputs)
            return jnp.mean(jnp.square(output)), output

        values = parameters.arrays(model, lambda name, variable: isinstance(variable, nnx.Param))
        gradient, output = jax.grad(loss, has_aux=True)(values)
        return output, gradient

    return run


def placed(model: nnx.Module, mesh) -> nnx.Module:
    """The model with its parameters laid out as the weights engine does."""
    values = {}
    for name, variable in parameters.variables(model).items():
        value = parameters.value(variable)
        values[name] = jax.device_put(value, sharding.parameter(name, parameters.axes(variable), value.shape, value.dtype.itemsize, mesh))
    return parameters.with_arrays(model, values)


def main() -> None:
    mesh, errors = sharding.make_mesh(2, 2, 2), {}
    for name, (make, function, inputs) in cases().items():
        model = parameters.random(make, seed=0)
        run = parameters.jit(function)
        whole = jax.tree.map(np.asarray, run(model, *inputs))
        with sharding.use(mesh):
            split = run(placed(model, mesh), *sharding.put_batch(inputs, mesh))
        gaps = jax.tree.map(lambda a, b: float(np.abs(a - np.asarray(b)).max() / max(1.0, np.abs(a).max())), whole, split)
        errors[name] = max(jax.tree.leaves(gaps))
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
