"""The entries that the autoencoders' name tables share (models/conv_blocks.py)."""

from collections.abc import Callable, Sequence

from proxy_jax.weights.table import Entry, conv, linear, norm, pointwise


def resnet(official: str, ours: str, *, shortcut: str | None) -> list[Entry]:
    """A residual block; shortcut: the official name of its projection, None where the width does not change."""
    entries = []
    for i in (1, 2):
        entries += norm(f"{official}.norm{i}", f"{ours}.norm{i}") + conv(f"{official}.conv{i}", f"{ours}.conv{i}")
    return entries + ([] if shortcut is None else pointwise(f"{official}.{shortcut}", f"{ours}.shortcut"))


def linear_attention(official: str, ours: str) -> list[Entry]:
    """Spatial attention in diffusers' names, its projections stored as Linear layers."""
    names = (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
    return norm(f"{official}.group_norm", f"{ours}.norm") + [e for a, b in names for e in linear(f"{official}.{a}", f"{ours}.{b}")]


def conv_attention(official: str, ours: str) -> list[Entry]:
    """Spatial attention in latent diffusion's names, its projections stored as 1 × 1 convolutions."""
    names = (("q", "q"), ("k", "k"), ("v", "v"), ("proj_out", "o"))
    return norm(f"{official}.norm", f"{ours}.norm") + [e for a, b in names for e in pointwise(f"{official}.{a}", f"{ours}.{b}")]


def middle(names: tuple[str, str, str], ours: str, attention: Callable[[str, str], list[Entry]]) -> list[Entry]:
    """The middle; names: the official ones of its first block, attention and second block."""
    first, between, second = names
    return [
        *resnet(first, f"{ours}.block1", shortcut=None),
        *attention(between, f"{ours}.attention"),
        *resnet(second, f"{ours}.block2", shortcut=None),
    ]


def levels(
    block: str, resample: str, ours: str, widths: Sequence[int], num_blocks: int, *, shortcut: str, numbers: Sequence[int] | None = None
) -> list[Entry]:
    """The residual blocks and resampling of every level, without their attention.

    block, resample: official names with "{i}" for the level and, in block, "{j}" for the block. widths: in our levels' order. numbers: the
    official ones of our levels; None: the same as ours.
    """
    entries = []
    for i, width in enumerate(widths):
        number = i if numbers is None else numbers[i]
        for j in range(num_blocks):
            changes = j == 0 and i > 0 and width != widths[i - 1]
            entries += resnet(block.format(i=number, j=j), f"{ours}.{i}.blocks.{j}", shortcut=shortcut if changes else None)
        if i < len(widths) - 1:
            entries += conv(resample.format(i=number), f"{ours}.{i}.resample.conv")
    return entries
