"""The tensor names of SDXL's UNet (diffusers' UNet2DConditionModel) and its config.json."""

import dataclasses

from proxy_jax.models.unet import LevelPlan, UNetConfig
from proxy_jax.weights.conv_blocks import resnet
from proxy_jax.weights.table import Entry, Table, conv, layers, linear, norm


def table(config: UNetConfig) -> Table:
    """The name table of a UNet of SDXL's kind, of any size."""
    entries = [
        *conv("conv_in", "conv_in"),
        *_mlp("time_embedding", "time_in"),
        *_mlp("add_embedding", "added_in"),
        *_levels("down_blocks", "downsamplers", "down", config.down),
        *_resnet("mid_block.resnets.0", "middle.block1", changes=False),
        *_transformer("mid_block.attentions.0", "middle.transformer", config.middle.depth),
        *_resnet("mid_block.resnets.1", "middle.block2", changes=False),
        *_levels("up_blocks", "upsamplers", "up", config.up),
        *norm("conv_norm_out", "norm_out"),
        *conv("conv_out", "conv_out"),
    ]
    return Table(tuple(entries))


def _mlp(official: str, ours: str) -> list[Entry]:
    return linear(f"{official}.linear_1", f"{ours}.fc1") + linear(f"{official}.linear_2", f"{ours}.fc2")


def _levels(official: str, resample: str, ours: str, plans: list[LevelPlan]) -> list[Entry]:
    entries = []
    for i, plan in enumerate(plans):
        for j, n_in in enumerate(plan.widths_in):
            entries += _resnet(f"{official}.{i}.resnets.{j}", f"{ours}.{i}.blocks.{j}", changes=n_in != plan.width)
            if plan.depth:
                entries += _transformer(f"{official}.{i}.attentions.{j}", f"{ours}.{i}.transformers.{j}", plan.depth)
        if i < len(plans) - 1:
            entries += conv(f"{official}.{i}.{resample}.0.conv", f"{ours}.{i}.resample.conv")
    return entries


def _resnet(official: str, ours: str, *, changes: bool) -> list[Entry]:
    """A residual block with its time embedding; changes: its width does."""
    return resnet(official, ours, shortcut="conv_shortcut" if changes else None) + linear(f"{official}.time_emb_proj", f"{ours}.time")


def _transformer(official: str, ours: str, depth: int) -> list[Entry]:
    theirs, block = official + ".transformer_blocks.{l}", f"{ours}.blocks"
    stacked = []
    for number, attention in ((1, "self_attention"), (2, "cross_attention")):
        stacked += [e for name in "qkv" for e in linear(f"{theirs}.attn{number}.to_{name}", f"{block}.{attention}.{name}", bias=False)]
        stacked += linear(f"{theirs}.attn{number}.to_out.0", f"{block}.{attention}.o")
    stacked += [e for number in (1, 2, 3) for e in norm(f"{theirs}.norm{number}", f"{block}.norm{number}")]
    stacked += [e for i, name in enumerate(("value", "gate")) for e in linear(f"{theirs}.ff.net.0.proj", f"{block}.{name}", part=(i, 2))]
    stacked += linear(f"{theirs}.ff.net.2", f"{block}.out")
    return [
        *norm(f"{official}.norm", f"{ours}.norm"),
        *linear(f"{official}.proj_in", f"{ours}.proj_in"),
        *layers(range(depth), stacked),
        *linear(f"{official}.proj_out", f"{ours}.proj_out"),
    ]


def official_config(config: UNetConfig) -> dict:
    """The content of the config.json with which diffusers' UNet2DConditionModel.from_pretrained builds the same model."""
    return {"_class_name": "UNet2DConditionModel", **dataclasses.asdict(config)}
