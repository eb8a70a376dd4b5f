"""The tensor names of SDXL's UNet (diffusers' UNet2DConditionModel) and its config.json."""

import dataclasses
from collections.abc import Iterator

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
    return Table(tuple(entries), original=tuple(_original(config)))


RESNET = (("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"))


def _original(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """The modules of the original checkpoint (sd_xl_base_1.0.safetensors): blocks are numbered through all levels."""
    places = [(f"mid_block.{part}.{i}", f"middle_block.{number}") for part, i, number in (("resnets", 0, 0), ("attentions", 0, 1), ("resnets", 1, 2))]
    for side, original, before, plans in (("down_blocks", "input_blocks", 1, config.down), ("up_blocks", "output_blocks", 0, config.up)):
        for i, plan in enumerate(plans):
            for j in range(len(plan.widths_in)):
                number = before + i * (config.layers_per_block + 1) + j
                places += [(f"{side}.{i}.{part}.{j}", f"{original}.{number}.{k}") for k, part in enumerate(("resnets", "attentions"))]
            if side == "down_blocks":
                yield f"{side}.{i}.downsamplers.0.conv", f"{original}.{number + 1}.0.op"
            else:
                yield f"{side}.{i}.upsamplers.0.conv", f"{original}.{number}.{2 if plan.depth else 1}.conv"
    for theirs, original in places:
        if ".resnets." in theirs:
            yield from ((f"{theirs}.{layer}", f"{original}.{name}") for layer, name in RESNET)
        else:
            yield f"{theirs}.{{}}", f"{original}.{{}}"
    for theirs, original in (("time_embedding", "time_embed"), ("add_embedding", "label_emb.0")):
        yield from ((f"{theirs}.linear_{number}", f"{original}.{2 * number - 2}") for number in (1, 2))
    yield "conv_in", "input_blocks.0.0"
    yield "conv_out", "out.2"


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
