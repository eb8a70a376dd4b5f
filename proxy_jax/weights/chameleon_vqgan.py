"""The tensor names of Chameleon's image tokenizer: Meta's vqgan.ckpt, and its encoding half inside transformers' Chameleon."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxy_jax.models.vqgan import CHAMELEON, VQConfig
from proxy_jax.weights.conv_blocks import conv_attention, levels, middle
from proxy_jax.weights.hub import read_json
from proxy_jax.weights.region import CheckpointError
from proxy_jax.weights.table import Entry, Table, conv, embed, norm, pointwise

# What transformers' vq_config calls Meta's parameters, and its defaults, which it leaves out of config.json.
NAMES = dict(z_channels="latent_channels", ch="base_channels", ch_mult="channel_multiplier")
DEFAULTS = dict(embed_dim=256, num_embeddings=8192, latent_channels=256, resolution=512, in_channels=3, base_channels=128)
DEFAULTS |= dict(channel_multiplier=(1, 1, 2, 2, 4), num_res_blocks=2, attn_resolutions=None)


def table(config: VQConfig) -> Table:
    """The name table of a Chameleon VQModel of any size, with or without its decoder."""
    down = range(len(config.widths))
    entries = [
        *_half("encoder", "down", "downsample", config, down, config.num_res_blocks),
        *pointwise("quant_conv", "quant_conv"),
        *embed("quantize.embedding", "codebook"),
        *pointwise("post_quant_conv", "post_quant_conv"),
        *(_half("decoder", "up", "upsample", config, down[::-1], config.num_res_blocks + 1) if config.decoder else []),
    ]
    others = (r"loss\..*", r"model\.(embed_tokens|layers|norm)\..*", r"lm_head\.weight")  # the discriminator's; a Chameleon's own
    return Table(tuple(entries), ignored=others, renames=((r"^model\.vqmodel\.", ""),))


def _half(half: str, direction: str, resample: str, config: VQConfig, numbers: range, num_blocks: int) -> list[Entry]:
    """The encoder or decoder; numbers: the official ones of our levels, 0 being the full resolution in both."""
    level = f"{half}.{direction}.{{i}}"
    attended = {range(len(numbers))[number] for number in config.attention_levels}
    attentions = [
        entry
        for i, number in enumerate(numbers)
        if number in attended
        for j in range(num_blocks)
        for entry in conv_attention(f"{level.format(i=number)}.attn.{j}", f"{half}.levels.{i}.attentions.{j}")
    ]
    return [
        *conv(f"{half}.conv_in", f"{half}.conv_in"),
        *levels(
            f"{level}.block.{{j}}",
            f"{level}.{resample}.conv",
            f"{half}.levels",
            [config.widths[number] for number in numbers],
            num_blocks,
            shortcut="nin_shortcut",
            numbers=numbers,
        ),
        *attentions,
        *middle((f"{half}.mid.block_1", f"{half}.mid.attn_1", f"{half}.mid.block_2"), f"{half}.middle", conv_attention),
        *norm(f"{half}.norm_out", f"{half}.norm_out"),
        *conv(f"{half}.conv_out", f"{half}.conv_out"),
    ]


def config_of(official: Mapping[str, Any]) -> VQConfig:
    """The sizes from the parameters of Meta's vqgan.yaml, or from the vq_config of transformers' Chameleon (which has no decoder)."""
    if "ddconfig" in official:
        sizes = {"embed_dim": official["embed_dim"], "num_embeddings": official["n_embed"]}
        sizes |= {NAMES.get(name, name): value for name, value in official["ddconfig"].items()}
    else:
        sizes = DEFAULTS | official
    attended = sizes["attn_resolutions"] or ()
    return VQConfig(
        ch_mult=sizes["channel_multiplier"],
        ch=sizes["base_channels"],
        z_channels=sizes["latent_channels"],
        codebook_size=sizes["num_embeddings"],
        codebook_embed_dim=sizes["embed_dim"],
        num_res_blocks=sizes["num_res_blocks"],
        codebook_l2_norm=False,
        in_channels=sizes["in_channels"],
        attention_levels=tuple(i for i in range(len(sizes["channel_multiplier"])) if sizes["resolution"] // 2**i in attended),
        decoder="ddconfig" in official,
    )


def read_config(path: Path) -> VQConfig:
    """The sizes of a tokenizer's checkpoint: from config.json's vq_config in a folder of transformers', else from NAME.json beside
    NAME.ckpt (vqgan.yaml's parameters), else the published ones.
    """
    if path.is_dir():
        content = read_json(path / "config.json")
        if "vq_config" not in content:
            raise CheckpointError(f"{path / 'config.json'} has no vq_config: there is no image tokenizer in that folder")
        return config_of(content["vq_config"])
    beside = path.with_suffix(".json")
    return config_of(read_json(beside)) if beside.is_file() else CHAMELEON
