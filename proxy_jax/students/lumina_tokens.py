"""What Lumina-mGPT's tokens stand for: marks, sizes and codes of pictures beside text, how a picture is written in them, and which sizes it knows.

A picture is begin, its height and width in cells of 32 × 32 pixels, its codes row by row with a line token after each row, and end
(data/item_processor.py, inference_solver.py of the official code).
"""

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from proxy_jax.weights.region import CheckpointError

CODES_PER_CELL = 2  # along a side
PATCH, LONGEST_RATIO = 32, 4.0  # of the sizes of pictures: sides are multiples of so many pixels, one at most so many times the other
CODE, TEXT = -1, -2  # what a position is for, where it is not for one token alone

IMAGE_TOKEN = re.compile("IMGIMG([A-J]+)Z")  # a picture's code, its digits written as letters
DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")
NAMES = {
    "begin_text": "<s>",
    "end_turn": "<reserved08706>",
    "begin_image": "<racm3:break>",
    "end_image": "<eoss>",
    "new_line": "<reserved08799>",
}
FIRST_SIZE, MOST_CELLS = 8800, 64  # n cells: <reserved(8800 + n)>; a picture of 1024² pixels has at most 64 on a side


def image_tokens(vocabulary: Mapping[str, int]) -> tuple[int, ...]:
    """The token id of each code 0, 1, ..., from the names in a tokenizer's vocabulary. Raises CheckpointError if codes are missing."""
    found = {int(match[1].translate(DIGITS)): index for name, index in vocabulary.items() if (match := IMAGE_TOKEN.fullmatch(name))}
    if not found or set(found) != set(range(len(found))):
        raise CheckpointError(f"the vocabulary names {len(found)} codes of pictures (IMGIMG...Z), which are not 0, 1, ...")
    return tuple(found[code] for code in range(len(found)))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The ids of the tokens that are no text. sizes[n]: n cells along a side; image[code]: a code of a picture."""

    begin_text: int
    end_turn: int
    begin_image: int
    end_image: int
    new_line: int
    sizes: tuple[int, ...]
    image: tuple[int, ...]

    @classmethod
    def of(cls, vocabulary: Mapping[str, int]) -> "Vocabulary":
        """From a tokenizer's vocabulary. Raises CheckpointError if one is missing."""
        sizes = [f"<reserved{FIRST_SIZE + cells:05d}>" for cells in range(MOST_CELLS + 1)]
        missing = [name for name in (*NAMES.values(), *sizes) if name not in vocabulary]
        if missing:
            raise CheckpointError(f"the vocabulary is not Chameleon's: it lacks {', '.join(missing[:5])}")
        marks = {field: vocabulary[name] for field, name in NAMES.items()}
        return cls(**marks, sizes=tuple(vocabulary[name] for name in sizes), image=image_tokens(vocabulary))

    def start(self, rows: int, columns: int) -> tuple[int, int, int]:
        """The tokens before the codes of a picture of rows × columns codes. Raises ValueError for a size that has no tokens."""
        sides = [side / CODES_PER_CELL for side in (rows, columns)]
        if not all(cells in range(1, len(self.sizes)) for cells in sides):
            raise ValueError(f"a picture of {rows} × {columns} codes; sides of 2, 4, ... {CODES_PER_CELL * (len(self.sizes) - 1)} have size tokens")
        return self.begin_image, *(self.sizes[int(cells)] for cells in sides)

    def frame(self, rows: int, columns: int, length: int) -> np.ndarray:
        """What follows `start`, [length] int32: the id where only one token can stand, CODE inside rows, TEXT after the picture."""
        picture = ([CODE] * columns + [self.new_line]) * rows + [self.end_image]
        return np.asarray((picture + [TEXT] * length)[:length], np.int32)

    def picture(self, codes: np.ndarray) -> np.ndarray:
        """Codes [n, rows, columns] as whole turns [n, turn_length(rows, columns)] int32, from the picture's begin to the turn's end."""
        n, rows, columns = codes.shape
        lines = np.full((n, rows, 1), self.new_line)
        body = np.concatenate([np.asarray(self.image)[codes], lines], axis=-1).reshape(n, -1)
        start, end = np.asarray(self.start(rows, columns)), np.asarray([self.end_image, self.end_turn])
        return np.concatenate([np.tile(start, (n, 1)), body, np.tile(end, (n, 1))], axis=1).astype(np.int32)

    def codes(self, ids: jax.Array, rows: int, columns: int) -> jax.Array:
        """The codes [n, rows, columns] in what follows `start`, ids [n, rows · (columns + 1) or more]."""
        code_of = np.zeros(max(self.image) + 1, np.int32)
        code_of[np.asarray(self.image)] = np.arange(len(self.image))
        body = ids[:, : rows * (columns + 1)].reshape(-1, rows, columns + 1)
        return jnp.asarray(code_of)[body[..., :columns]]


def turn_length(rows: int, columns: int) -> int:
    """The number of tokens of a turn that is a picture of rows × columns codes."""
    return rows * (columns + 1) + 5  # begin, two sizes, end, and the turn's end


def bucket_sizes(target: int) -> list[tuple[int, int]]:
    """The (width, height) in pixels that Lumina-mGPT knows at a target of 512, 768 or 1024, widest first."""
    most = (target // PATCH) ** 2
    width, height, sizes = most, 1, []
    while width:
        if max(width, height) <= LONGEST_RATIO * min(width, height):
            sizes.append((PATCH * width, PATCH * height))
        width, height = (width, height + 1) if (height + 1) * width <= most else (width - 1, height)
    return sizes


def nearest_bucket(width: int, height: int, target: int) -> tuple[int, int]:
    """The (width, height) among `bucket_sizes` that a picture loses least in."""

    def kept(size: tuple[int, int]) -> float:
        across, down = size[0] / width, size[1] / height
        return min(across, down) / max(across, down)

    return max(bucket_sizes(target), key=lambda size: (kept(size), size))
