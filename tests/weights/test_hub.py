"""Finding checkpoints, configs, and reading and writing the official folder layouts."""

import dataclasses
import json
import types
from pathlib import Path

import huggingface_hub
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from huggingface_hub import errors

from proxy_jax.models import llamagen as llamagen_model
from proxy_jax.models import parameters, vqgan
from proxy_jax.models.layers import Compute
from proxy_jax.models.llamagen import LlamaGen, LlamaGenConfig
from proxy_jax.models.vqgan import VQConfig, VQModel
from proxy_jax.weights import hub, llamagen
from proxy_jax.weights import vqgan as vqgan_weights
from proxy_jax.weights.hub import CheckpointError
from proxy_jax.weights.table import WeightsError, export
from proxy_jax.weights.tensors import open_tensors

CONFIG = LlamaGenConfig(dim=16, n_layer=2, n_head=2, vocab_size=12, model_type="c2i", cls_token_num=1, num_classes=4, multiple_of=8)
SHA = "0123456789" * 4


# find


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An offline hub cache that holds some files of owner/name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repo = tmp_path / "cache" / "models--owner--name"
    snapshot = repo / "snapshots" / SHA
    (snapshot / "vae").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(SHA)
    (snapshot / "vae" / "config.json").write_text("{}")
    (snapshot / "t2i.pt").write_text("weights")
    return snapshot


def test_local_paths_come_first(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.find("owner/name") == Path("owner/name")
    file = tmp_path / "x.pt"
    file.touch()
    assert hub.find(file) == file and hub.find(str(file)) == file


def test_what_is_in_the_cache_is_found_offline(cache):
    assert hub.find("owner/name") == cache
    assert hub.find("owner/name/vae") == cache / "vae"
    assert hub.find("owner/name/t2i.pt").read_text() == "weights"


@pytest.mark.parametrize("checkpoint", ["owner/other", "owner/name/absent.pt", "owner/name/unet", "other/name/sub/file.safetensors"])
def test_what_is_nowhere_says_where_was_looked(cache, checkpoint):
    with pytest.raises(CheckpointError) as error:
        hub.find(checkpoint)
    message = str(error.value)
    assert str(Path(checkpoint).absolute()) in message
    assert f"https://huggingface.co/{'/'.join(checkpoint.split('/')[:2])}" in message
    assert "HF_HUB_OFFLINE" in message and "local folder" in message


@pytest.mark.parametrize("checkpoint", ["/absent/folder", "./absent/folder", "../a/b", "absent", "a b/c"])
def test_what_cannot_be_a_hub_id(checkpoint):
    with pytest.raises(CheckpointError, match="is no hub id"):
        hub.find(checkpoint)


class FakeHub:
    """Stands in for the hub: a repository's files, and what was asked for."""

    def __init__(self, monkeypatch, folder: Path, names: list[str], error: Exception | None = None):
        self.folder, self.names, self.error, self.patterns, self.files = folder, names, error, None, []
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.hf_hub_download)

    def list_repo_files(self, repo):
        if self.error is not None:
            raise self.error
        return self.names

    def snapshot_download(self, repo, *, allow_patterns):
        self.patterns = allow_patterns
        for name in allow_patterns:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        return str(self.folder)

    def hf_hub_download(self, repo, filename):
        if self.error is not None:
            raise self.error
        self.files.append((repo, filename))
        return str(self.folder / filename)


SD3 = [
    *("model_index.json", "sd3_medium.safetensors", "README.md", "scheduler/scheduler_config.json"),
    *("text_encoder_3/config.json", "text_encoder_3/model-00001-of-00002.safetensors", "text_encoder_3/model-00002-of-00002.safetensors"),
    *("text_encoder_3/model.safetensors.index.json", "text_encoder_3/model.fp16-00001-of-00002.safetensors"),
    *("text_encoder_3/model.safetensors.index.fp16.json", "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_3/spiece.model"),
    *("vae/config.json", "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors", "vae/flax_model.msgpack"),
]


