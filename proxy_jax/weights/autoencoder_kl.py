"""AutoencoderKL's tensor names (diffusers) and its config.json."""

import dataclasses
from collections.abc import Sequence

from proxy_jax.models.autoencoder_kl import AutoencoderKLConfig
from proxy_jax.weights.conv_blocks import levels, linear_attention, middle
from proxy_jax.weights.table import Entry, Table, conv, norm, pointwise

# How diffusers named the middle's attention before 0.17; many files still have it so.
ATTENTION = r"(mid_block\.attentions\.0)\."
OLD_NAMES = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def table(config: AutoencoderKLConfig) -> Table:
    """The name table of an AutoencoderKL of any size, with or without convolutions around the latents. Old names are read too."""
    widths, num_blocks = config.block_out_channels, config.layers_per_block
    entries = [
        *encoder(widths, num_blocks),
        *_ends("decoder"),
        *levels(
            "decoder.up_blocks.{i}.resnets.{j}",
            "decoder.up_blocks.{i}.upsamplers.0.conv",
            "decoder.levels",
            widths[::-1],
            num_blocks + 1,
            shortcut="conv_shortcut",
        ),
        *(pointwise("quant_conv", "quant_conv") if config.use_quant_conv else []),
        *(pointwise("post_quant_conv", "post_quant_conv") if config.use_post_quant_conv else []),
    ]
    return Table(tuple(entries), renames=tuple((rf"{ATTENTION}{old}\.", rf"\1.{new}.") for old, new in OLD_NAMES))


def encoder(widths: Sequence[int], num_blocks: int) -> list[Entry]:
    """Those of the encoder, `encoder` in both."""
    resnets, down = "encoder.down_blocks.{i}.resnets.{j}", "encoder.down_blocks.{i}.downsamplers.0.conv"
    return [*_ends("encoder"), *levels(resnets, down, "encoder.levels", widths, num_blocks, shortcut="conv_shortcut")]


def _ends(half: str) -> list[Entry]:
    names = tuple(f"{half}.mid_block.{name}" for name in ("resnets.0", "attentions.0", "resnets.1"))
    return [
        *conv(f"{half}.conv_in", f"{half}.conv_in"),
        *middle(names, f"{half}.middle", linear_attention),
        *norm(f"{half}.conv_norm_out", f"{half}.norm_out"),
        *conv(f"{half}.conv_out", f"{half}.conv_out"),
    ]


def official_config(config: AutoencoderKLConfig) -> dict:
    """The content of the config.json with which diffusers' AutoencoderKL.from_pretrained builds the same model."""
    num_levels = len(config.block_out_channels)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * num_levels, "up_block_types": ["UpDecoderBlock2D"] * num_levels}
    return {"_class_name": "AutoencoderKL", **dataclasses.asdict(config), **blocks}
