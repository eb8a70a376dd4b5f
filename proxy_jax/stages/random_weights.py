"""Random checkpoints of any size in the official layouts, for runs that check the machinery and not the pictures.

They hold what the published ones hold: the diffusers folder of SD3, SDXL or FLUX.1, LlamaGen's two files with FLAN-T5's folder, and the
transformers folders of the metric encoders; with tokenizers of single letters. Everything after this stage only sees files.
Where a seed can be None, the files hold names and shapes and no values.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, T5Tokenizer

from proxy_jax import processes
from proxy_jax.models import parameters
from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.chameleon import Chameleon, ChameleonConfig
from proxy_jax.models.clip import CLIP, CLIPConfig, CLIPText, CLIPTextConfig
from proxy_jax.models.flux import FluxConfig, FluxTransformer
from proxy_jax.models.llamagen import LlamaGen, LlamaGenConfig
from proxy_jax.models.mmdit import SD3Config, SD3Transformer
from proxy_jax.models.t5 import T5Config, T5Encoder
from proxy_jax.models.unet import UNet, UNetConfig
from proxy_jax.models.vit import ViT, ViTConfig
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.stages import contract, files
from proxy_jax.students import lumina_tokens
from proxy_jax.weights import autoencoder_kl, chameleon, chameleon_vqgan, clip, flux, hub, llamagen, mmdit, t5, unet, vit, vqgan
from proxy_jax.weights.table import Table, save

NAME = "random_weights"
OUTPUTS = ("supervisor", "student", "metrics")
CLIP_PARTS = {"tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"]}
CLIP_PARTS |= {"vae": ["diffusers", "AutoencoderKL"], "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}
SD3 = CLIP_PARTS | {  # the parts that model_index.json lists
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer_3": ["transformers", "T5Tokenizer"],
}
SDXL = CLIP_PARTS | {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
}
FLUX = CLIP_PARTS | {
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer_2": ["transformers", "T5Tokenizer"],
}
SDXL_SCHEDULER = {  # as published
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
FLUX_SCHEDULER = {  # as published
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}


def clip_tokenizer(length: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is the 256 bytes, the 256 that end a word, and the two marks: 514 tokens."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[], model_max_length=length)


def t5_tokenizer(length: int) -> T5Tokenizer:
    """A T5 tokenizer whose pieces are the word mark, lower-case letters, digits and common punctuation: 48 tokens."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,'\"-!?:"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def chameleon_tokenizer(codes: int) -> Tokenizer:
    """A text tokenizer with the marks, sizes and so many codes of pictures that Chameleon's has, and the 256 bytes: codes + 328 tokens."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    marks = [*lumina_tokens.NAMES.values(), *(f"<reserved{lumina_tokens.FIRST_SIZE + cells:05d}>" for cells in range(lumina_tokens.MOST_CELLS + 1))]
    names = ["<pad>", *(f"IMGIMG{str(code).translate(letters)}Z" for code in range(codes)), *marks, "</s>", *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False, use_regex=False), ByteLevelDecoder()
    tokenizer.add_special_tokens(marks)
    return tokenizer


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: the sizes and the seed."""
    return contract.fields(config, "seed", NAME)


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes random_weights/supervisor, /student and /metrics; of several processes the first does."""
    if not processes.is_first():
        return {}
    sizes, folder = config.random_weights.to_dict(), workdir / NAME
    generators(sizes, folder, config.seed)
    metrics(sizes["metrics"], folder / "metrics", config.seed)
    return {}


def generators(sizes: Mapping[str, Any], folder: Path, seed: int | None) -> None:
    """Writes the supervisor and the student."""
    supervisor(sizes["supervisor"], folder / "supervisor", seed)
    any_student(sizes["student"], folder / "student", seed)


def any_student(sizes: Mapping[str, Any], folder: Path, seed: int | None) -> None:
    """Writes LlamaGen, or, if its sizes are those, Lumina-mGPT."""
    (lumina_mgpt if "ddconfig" in sizes["vq"] else student)(sizes, folder, seed)


def _model(part: tuple, sizes: Mapping[str, Any], seed: int | None) -> tuple[nnx.Module, Table]:
    """A random model (without a seed its shapes) and its name table; part: (model class, config class, table of a config)."""
    model_class, config_class, table = part
    config = hub.config_from(config_class, sizes)
    return _random(lambda: model_class(config, rngs=nnx.Rngs(0)), seed), table(config)


def _random(make_model: Callable[[], nnx.Module], seed: int | None) -> nnx.Module:
    return parameters.skeleton(make_model) if seed is None else parameters.random(make_model, seed)


def _diffusers(part: tuple, name: str, sizes: Mapping[str, Any], folder: Path, seed: int | None) -> None:
    content = dict(sizes) | {"_class_name": name}
    hub.save_pretrained(*_model(part, sizes, seed), folder, config=content, filename="diffusion_pytorch_model.safetensors")


def _transformers(part: tuple, name: str, model_type: str, sizes: Mapping[str, Any], folder: Path, seed: int | None) -> None:
    content = dict(sizes) | {"architectures": [name], "model_type": model_type}
    hub.save_pretrained(*_model(part, sizes, seed), folder, config=content)


CHAMELEON = Chameleon, ChameleonConfig, chameleon.table
CLIP_TEXT = CLIPText, CLIPTextConfig, clip.text_table
CLIP_TEXT_PLAIN = functools.partial(CLIPText, projection=False), CLIPTextConfig, functools.partial(clip.text_table, projection=False)
T5 = T5Encoder, T5Config, t5.table
TEXT_ENCODERS = {  # class -> the part and its model_type
    "CLIPTextModel": (CLIP_TEXT_PLAIN, "clip_text_model"),
    "CLIPTextModelWithProjection": (CLIP_TEXT, "clip_text_model"),
    "T5EncoderModel": (T5, "t5"),
}


def supervisor(sizes: Mapping[str, Any], folder: Path, seed: int | None) -> None:
    """Writes a pipeline in the diffusers layout; sizes: the config.json of each of its parts.

    It is SDXL's if it has a unet, SD3's if it has a third text encoder, else FLUX.1's.
    """
    if "unet" in sizes:
        parts = SDXL
        unet_denoiser(sizes["unet"], folder, seed)
    elif "text_encoder_3" in sizes:
        parts = SD3
        denoiser(sizes["transformer"], folder, seed, shift=3.0)
    else:
        parts = FLUX
        flux_denoiser(sizes["transformer"], folder, seed)
    _diffusers((AutoencoderKL, AutoencoderKLConfig, autoencoder_kl.table), "AutoencoderKL", sizes["vae"], folder / "vae", seed)
    for number, name in enumerate(sorted(name for name in sizes if name.startswith("text_encoder"))):
        kind = parts[name][1]
        part, model_type = TEXT_ENCODERS[kind]
        _transformers(part, kind, model_type, sizes[name], folder / name, None if seed is None else seed + number)
        tokenizer = t5_tokenizer(512) if model_type == "t5" else clip_tokenizer(sizes[name]["max_position_embeddings"])
        tokenizer.save_pretrained(folder / name.replace("text_encoder", "tokenizer"))


def unet_denoiser(sizes: Mapping[str, Any], folder: Path, seed: int | None, *, zeros: bool = True, **scheduler: Any) -> None:
    """Writes SDXL's denoiser, scheduler (SDXL_SCHEDULER with changes) and model_index.json; sizes: the denoiser's config.json.

    zeros: guidance is away from zeros, not from the encoded empty prompt.
    """
    _diffusers((UNet, UNetConfig, unet.table), "UNet2DConditionModel", sizes, folder / "unet", seed)
    files.write_json(folder / "scheduler" / "scheduler_config.json", SDXL_SCHEDULER | scheduler)
    files.write_json(folder / "model_index.json", {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": zeros} | SDXL)


def flux_denoiser(sizes: Mapping[str, Any], folder: Path, seed: int | None) -> None:
    """Writes FLUX.1's denoiser, scheduler and model_index.json; sizes: the denoiser's config.json."""
    _diffusers((FluxTransformer, FluxConfig, flux.table), "FluxTransformer2DModel", sizes, folder / "transformer", seed)
    files.write_json(folder / "scheduler" / "scheduler_config.json", FLUX_SCHEDULER)
    files.write_json(folder / "model_index.json", {"_class_name": "FluxPipeline"} | FLUX)


def denoiser(sizes: Mapping[str, Any], folder: Path, seed: int | None, *, shift: float) -> None:
    """Writes SD3's denoiser, scheduler (with the timestep shift) and model_index.json; sizes: the denoiser's config.json."""
    _diffusers((SD3Transformer, SD3Config, mmdit.table), "SD3Transformer2DModel", sizes, folder / "transformer", seed)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": shift}
    files.write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    files.write_json(folder / "model_index.json", {"_class_name": "StableDiffusion3Pipeline"} | SD3)


def student(sizes: Mapping[str, Any], folder: Path, seed: int | None) -> None:
    """Writes LlamaGen's decoder and tokenizer, each with its sizes beside it, and the text encoder's folder."""
    decoder(sizes["gpt"], folder, seed)
    save(*_model((VQModel, VQConfig, vqgan.table), sizes["vq"], seed), folder / "vq.safetensors")
    files.write_json(folder / "vq.json", sizes["vq"])
    _transformers(T5, "T5EncoderModel", "t5", sizes["text_encoder"], folder / "text_encoder", None if seed is None else seed + 1)
    t5_tokenizer(512).save_pretrained(folder / "text_encoder")


def decoder(sizes: Mapping[str, Any], folder: Path, seed: int | None) -> None:
    """Writes LlamaGen's decoder, gpt.safetensors, with its sizes beside it."""
    save(*_model((LlamaGen, LlamaGenConfig, llamagen.table), sizes, seed), folder / "gpt.safetensors")
    files.write_json(folder / "gpt.json", sizes)


