"""The two encoders behind the scores: DINO's ViT and CLIP's two towers, with their published image preprocessing.

Images are resized by Pillow on 8-bit pixels and only then turned to floats, as the published scores were made. All batches have
one size, so each tower compiles once.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image
from transformers import AutoTokenizer

from proxy_jax import sharding
from proxy_jax.metrics.scores import normalise
from proxy_jax.models.clip import CLIP, CLIPConfig
from proxy_jax.models.layers import Compute
from proxy_jax.models.vit import ViT, ViTConfig
from proxy_jax.weights import clip as clip_weights
from proxy_jax.weights import hub
from proxy_jax.weights import vit as vit_weights

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EncoderError(ValueError):
    """A checkpoint that cannot score: unsupported preprocessing, no tokenizer, or parts that do not fit together."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From a uint8 image of any size to normalised pixels of one size.

    resize: the shortest side's length, or (height, width). crop: the (height, width) kept around the centre; None: all.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = Image.Resampling.BICUBIC

    def __post_init__(self):
        if isinstance(self.resize, int) and self.crop is None:
            raise EncoderError(f"images resized to a shortest side of {self.resize} differ in size and nothing crops them")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the result."""
        return self.crop or self.resize

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """`image` [h, w, 3] uint8 as normalised float32 [*size, 3]. Raises ValueError on another shape or dtype."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image is uint8 [height, width, 3], not {image.dtype} {image.shape}")
        height, width = self._resized(*image.shape[:2])
        picture = Image.fromarray(image).resize((width, height), self.resample)
        if self.crop is not None:
            left, top = (width - self.crop[1]) // 2, (height - self.crop[0]) // 2
            picture = picture.crop((left, top, left + self.crop[1], top + self.crop[0]))
        pixels = np.asarray(picture, np.float32) / 255
        return (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.resize, int):
            return self.resize
        short = min(height, width)
        # The other side is rounded down, as torchvision and transformers do.
        return (self.resize, int(self.resize * width / short)) if height == short else (int(self.resize * height / short), self.resize)

    def describe(self) -> str:
        """One line for a report."""
        resize = f"shortest side {self.resize}" if isinstance(self.resize, int) else f"{self.resize[0]}×{self.resize[1]}"
        crop = f", centre crop {self.crop[0]}×{self.crop[1]}" if self.crop else ""
        return f"{resize} ({Image.Resampling(self.resample).name.lower()}){crop}"


def dreambench(image_size: int) -> Preprocessing:
    """DINO's preprocessing of the DreamBench scores: shortest side 256, centre crop 224 (scaled to `image_size`), ImageNet statistics."""
    return Preprocessing(round(image_size * 256 / 224), (image_size, image_size), IMAGENET_MEAN, IMAGENET_STD)


def clip_default(image_size: int) -> Preprocessing:
    """CLIP's published preprocessing: shortest side and centre crop of `image_size`, CLIP statistics."""
    return Preprocessing(image_size, (image_size, image_size), CLIP_MEAN, CLIP_STD)


