"""Random checkpoints of any size in the official layouts, for runs that check the machinery and not the pictures.

They hold what the published ones hold: the diffusers folder of SD3, LlamaGen's two files with FLAN-T5's folder, and the
transformers folders of the metric encoders; with tokenizers of single letters. Everything after this stage only sees files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, T5Tokenizer

from proxy_jax.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from proxy_jax.models.clip import CLIP, CLIPConfig, CLIPText, CLIPTextConfig
from proxy_jax.models.llamagen import LlamaGen, LlamaGenConfig
from proxy_jax.models.mmdit import SD3Config, SD3Transformer
from proxy_jax.models.t5 import T5Config, T5Encoder
from proxy_jax.models.vit import ViT, ViTConfig
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.stages import contract, files
from proxy_jax.weights import autoencoder_kl, clip, hub, llamagen, mmdit, t5, vit, vqgan
from proxy_jax.weights.table import save

NAME = "random_weights"
OUTPUTS = ("supervisor", "student", "metrics")
DIFFUSERS_FILE, TRANSFORMERS_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"


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


def inputs(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """What decides this stage's outputs: the sizes and the seed."""
    return contract.fields(config, "seed", NAME)


def run(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Writes random_weights/supervisor, /student and /metrics."""
    sizes, folder = config.random_weights.to_dict(), workdir / NAME
    rngs = nnx.Rngs(config.seed)
    _supervisor(sizes["supervisor"], folder / "supervisor", rngs)
    _student(sizes["student"], folder / "student", rngs)
    _metrics(sizes["metrics"], folder / "metrics", rngs)
    return {}


def _supervisor(sizes: Mapping[str, Any], folder: Path, rngs: nnx.Rngs) -> None:
    def part(name, model_class, config_class, table, filename, extra):
        config = hub.config_from(config_class, sizes[name])
        model = model_class(config, rngs=rngs)
        hub.save_pretrained(model, table(config), folder / name, config=sizes[name] | extra, filename=filename)

    part("transformer", SD3Transformer, SD3Config, mmdit.table, DIFFUSERS_FILE, {"_class_name": "SD3Transformer2DModel"})
    part("vae", AutoencoderKL, AutoencoderKLConfig, autoencoder_kl.table, DIFFUSERS_FILE, {"_class_name": "AutoencoderKL"})
    for name in ("text_encoder", "text_encoder_2"):
        extra = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}
        part(name, CLIPText, CLIPTextConfig, clip.text_table, TRANSFORMERS_FILE, extra)
        clip_tokenizer(sizes[name]["max_position_embeddings"]).save_pretrained(folder / name.replace("text_encoder", "tokenizer"))
    part("text_encoder_3", T5Encoder, T5Config, t5.table, TRANSFORMERS_FILE, {"architectures": ["T5EncoderModel"], "model_type": "t5"})
    t5_tokenizer(512).save_pretrained(folder / "tokenizer_3")
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    hub.write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    classes = {
        "transformer": ["diffusers", "SD3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5Tokenizer"],
    }
    hub.write_json(folder / "model_index.json", {"_class_name": "StableDiffusion3Pipeline"} | classes)


def _student(sizes: Mapping[str, Any], folder: Path, rngs: nnx.Rngs) -> None:
    for name, model_class, config_class, table in (
        ("gpt", LlamaGen, LlamaGenConfig, llamagen.table),
        ("vq", VQModel, VQConfig, vqgan.table),
    ):
        config = hub.config_from(config_class, sizes[name])
        save(model_class(config, rngs=rngs), table(config), folder / f"{name}.safetensors")
        files.write_json(folder / f"{name}.json", sizes[name])
    extra = {"architectures": ["T5EncoderModel"], "model_type": "t5"}
    config = hub.config_from(T5Config, sizes["text_encoder"])
    model = T5Encoder(config, rngs=rngs)
    hub.save_pretrained(model, t5.table(config), folder / "text_encoder", config=sizes["text_encoder"] | extra, filename=TRANSFORMERS_FILE)
    t5_tokenizer(512).save_pretrained(folder / "text_encoder")


def _metrics(sizes: Mapping[str, Any], folder: Path, rngs: nnx.Rngs) -> None:
    config = hub.config_from(ViTConfig, sizes["dino"])
    extra = {"architectures": ["ViTModel"], "model_type": "vit"}
    hub.save_pretrained(ViT(config, rngs=rngs), vit.table(config), folder / "dino", config=sizes["dino"] | extra, filename=TRANSFORMERS_FILE)
    config = hub.config_from(CLIPConfig, sizes["clip"])
    extra = {"architectures": ["CLIPModel"], "model_type": "clip"}
    hub.save_pretrained(CLIP(config, rngs=rngs), clip.table(config), folder / "clip", config=sizes["clip"] | extra, filename=TRANSFORMERS_FILE)
    clip_tokenizer(sizes["clip"]["text_config"]["max_position_embeddings"]).save_pretrained(folder / "clip")