def lumina_mgpt(sizes: Mapping[str, Any], folder: Path, seed: int | None) -> None:
    """Writes Lumina-mGPT's decoder (a folder as the official code has it), image tokenizer with its sizes beside it, and text tokenizer.

    sizes: the decoder's config.json, for the tokenizer the parameters of Meta's vqgan.yaml.
    """
    _transformers(CHAMELEON, "ChameleonXLLMXForConditionalGeneration", "chameleon", sizes["gpt"], folder / "gpt", seed)
    config = chameleon_vqgan.config_of(sizes["vq"])
    model = _random(lambda: VQModel(config, rngs=nnx.Rngs(0)), seed)
    save(model, chameleon_vqgan.table(config), folder / "vqgan.safetensors")
    files.write_json(folder / "vqgan.json", sizes["vq"])
    chameleon_tokenizer(sizes["vq"]["n_embed"]).save(str(folder / "text_tokenizer.json"))


def metrics(sizes: Mapping[str, Any], folder: Path, seed: int) -> None:
    """Writes the folders of the metric encoders."""
    _transformers((ViT, ViTConfig, vit.table), "ViTModel", "vit", sizes["dino"], folder / "dino", seed)
    _transformers((CLIP, CLIPConfig, clip.table), "CLIPModel", "clip", sizes["clip"], folder / "clip", seed + 2)
    clip_tokenizer(sizes["clip"]["text_config"]["max_position_embeddings"]).save_pretrained(folder / "clip")