def preprocessing_in(folder: Path, *, square: bool) -> Preprocessing | None:
    """What the folder's preprocessor_config.json (or processor_config.json) says; None if it has neither.

    square: what a bare `size: 224` means, which older files leave to the class: both sides (ViT), or the shortest one (CLIP).
    Raises EncoderError on a step that the file asks for and this module does not do.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text())
            return _from_file(values["image_processor"] if "image_processor" in values else values, folder / name, square)
    return None


def _from_file(values: Mapping[str, Any], path: Path, square: bool) -> Preprocessing:
    missing = [name for name in ("size", "resample", "image_mean", "image_std") if name not in values]
    if missing:
        raise EncoderError(f"{path} lacks {missing}")
    off = [name for name in ("do_resize", "do_rescale", "do_normalize") if name in values and not values[name]]
    if off or ("rescale_factor" in values and abs(values["rescale_factor"] * 255 - 1) > 1e-6):
        raise EncoderError(f"{path} asks for preprocessing that is not supported: {off or 'a rescale_factor other than 1/255'}")
    size = values["size"]
    if isinstance(size, int):
        size = {"height": size, "width": size} if square else {"shortest_edge": size}
    resize = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    crop = None
    if values.get("do_center_crop"):
        window = values["crop_size"]
        crop = (window, window) if isinstance(window, int) else (window["height"], window["width"])
    return Preprocessing(resize, crop, tuple(values["image_mean"]), tuple(values["image_std"]), values["resample"])


class MetricEncoders:
    """DINO and CLIP, ready to embed. Make one with `load`. Under a mesh every process passes the same inputs and gets all rows."""

    def __init__(
        self,
        dino: ViT,
        clip: CLIP,
        tokenizer: Any,
        preprocessing: Mapping[str, Preprocessing],
        *,
        batch_size: int = 16,
    ):
        self.batch_size = sharding.padded(batch_size)
        self.preprocessing, self.tokenizer = dict(preprocessing), tokenizer
        self.max_length = clip.config.text_config.max_position_embeddings
        self._dino = _compiled(dino, lambda model, pixels: model(pixels)[:, 0])
        self._clip_image = _compiled(clip, lambda model, pixels: model.image_features(pixels))
        self._clip_text = _compiled(clip, lambda model, ids, mask: model.text_features(ids, mask))

    @classmethod
    def load(cls, dino: str, clip: str, *, compute: Compute, batch_size: int = 16, dino_preprocessing: str = "checkpoint") -> "MetricEncoders":
        """Both encoders from folders or hub ids in the transformers layout; the CLIP one holds a tokenizer too.

        compute: float32 gives the published scores; half precision moves them in the third decimal.
        dino_preprocessing: "checkpoint" follows the folder's preprocessor_config.json and, without one, the DreamBench protocol
        (resize 256, crop 224); "dreambench" always follows the protocol. A published ViT file usually squeezes images to a square instead.
        Raises EncoderError if the parts do not fit together, and what proxy_jax/weights/hub.py raises.
        """
        if dino_preprocessing not in ("checkpoint", "dreambench"):
            raise EncoderError(f"dino_preprocessing is 'checkpoint' or 'dreambench', not {dino_preprocessing!r}")
        dino_folder, clip_folder = hub.find(dino), hub.find(clip)
        vit = hub.load_pretrained(dino_folder, ViT, ViTConfig, vit_weights.table, compute=compute)
        two_towers = hub.load_pretrained(clip_folder, CLIP, CLIPConfig, clip_weights.table, compute=compute)
        from_file = preprocessing_in(dino_folder, square=True) if dino_preprocessing == "checkpoint" else None
        image_size = two_towers.config.vision_config.image_size
        preprocessing = {
            "dino": from_file or dreambench(vit.config.image_size),
            "clip": preprocessing_in(clip_folder, square=False) or clip_default(image_size),
        }
        if preprocessing["clip"].size != (image_size, image_size):
            raise EncoderError(f"{clip_folder}: images are prepared at {preprocessing['clip'].size}, the model wants {image_size}×{image_size}")
        tokenizer = _load_tokenizer(clip_folder, two_towers.config)
        return cls(vit, two_towers, tokenizer, preprocessing, batch_size=batch_size)

    def dino(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """DINO's CLS embeddings of uint8 [h, w, 3] images of any sizes: [n, d] float32 rows of length 1."""
        return self._images(images, self.preprocessing["dino"], self._dino)

    def clip_image(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """CLIP's embeddings of uint8 [h, w, 3] images of any sizes: [n, d] float32 rows of length 1."""
        return self._images(images, self.preprocessing["clip"], self._clip_image)

    def clip_text(self, texts: Sequence[str]) -> np.ndarray:
        """CLIP's embeddings of texts, cut at the model's length: [n, d] float32 rows of length 1."""
        if not texts:
            raise ValueError("no texts to embed")
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=self.max_length, return_tensors="np")
        ids, mask = tokens["input_ids"].astype(np.int32), tokens["attention_mask"].astype(np.int32)
        return self._batches(len(ids), lambda rows: (ids[rows], mask[rows]), self._clip_text)

    def _images(self, images: Sequence[np.ndarray], preprocessing: Preprocessing, run: Callable[..., np.ndarray]) -> np.ndarray:
        if not len(images):
            raise ValueError("no images to embed")
        return self._batches(len(images), lambda rows: (np.stack([preprocessing(image) for image in images[rows]]),), run)

    def _batches(self, n: int, inputs: Callable[[slice], tuple[np.ndarray, ...]], run: Callable[..., np.ndarray]) -> np.ndarray:
        pieces = []
        for start in range(0, n, self.batch_size):
            rows = slice(start, min(start + self.batch_size, n))
            short = self.batch_size - (rows.stop - rows.start)
            # The last row is repeated rather than zeros appended: every row stays a valid input.
            padded = (np.concatenate([x, np.repeat(x[-1:], short, axis=0)]) for x in inputs(rows))
            pieces.append(run(*padded)[: rows.stop - rows.start])
        return normalise(np.concatenate(pieces)).astype(np.float32)


def _compiled(model: nnx.Module, method: Callable[..., jax.Array]) -> Callable[..., np.ndarray]:
    """method(model, *inputs) under jit, from numpy to numpy; the weights are arguments, the result is on every host."""
    graph, state = nnx.split(model)
    mesh = sharding.current()

    def apply(state: nnx.State, *inputs: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):  # accelerators round float32 products otherwise, and scores move
            return method(nnx.merge(graph, state), *inputs).astype(np.float32)

    if mesh is None:
        run = jax.jit(apply)
        return lambda *inputs: np.asarray(run(state, *inputs))
    run = jax.jit(apply, out_shardings=sharding.replicated(mesh))

    def run_on_mesh(*inputs: np.ndarray) -> np.ndarray:
        with sharding.use(mesh):
            return np.asarray(run(state, *sharding.put_batch(inputs, mesh)))

    return run_on_mesh


def _load_tokenizer(folder: Path, config: CLIPConfig) -> Any:
    """The folder's tokenizer, checked against the model: transformers makes an empty one where the files are missing."""
    if not (folder / "tokenizer.json").is_file() and not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        raise EncoderError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt")
    tokenizer, text = AutoTokenizer.from_pretrained(folder), config.text_config
    if len(tokenizer) > text.vocab_size:
        raise EncoderError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {text.vocab_size}")
    # eos_token_id 2 is the old exports' value and means "the largest id" (see models/clip.py).
    if text.eos_token_id not in (2, tokenizer.eos_token_id):
        raise EncoderError(f"{folder}: the tokenizer ends texts with id {tokenizer.eos_token_id}, the model looks for {text.eos_token_id}")
    return tokenizer
