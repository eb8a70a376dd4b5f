"""The tensor names of LlamaGen's image tokenizer (tokenizer/tokenizer_image/vq_model.py)."""

from proxy_jax.models.vqgan import VQConfig
from proxy_jax.weights.conv_blocks import conv_attention, levels, middle
from proxy_jax.weights.table import Entry, Table, conv, embed, norm, pointwise


def table(config: VQConfig) -> Table:
    """The name table of a VQModel of any size."""
    widths, num_blocks, lowest = config.widths, config.num_res_blocks, len(config.widths) - 1
    entries = [
        *_ends("encoder"),
        *levels(
            "encoder.conv_blocks.{i}.res.{j}",
            "encoder.conv_blocks.{i}.downsample.conv",
            "encoder.levels",
            widths,
            num_blocks,
            shortcut="nin_shortcut",
        ),
        *_attentions("encoder", lowest, num_blocks),
        *pointwise("quant_conv", "quant_conv"),
        *embed("quantize.embedding", "codebook"),
        *pointwise("post_quant_conv", "post_quant_conv"),
        *_ends("decoder"),
        *levels(
            "decoder.conv_blocks.{i}.res.{j}",
            "decoder.conv_blocks.{i}.upsample.conv",
            "decoder.levels",
            widths[::-1],
            num_blocks + 1,
            shortcut="nin_shortcut",
        ),
        *_attentions("decoder", 0, num_blocks + 1),
    ]
    return Table(tuple(entries), ignored=(r"quantize\.codebook_used",))


def _ends(half: str) -> list[Entry]:
    names = tuple(f"{half}.mid.{i}" for i in range(3))
    return [
        *conv(f"{half}.conv_in", f"{half}.conv_in"),
        *middle(names, f"{half}.middle", conv_attention),
        *norm(f"{half}.norm_out", f"{half}.norm_out"),
        *conv(f"{half}.conv_out", f"{half}.conv_out"),
    ]


def _attentions(half: str, level: int, num: int) -> list[Entry]:
    pairs = ((f"{half}.conv_blocks.{level}.attn.{j}", f"{half}.levels.{level}.attentions.{j}") for j in range(num))
    return [entry for official, ours in pairs for entry in conv_attention(official, ours)]
