"""The tensor names of FLUX.1's transformer (diffusers' FluxTransformer2DModel) and its config.json."""

import dataclasses

from proxy_jax.models.flux import FluxConfig
from proxy_jax.weights.table import Entry, Table, layers, linear, norm

QKV = (("to_q", "q"), ("to_k", "k"), ("to_v", "v"))
TXT_QKV = (("add_q_proj", "q"), ("add_k_proj", "k"), ("add_v_proj", "v"))
NORMS = (("norm_q", "q_norm"), ("norm_k", "k_norm"))
TXT_NORMS = (("norm_added_q", "q_norm"), ("norm_added_k", "k_norm"))
# The modules of the original checkpoint (flux1-dev.safetensors)
ORIGINAL = (
    *((f"transformer_blocks.{{}}.attn.to_{name}", "double_blocks.{}.img_attn.qkv", (i,), 3) for i, name in enumerate("qkv")),
    *((f"transformer_blocks.{{}}.attn.add_{name}_proj", "double_blocks.{}.txt_attn.qkv", (i,), 3) for i, name in enumerate("qkv")),
    ("transformer_blocks.{}.attn.to_out.0", "double_blocks.{}.img_attn.proj"),
    ("transformer_blocks.{}.attn.to_add_out", "double_blocks.{}.txt_attn.proj"),
    ("transformer_blocks.{}.ff.net.0.proj", "double_blocks.{}.img_mlp.0"),
    ("transformer_blocks.{}.ff.net.2", "double_blocks.{}.img_mlp.2"),
    ("transformer_blocks.{}.ff_context.net.0.proj", "double_blocks.{}.txt_mlp.0"),
    ("transformer_blocks.{}.ff_context.net.2", "double_blocks.{}.txt_mlp.2"),
    ("transformer_blocks.{}.norm1.linear", "double_blocks.{}.img_mod.lin"),
    ("transformer_blocks.{}.norm1_context.linear", "double_blocks.{}.txt_mod.lin"),
    *((f"single_transformer_blocks.{{}}.attn.to_{name}", "single_blocks.{}.linear1", (i,), 7) for i, name in enumerate("qkv")),
    ("single_transformer_blocks.{}.proj_mlp", "single_blocks.{}.linear1", (3, 4, 5, 6), 7),  # four times as wide
    ("single_transformer_blocks.{}.proj_out", "single_blocks.{}.linear2"),
    ("single_transformer_blocks.{}.norm.linear", "single_blocks.{}.modulation.lin"),
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    *(
        (f"time_text_embed.{theirs}.linear_{number}", f"{original}.{layer}")
        for theirs, original in (("timestep_embedder", "time_in"), ("text_embedder", "vector_in"), ("guidance_embedder", "guidance_in"))
        for number, layer in ((1, "in_layer"), (2, "out_layer"))
    ),
    ("norm_out.linear", "final_layer.adaLN_modulation.1", (1, 0), 2),  # shift before scale
    ("proj_out", "final_layer.linear"),
)


def table(config: FluxConfig) -> Table:
    """The name table of a FLUX.1 transformer of any size."""
    embedders = {"timestep_embedder": "time_in", "text_embedder": "pooled_in"}
    embedders |= {"guidance_embedder": "guidance_in"} if config.guidance_embeds else {}
    double, single = "transformer_blocks.{l}", "single_transformer_blocks.{l}"
    entries = [
        *linear("x_embedder", "img_in"),
        *linear("context_embedder", "txt_in"),
        *(entry for official, ours in embedders.items() for entry in _mlp(f"time_text_embed.{official}", ("linear_1", "linear_2"), ours)),
        *layers(range(config.num_layers), _double(double, "double_blocks")),
        *layers(range(config.num_single_layers), _single(single, "single_blocks")),
        *linear("norm_out.linear", "modulation_out.dense"),
        *linear("proj_out", "out"),
    ]
    return Table(tuple(entries), original=ORIGINAL)


def _mlp(official: str, names: tuple[str, str], ours: str) -> list[Entry]:
    return [entry for name, fc in zip(names, ("fc1", "fc2"), strict=True) for entry in linear(f"{official}.{name}", f"{ours}.{fc}")]


def _qkv(official: str, ours: str, denses: tuple, norms: tuple) -> list[Entry]:
    entries = [entry for theirs, name in denses for entry in linear(f"{official}.{theirs}", f"{ours}.{name}")]
    return entries + [entry for theirs, name in norms for entry in norm(f"{official}.{theirs}", f"{ours}.{name}", bias=False)]


def _double(official: str, ours: str) -> list[Entry]:
    return [
        *linear(f"{official}.norm1.linear", f"{ours}.img.modulation.dense"),
        *_qkv(f"{official}.attn", f"{ours}.img.qkv", QKV, NORMS),
        *linear(f"{official}.attn.to_out.0", f"{ours}.img.o"),
        *_mlp(f"{official}.ff.net", ("0.proj", "2"), f"{ours}.img.mlp"),
        *linear(f"{official}.norm1_context.linear", f"{ours}.txt.modulation.dense"),
        *_qkv(f"{official}.attn", f"{ours}.txt.qkv", TXT_QKV, TXT_NORMS),
        *linear(f"{official}.attn.to_add_out", f"{ours}.txt.o"),
        *_mlp(f"{official}.ff_context.net", ("0.proj", "2"), f"{ours}.txt.mlp"),
    ]


def _single(official: str, ours: str) -> list[Entry]:
    return [
        *linear(f"{official}.norm.linear", f"{ours}.modulation.dense"),
        *_qkv(f"{official}.attn", f"{ours}.qkv", QKV, NORMS),
        *linear(f"{official}.proj_mlp", f"{ours}.mlp"),
        *linear(f"{official}.proj_out", f"{ours}.out"),
    ]


def official_config(config: FluxConfig) -> dict:
    """The content of the config.json with which diffusers' FluxTransformer2DModel.from_pretrained builds the same model."""
    return {"_class_name": "FluxTransformer2DModel", **dataclasses.asdict(config)}
