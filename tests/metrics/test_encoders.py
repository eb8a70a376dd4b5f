"""The metric encoders against live transformers, through files on disk: small random CLIPModel and ViTModel, processors and tokenizer."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proxy_jax.metrics import encoders
from proxy_jax.metrics.encoders import EncoderError, MetricEncoders, Preprocessing
from proxy_jax.models.layers import Compute
from proxy_jax.models.vit import ViT
from tests import cheap_xla

COMPUTE = Compute(unroll=True, remat="none")
TEXTS = ["a red dog", "a dog on a cobblestone street with more words than the model has places for", "Ein Hünd, 2 cats!", ""]
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}


@pytest.fixture(scope="module")
def images():
    """Photos larger than the models' input, smaller, wide and tall, smooth enough that a wrong resize shows and noisy enough to alias."""
    rng = np.random.default_rng(0)
    sizes = [(50, 70), (91, 40), (20, 20), (32, 33), (128, 37)]
    smooth = [np.asarray(Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)) for size in sizes]
    return [np.clip(x + rng.normal(0, 20, x.shape), 0, 255).astype(np.uint8) for x in smooth]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(dino folder, clip folder, ViTModel, CLIPModel, CLIPProcessor): as save_pretrained writes them."""
    torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer, ViTConfig, ViTModel

    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    vocab, merges = byte_level_vocabulary()
    text = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 14}
    ends = {"bos_token_id": vocab["<|startoftext|>"], "eos_token_id": vocab["<|endoftext|>"], "pad_token_id": vocab["<|endoftext|>"]}
    config = CLIPConfig(text_config=text | ends | {"vocab_size": len(vocab)}, vision_config=VISION | {"image_size": 32}, projection_dim=20)
    clip = CLIPModel(config).eval()
    vit = ViTModel(ViTConfig(**VISION, image_size=32), add_pooling_layer=False).eval()
    for model in (clip, vit):  # transformers' 0.02 leaves all images nearly alike: spread the weights
        for parameter in model.parameters():
            parameter.data += 0.15 * torch.randn_like(parameter)
        model.requires_grad_(False)
    tokenizer_files = root / "tokenizer"
    tokenizer_files.mkdir()
    (tokenizer_files / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (tokenizer_files / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_files)
    processor = CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer)
    clip.save_pretrained(root / "clip")
    processor.save_pretrained(root / "clip")
    vit.save_pretrained(root / "dino")
    return root / "dino", root / "clip", vit, clip, processor


def byte_level_vocabulary():
    """A tiny CLIP vocabulary over all bytes, with a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = ["d o", "do g</w>", "c a", "o n</w>", "s t", "re d</w>", "r e"]
    merges.sort(key=lambda merge: len(merge.replace(" ", "").replace("</w>", "")))
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *(merge.replace(" ", "") for merge in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


@pytest.fixture(scope="module")
def loaded(folders):
    dino, clip, *_ = folders
    return MetricEncoders.load(str(dino), str(clip), compute=COMPUTE, batch_size=3)


def unit(features):
    rows = features.numpy().astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def error(ours, expected):
    assert ours.dtype == np.float32 and ours.shape == expected.shape
    gap = float(np.abs(ours - expected).max())
    # The comparison must be able to fail: rows of different images are far further apart than the tolerance.
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    print(f"max error {gap:.1e}")
    return gap


def features(output):
    """transformers 5 returns an output object where 4 returned the tensor."""
    return getattr(output, "pooler_output", output)


def test_clip_images_match_transformers(folders, loaded, images):
    _, _, _, clip, processor = folders
    pixels = processor(images=[Image.fromarray(x) for x in images], return_tensors="pt")["pixel_values"]
    assert error(loaded.clip_image(images), unit(features(clip.get_image_features(pixels)))) < 1e-4


def test_clip_texts_match_transformers(folders, loaded):
    _, _, _, clip, processor = folders
    tokens = processor(text=TEXTS, padding="max_length", truncation=True, max_length=14, return_tensors="pt")
    assert tokens["input_ids"].shape == (4, 14) and "dog</w>" in processor.tokenizer.convert_ids_to_tokens(tokens["input_ids"][0])
    assert error(loaded.clip_text(TEXTS), unit(features(clip.get_text_features(**tokens)))) < 1e-4


def test_dino_matches_transformers_under_the_dreambench_preprocessing(folders, loaded, images):
    import torch

    vit, pixels = folders[2], []
    for x in images:  # written out with Pillow: shortest side round(32 · 256/224) = 37, rounded down along the other, crop 32
        height, width = x.shape[:2]
        small = (37, int(37 * height / width)) if width <= height else (int(37 * width / height), 37)
        left, top = (small[0] - 32) // 2, (small[1] - 32) // 2
        picture = Image.fromarray(x).resize(small, Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
        pixels.append((np.asarray(picture) / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
    batch = torch.tensor(np.stack(pixels), dtype=torch.float32).permute(0, 3, 1, 2)
    assert error(loaded.dino(images), unit(vit(batch).last_hidden_state[:, 0])) < 1e-4


def test_dino_follows_the_folders_own_preprocessing(folders, images, tmp_path):
    from transformers import ViTImageProcessorPil

    dino, clip, vit, *_ = folders
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6])
    for file in dino.iterdir():
        (tmp_path / file.name).symlink_to(file)
    processor.save_pretrained(tmp_path)
    ours = MetricEncoders.load(str(tmp_path), str(clip), compute=COMPUTE)
    pixels = processor([Image.fromarray(x) for x in images], return_tensors="pt")["pixel_values"]
    expected = unit(vit(pixels).last_hidden_state[:, 0])
    assert error(ours.dino(images), expected) < 1e-4
    assert ours.preprocessing["dino"].describe() == "32×32 (bilinear)"
    protocol = MetricEncoders.load(str(tmp_path), str(clip), compute=COMPUTE, dino_preprocessing="dreambench")
    assert protocol.preprocessing["dino"] == encoders.dreambench(32)
    assert np.abs(protocol.dino(images) - expected).max() > 1e-2


def test_rows_do_not_depend_on_their_batch(loaded, images):
    """Batches of three: five images are a whole batch and a padded one; alone, each is padded by itself."""
    together = loaded.clip_image(images)
    alone = np.concatenate([loaded.clip_image([x]) for x in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_one_compilation_serves_all_numbers_and_sizes(folders, images, monkeypatch):
    traced, call = [], ViT.__call__
    monkeypatch.setattr(ViT, "__call__", lambda self, pixels: traced.append(pixels.shape) or call(self, pixels))
    dino, clip, *_ = folders
    fresh = MetricEncoders.load(str(dino), str(clip), compute=COMPUTE, batch_size=3)
    for some in (images[:1], images, images[2:4]):
        fresh.dino(some)
    assert traced == [(3, 32, 32, 3)]


def test_preprocessing_equals_transformers_pixels(images):
    pytest.importorskip("torch", reason="transformers' image processors need torch")
    from transformers import CLIPImageProcessorPil

    ours = encoders.clip_default(32)
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for x in images:
        expected = np.asarray(theirs(x, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
        np.testing.assert_allclose(ours(x), expected, atol=1e-6)


def test_published_sizes():
    assert encoders.dreambench(224) == Preprocessing(256, (224, 224), encoders.IMAGENET_MEAN, encoders.IMAGENET_STD)
    assert encoders.dreambench(224).describe() == "shortest side 256 (bicubic), centre crop 224×224"
    assert encoders.clip_default(224).resize == 224
    wide = Preprocessing(32, (16, 20), (0.0,) * 3, (1.0,) * 3)(np.full((40, 100, 3), 255, np.uint8))
    assert wide.shape == (16, 20, 3) and wide.min() == wide.max() == 1


def test_crop_keeps_the_middle():
    x = np.zeros((32, 96, 3), np.uint8)
    x[:, 32:64] = 255
    out = Preprocessing(32, (32, 32), (0.0,) * 3, (1.0,) * 3)(x)
    assert out.min() == 1
    with pytest.raises(ValueError, match="uint8"):
        Preprocessing(32, (32, 32), (0.0,) * 3, (1.0,) * 3)(x.astype(np.float32))


OLD_FILE = {"size": 224, "resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3], "do_resize": True}


@pytest.mark.parametrize(
    ("content", "square", "expected"),
    [
        (OLD_FILE, True, ((224, 224), None)),
        (OLD_FILE | {"do_center_crop": True, "crop_size": 200}, False, (224, (200, 200))),
        ({"image_processor": OLD_FILE | {"size": {"height": 8, "width": 9}}}, False, ((8, 9), None)),
    ],
)
def test_reads_old_and_new_files(tmp_path, content, square, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    found = encoders.preprocessing_in(tmp_path, square=square)
    assert (found.resize, found.crop) == expected
    assert (found.mean, found.std, found.resample) == ((0.1, 0.2, 0.3), (1, 2, 3), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_normalize": False}, "not supported: ['do_normalize']"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"size": {"shortest_edge": 224}}, "nothing crops them"),
    ],
)
def test_refuses_what_it_would_do_otherwise(tmp_path, change, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OLD_FILE | change))
    with pytest.raises(EncoderError, match=re.escape(message)):
        encoders.preprocessing_in(tmp_path, square=True)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 224}))
    with pytest.raises(EncoderError, match="lacks"):
        encoders.preprocessing_in(tmp_path, square=True)
    assert encoders.preprocessing_in(tmp_path / "nowhere", square=True) is None


def test_parts_that_do_not_fit_are_refused(folders, tmp_path):
    dino, clip, *_ = folders
    for file in clip.iterdir():
        if file.name != "tokenizer.json":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(EncoderError, match="no tokenizer"):
        MetricEncoders.load(str(dino), str(tmp_path), compute=COMPUTE)
    (tmp_path / "tokenizer.json").symlink_to(clip / "tokenizer.json")
    processor = json.loads((clip / "processor_config.json").read_text())
    processor["image_processor"]["crop_size"] = {"height": 24, "width": 24}
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(EncoderError, match="the model wants 32×32"):
        MetricEncoders.load(str(dino), str(tmp_path), compute=COMPUTE)
    with pytest.raises(EncoderError, match="dino_preprocessing"):
        MetricEncoders.load(str(dino), str(clip), compute=COMPUTE, dino_preprocessing="other")


def test_nothing_to_embed(loaded):
    with pytest.raises(ValueError, match="no images"):
        loaded.dino([])
    with pytest.raises(ValueError, match="no texts"):
        loaded.clip_text([])


ON_A_MESH = """
import sys
import numpy as np
from proxy_jax import sharding
from proxy_jax.metrics.encoders import MetricEncoders
from proxy_jax.models.layers import Compute
folder, dino, clip = sys.argv[1:]
with sharding.use(sharding.make_mesh(data=2, fsdp=2)):
    encoders = MetricEncoders.load(dino, clip, compute=Compute(unroll=True, remat="none"), batch_size=3)
assert encoders.batch_size == 4
images = np.load(f"{folder}/images.npz")
images = [images[f"arr_{i}"] for i in range(len(images))]
np.savez(f"{folder}/rows.npz", dino=encoders.dino(images))
"""


def test_on_a_mesh_of_four_devices(folders, loaded, images, tmp_path):
    """Parameters and batches are split, a batch of three grows to four, and the rows are those of one device."""
    np.savez(tmp_path / "images.npz", *images)
    command = [sys.executable, "-c", ON_A_MESH, str(tmp_path), str(folders[0]), str(folders[1])]
    subprocess.run(command, env=cheap_xla.environment(devices=4), cwd=Path(encoders.__file__).parents[2], check=True, timeout=120)
    np.testing.assert_allclose(np.load(tmp_path / "rows.npz")["dino"], loaded.dino(images), atol=1e-5)