def test_a_diffusers_repository(tmp_path, monkeypatch):
    fake = FakeHub(monkeypatch, tmp_path, SD3)
    assert hub.find("owner/sd3") == tmp_path
    unwanted = {"sd3_medium.safetensors", "README.md", "vae/flax_model.msgpack"}
    assert set(fake.patterns) == {name for name in SD3 if "fp16" not in name} - unwanted
    assert hub.find("owner/sd3/vae") == tmp_path / "vae"
    assert fake.patterns == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    hub.find("owner/sd3", files=["vae/*", "tokenizer/*"])
    assert fake.patterns == ["tokenizer/merges.txt", "tokenizer/vocab.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]


def test_one_file_of_a_repository(tmp_path, monkeypatch):
    fake = FakeHub(monkeypatch, tmp_path, [])
    assert hub.find("owner/name/sub/t2i.pt") == tmp_path / "sub" / "t2i.pt"
    assert fake.files == [("owner/name", "sub/t2i.pt")]


def test_safetensors_before_pickles_and_pickles_where_there_is_nothing_else():
    assert hub.select(["config.json", "model.safetensors", "pytorch_model.bin"]) == ["config.json", "model.safetensors"]
    assert hub.select(["config.json", "pytorch_model.bin", "tf_model.h5"]) == ["config.json", "pytorch_model.bin"]
    assert hub.select(["a/model.fp16.safetensors", "b/x.pt"]) == ["a/model.fp16.safetensors", "b/x.pt"]
    assert hub.select(["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "model.safetensors"]) == ["model.safetensors"]


def test_nothing_in_the_repository_matches(tmp_path, monkeypatch):
    FakeHub(monkeypatch, tmp_path, ["README.md"])
    with pytest.raises(CheckpointError, match=r"none of \*: it has README.md"):
        hub.find("owner/name")


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (errors.GatedRepoError, "accept the licence at https://huggingface.co/owner/name"),
        (errors.RepositoryNotFoundError, "check the name at https://huggingface.co/owner/name"),
        (errors.RemoteEntryNotFoundError, "see which files there are at https://huggingface.co/owner/name/tree/main"),
    ],
)
def test_what_to_do_about_errors_of_the_hub(tmp_path, monkeypatch, kind, advice):
    error = kind("no", response=types.SimpleNamespace(headers={}, request=None))
    FakeHub(monkeypatch, tmp_path, [], error)
    with pytest.raises(CheckpointError, match=advice):
        hub.find("owner/name/file.pt")


# config_from


@dataclasses.dataclass(frozen=True)
class SomeConfig:
    width: int
    levels: tuple[int, ...]
    eps: float = 1e-5
    nested: tuple = dataclasses.field(default_factory=tuple)


def test_config_from_an_official_config(tmp_path):
    hub.write_json(tmp_path / "new" / "config.json", {"_class_name": "X", "width": 8, "levels": [1, 2], "nested": [[1], [2, 3]]})
    expected = SomeConfig(8, (1, 2), 1e-5, ((1,), (2, 3)))
    assert hub.config_from(SomeConfig, tmp_path / "new" / "config.json") == expected
    assert hub.config_from(SomeConfig, {"width": 8, "levels": [1, 2], "nested": [[1], [2, 3]]}) == expected
    hash(expected)


def test_config_errors_name_the_file_and_the_field(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match=r"no file .*config.json"):
        hub.config_from(SomeConfig, path)
    path.write_text('{"width": 8, "other": 1}')
    with pytest.raises(CheckpointError, match=r"config.json lacks levels, which SomeConfig needs; it has width, other"):
        hub.config_from(SomeConfig, path)
    path.write_text("nonsense")
    with pytest.raises(CheckpointError, match=r"config.json is not JSON"):
        hub.read_json(path)
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="JSON object"):
        hub.read_json(path)


# folders


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    return LlamaGen(CONFIG, rngs=nnx.Rngs(0))


def load(folder: Path, **changes) -> LlamaGen:
    return hub.load_pretrained(folder, LlamaGen, LlamaGenConfig, llamagen.table, compute=Compute(), **changes)


def same(one: nnx.Module, other: nnx.Module, dtype=np.float32) -> bool:
    one, other = parameters.arrays(one), parameters.arrays(other)
    return one.keys() == other.keys() and all(
        np.array_equal(np.asarray(one[name]).astype(dtype), np.asarray(other[name]).astype(dtype)) for name in one
    )


@pytest.mark.parametrize("filename", ["model.safetensors", "diffusion_pytorch_model.safetensors"])
def test_save_and_load_a_folder(model, tmp_path, filename):
    hub.save_pretrained(model, llamagen.table(CONFIG), tmp_path, config={"_class_name": "LlamaGen", **dataclasses.asdict(CONFIG)}, filename=filename)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["config.json", filename])
    loaded = load(tmp_path)
    assert loaded.config == CONFIG and same(model, loaded)
    half = load(tmp_path, dtype_of=lambda name: jnp.bfloat16)
    assert all(value.dtype == jnp.bfloat16 for value in parameters.arrays(half).values())
    assert same(model, half, ml_dtypes.bfloat16)


def test_save_in_half_precision(model, tmp_path):
    hub.save_pretrained(model, llamagen.table(CONFIG), tmp_path, config=dataclasses.asdict(CONFIG), dtype=ml_dtypes.bfloat16)
    assert open_tensors(tmp_path).read("norm.weight", (slice(None),)).dtype == ml_dtypes.bfloat16
    assert same(model, load(tmp_path), ml_dtypes.bfloat16)


