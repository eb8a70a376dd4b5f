"""The tensor names of the SD3 and SD3.5 transformers (diffusers' SD3Transformer2DModel) and their config.json."""

import dataclasses

from proxy_jax.models.mmdit import SD3Config
from proxy_jax.weights.table import Entry, Table, conv, layers, linear, norm, param

IMG = (("to_q", "img_q"), ("to_k", "img_k"), ("to_v", "img_v"), ("to_out.0", "img_o"))
TXT = (("add_q_proj", "txt_q"), ("add_k_proj", "txt_k"), ("add_v_proj", "txt_v"))
IMG_NORMS = (("norm_q", "img_q_norm"), ("norm_k", "img_k_norm"))
TXT_NORMS = (("norm_added_q", "txt_q_norm"), ("norm_added_k", "txt_k_norm"))


def table(config: SD3Config) -> Table:
    """The name table of an SD3 or SD3.5 transformer of any size."""
    dual, last, normed = config.num_dual, config.num_layers - 1, config.qk_norm is not None
    stacked = "transformer_blocks.{l}"
    entries = [
        *conv("pos_embed.proj", "patch_in"),
        *param("pos_embed.pos_embed", "position"),
        *_mlp("time_text_embed.timestep_embedder", ("linear_1", "linear_2"), "time_in"),
        *_mlp("time_text_embed.text_embedder", ("linear_1", "linear_2"), "pooled_in"),
        *linear("context_embedder", "txt_in"),
        *(layers(range(dual), _block(stacked, "dual_blocks", normed, dual=True)) if dual else []),
        *(layers(range(dual, last), _block(stacked, "blocks", normed)) if dual < last else []),
        *_block(f"transformer_blocks.{last}", "last_block", normed, last=True),
        *linear("norm_out.linear", "modulation_out.dense"),
        *linear("proj_out", "patch_out"),
    ]
    return Table(tuple(entries), original=_original(last))


def _original(last: int) -> tuple[tuple, ...]:
    """The modules of the original checkpoint (sd3_medium.safetensors and the like); last: the number of the last block."""
    return (
        *((f"transformer_blocks.{{}}.attn.to_{name}", "joint_blocks.{}.x_block.attn.qkv", (i,), 3) for i, name in enumerate("qkv")),
        *((f"transformer_blocks.{{}}.attn2.to_{name}", "joint_blocks.{}.x_block.attn2.qkv", (i,), 3) for i, name in enumerate("qkv")),
        *((f"transformer_blocks.{{}}.attn.add_{name}_proj", "joint_blocks.{}.context_block.attn.qkv", (i,), 3) for i, name in enumerate("qkv")),
        ("transformer_blocks.{}.attn.to_out.0", "joint_blocks.{}.x_block.attn.proj"),
        ("transformer_blocks.{}.attn2.to_out.0", "joint_blocks.{}.x_block.attn2.proj"),
        ("transformer_blocks.{}.attn.to_add_out", "joint_blocks.{}.context_block.attn.proj"),
        ("transformer_blocks.{}.ff.net.0.proj", "joint_blocks.{}.x_block.mlp.fc1"),
        ("transformer_blocks.{}.ff.net.2", "joint_blocks.{}.x_block.mlp.fc2"),
        ("transformer_blocks.{}.ff_context.net.0.proj", "joint_blocks.{}.context_block.mlp.fc1"),
        ("transformer_blocks.{}.ff_context.net.2", "joint_blocks.{}.context_block.mlp.fc2"),
        ("transformer_blocks.{}.norm1.linear", "joint_blocks.{}.x_block.adaLN_modulation.1"),
        # Shift before scale in the last block's text and in the output
        (f"transformer_blocks.{last}.norm1_context.linear", f"joint_blocks.{last}.context_block.adaLN_modulation.1", (1, 0), 2),
        ("transformer_blocks.{}.norm1_context.linear", "joint_blocks.{}.context_block.adaLN_modulation.1"),
        ("norm_out.linear", "final_layer.adaLN_modulation.1", (1, 0), 2),
        ("proj_out", "final_layer.linear"),
        ("pos_embed.proj", "x_embedder.proj"),
        ("context_embedder", "context_embedder"),
        ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
        ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
        ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
        ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    )


def _mlp(official: str, names: tuple[str, str], ours: str) -> list[Entry]:
    return [entry for name, fc in zip(names, ("fc1", "fc2"), strict=True) for entry in linear(f"{official}.{name}", f"{ours}.{fc}")]


def _attention(official: str, ours: str, denses: tuple, norms: tuple) -> list[Entry]:
    entries = [entry for theirs, name in denses for entry in linear(f"{official}.{theirs}", f"{ours}.{name}")]
    return entries + [entry for theirs, name in norms for entry in norm(f"{official}.{theirs}", f"{ours}.{name}", bias=False)]


def _block(official: str, ours: str, normed: bool, *, dual: bool = False, last: bool = False) -> list[Entry]:
    denses = (*IMG, *TXT) if last else (*IMG, *TXT, ("to_add_out", "txt_o"))
    entries = [
        *linear(f"{official}.norm1.linear", f"{ours}.img_modulation.dense"),
        *linear(f"{official}.norm1_context.linear", f"{ours}.txt_modulation.dense"),
        *_attention(f"{official}.attn", f"{ours}.attention", denses, (*IMG_NORMS, *TXT_NORMS) if normed else ()),
        *_mlp(f"{official}.ff.net", ("0.proj", "2"), f"{ours}.img_mlp"),
    ]
    if dual:
        entries += _attention(f"{official}.attn2", f"{ours}.attention2", IMG, IMG_NORMS if normed else ())
    return entries if last else entries + _mlp(f"{official}.ff_context.net", ("0.proj", "2"), f"{ours}.txt_mlp")


def official_config(config: SD3Config) -> dict:
    """The content of the config.json with which diffusers' SD3Transformer2DModel.from_pretrained builds the same model."""
    return {"_class_name": "SD3Transformer2DModel", **dataclasses.asdict(config)}