def test_the_preferred_file_is_loaded(model, tmp_path):
    hub.save_pretrained(model, llamagen.table(CONFIG), tmp_path, config=dataclasses.asdict(CONFIG))
    (tmp_path / "model.fp16.safetensors").write_bytes(b"broken")
    (tmp_path / "pytorch_model.bin").write_bytes(b"broken")
    assert same(model, load(tmp_path))


def test_a_folder_of_pickles(model, tmp_path):
    torch = pytest.importorskip("torch", reason="torch writes pytorch_model.bin")
    hub.write_json(tmp_path / "config.json", dataclasses.asdict(CONFIG))
    torch.save(
        {name: torch.from_numpy(value.copy()) for name, value in export(model, llamagen.table(CONFIG)).items()}, tmp_path / "pytorch_model.bin"
    )
    assert same(model, load(tmp_path))


def test_folders_that_cannot_be_loaded(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"no file .*config.json"):
        load(tmp_path)
    hub.write_json(tmp_path / "config.json", dataclasses.asdict(CONFIG))
    with pytest.raises(CheckpointError, match=r"no weights in .*found config.json"):
        load(tmp_path)
    hub.save_pretrained(model, llamagen.table(CONFIG), tmp_path, config=dataclasses.asdict(CONFIG) | {"dim": 24})
    with pytest.raises(WeightsError, match=f"{tmp_path.name} does not match LlamaGen"):
        load(tmp_path)


# LlamaGen's single files


class Shapes:
    """A checkpoint of which only the shapes exist."""

    def __init__(self, shapes):
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}

    def shapes(self):
        return self._shapes


def decoder_shapes(dim: int, n_layer: int, condition: dict) -> Shapes:
    layers = {f"layers.{i}.attention_norm.weight": (dim,) for i in range(n_layer)}
    return Shapes({"tok_embeddings.weight": (16384, dim), "norm.weight": (dim,)} | layers | condition)


def test_llamagen_config_from_the_file_beside(tmp_path):
    hub.write_json(tmp_path / "gpt.json", dataclasses.asdict(CONFIG))
    hub.write_json(tmp_path / "config.json", {"dim": 1})
    assert hub.llamagen_config(Shapes({}), tmp_path / "gpt.safetensors") == CONFIG


def test_llamagen_config_from_shapes(tmp_path):
    caption = {"cls_embedding.uncond_embedding": (120, 2048)}
    for published in llamagen_model.VARIANTS.values():
        assert hub.llamagen_config(decoder_shapes(published.dim, published.n_layer, caption), tmp_path / "x.pt") == published
    found = hub.llamagen_config(decoder_shapes(768, 12, {"cls_embedding.embedding_table.weight": (1001, 768)}), tmp_path / "x.pt")
    assert found == LlamaGenConfig(dim=768, n_layer=12, n_head=12, model_type="c2i", cls_token_num=1, num_classes=1000)


def test_llamagen_of_an_unknown_size(tmp_path):
    with pytest.raises(CheckpointError, match=r"width 64 and 3 layers; published are B \(768, 12\).*write .*x.json"):
        hub.llamagen_config(decoder_shapes(64, 3, {}), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no LlamaGen decoder: .* but decoder.conv_in.weight"):
        hub.llamagen_config(Shapes({"decoder.conv_in.weight": (1,)}), tmp_path / "x.pt")


def test_vq_config_from_the_file_beside(tmp_path):
    config = VQConfig(ch_mult=(1, 2), ch=32, z_channels=32, codebook_size=64)
    hub.write_json(tmp_path / "vq.json", dataclasses.asdict(config))
    assert hub.vq_config(Shapes({}), tmp_path / "vq.safetensors") == config


def test_vq_config_from_shapes(tmp_path):
    config = vqgan.VARIANTS["VQ-8"]
    variables = parameters.arrays(nnx.eval_shape(lambda: VQModel(config, rngs=nnx.Rngs(0))))
    entries = vqgan_weights.table(config).entries
    shapes = {name: entry.official_shape(variables[entry.ours].shape) for entry in entries for name in entry.names()}
    assert hub.vq_config(Shapes(shapes), tmp_path / "vq.pt") == config
    with pytest.raises(CheckpointError, match=r"none of VQ-16 \(.* differences.*; VQ-8 \(1 differences, first unused: more"):
        hub.vq_config(Shapes(shapes | {"more": (1,)}), tmp_path / "vq.pt")


@pytest.mark.parametrize(("name", "variant"), [("llamagen_vq16", "VQ-16"), ("llamagen_vq8", "VQ-8")])
def test_vq_config_of_the_published_files(shared, tmp_path, name, variant):
    listing = json.loads((shared / "manifests" / f"{name}.json").read_text())["tensors"]
    assert hub.vq_config(Shapes(listing), tmp_path / "vq.pt") == vqgan.VARIANTS[variant]
