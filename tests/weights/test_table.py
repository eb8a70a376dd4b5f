"""The engine of name tables: loading, exporting, every kind of difference, and slices of a mesh's shards."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from proxy_jax.models import parameters
from proxy_jax.models.layers import Conv, Dense, Embed, LayerNorm, stack
from proxy_jax.weights import table as tables
from proxy_jax.weights.table import Entry, Table, WeightsError, differences
from proxy_jax.weights.tensors import open_tensors

WIDTH, LAYERS = 8, 3


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = LayerNorm(WIDTH)
        self.q = Dense(WIDTH, WIDTH, axes=("embed", "heads"), rngs=rngs)
        self.k = Dense(WIDTH, WIDTH, axes=("embed", "heads"), rngs=rngs)
        self.v = Dense(WIDTH, WIDTH, axes=("embed", "heads"), rngs=rngs)


class Tiny(nnx.Module):
    """Every layout that a table can describe: stacked, fused, reordered axes, 1 × 1 convolutions, scalars."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = Embed(10, WIDTH, rngs=rngs)
        self.blocks = stack(Block, LAYERS, rngs)
        self.conv = Conv(3, 4, window=3, rngs=rngs)
        self.point = Dense(4, 6, rngs=rngs)
        self.temperature = nnx.Param(jnp.zeros(()), axes=())


def make() -> Tiny:
    return Tiny(nnx.Rngs(0))


BLOCKS = [
    *tables.norm("h.{l}.ln", "blocks.norm"),
    *(entry for i, name in enumerate("qkv") for entry in tables.linear("h.{l}.attn", f"blocks.{name}", part=(i, 3))),
]
ENTRIES = (
    *tables.embed("wte", "embed"),
    *tables.layers(range(LAYERS), BLOCKS),
    *tables.conv("conv", "conv"),
    *tables.pointwise("point", "point"),
    *tables.param("temperature", "temperature"),
)
TABLE = Table(
    ENTRIES,
    ignored=(r"h\.\d+\.attn\.statistics",),
    copies={"lm_head.weight": "wte.weight"},
    renames=((r"^(model|module)\.", ""), (r"^tok\.", "wte.")),
)

SHAPES = {
    "wte.weight": (10, WIDTH),
    "lm_head.weight": (10, WIDTH),
    "conv.weight": (4, 3, 3, 3),
    "conv.bias": (4,),
    "point.weight": (6, 4, 1, 1),
    "point.bias": (6,),
    "temperature": (),
}
for layer in range(LAYERS):
    SHAPES |= {f"h.{layer}.ln.weight": (WIDTH,), f"h.{layer}.ln.bias": (WIDTH,)}
    SHAPES |= {f"h.{layer}.attn.weight": (3 * WIDTH, WIDTH), f"h.{layer}.attn.bias": (3 * WIDTH,)}


class Held:
    """Tensors in memory; counts the elements that are read, and the most of each tensor at a time."""

    def __init__(self, tensors: dict[str, np.ndarray]):
        self.tensors, self.count, self.largest = tensors, 0, dict.fromkeys(tensors, 0)

    def shapes(self):
        return {name: value.shape for name, value in self.tensors.items()}

    def read(self, name, index):
        piece = self.tensors[name][index]
        self.count += piece.size
        self.largest[name] = max(self.largest[name], piece.size)
        return piece


@pytest.fixture
def official() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}
    return tensors | {"lm_head.weight": tensors["wte.weight"].copy()}


def test_each_layout_is_read_as_it_should_be(official):
    values = {name: np.asarray(value) for name, value in parameters.arrays(tables.load(make, TABLE, Held(official))).items()}
    np.testing.assert_array_equal(values["embed.embedding"], official["wte.weight"])
    np.testing.assert_array_equal(values["conv.kernel"], np.einsum("oihw->hwio", official["conv.weight"]))
    np.testing.assert_array_equal(values["point.kernel"], official["point.weight"][:, :, 0, 0].T)
    assert values["temperature"] == official["temperature"]
    for layer in range(LAYERS):
        q, k, v = np.split(official[f"h.{layer}.attn.weight"], 3)
        for name, piece in (("q", q), ("k", k), ("v", v)):
            np.testing.assert_array_equal(values[f"blocks.{name}.kernel"][layer], piece.T)
        np.testing.assert_array_equal(values["blocks.v.bias"][layer], official[f"h.{layer}.attn.bias"][-WIDTH:])
        np.testing.assert_array_equal(values["blocks.norm.scale"][layer], official[f"h.{layer}.ln.weight"])


def test_export_gives_back_every_tensor(official):
    exported = tables.export(tables.load(make, TABLE, Held(official)), TABLE)
    assert exported.keys() == official.keys()
    for name, value in official.items():
        assert exported[name].shape == value.shape
        np.testing.assert_array_equal(exported[name], value)


def test_save_and_load_through_a_file(official, tmp_path):
    model = tables.load(make, TABLE, Held(official))
    tables.save(model, TABLE, tmp_path / "new" / "x.safetensors", dtype=ml_dtypes.bfloat16)
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["x.safetensors"]
    tensors = open_tensors(tmp_path / "new" / "x.safetensors")
    assert tensors.read("wte.weight", (slice(None), slice(None))).dtype == ml_dtypes.bfloat16
    again = tables.load(make, TABLE, tensors)
    for name, value in parameters.arrays(model).items():
        np.testing.assert_array_equal(np.asarray(value).astype(ml_dtypes.bfloat16), np.asarray(parameters.arrays(again)[name]))


def test_dtype_of_decides_by_our_name(official):
    model = tables.load(make, TABLE, Held(official), dtype_of=lambda name: jnp.bfloat16 if name.startswith("blocks.") else jnp.float32)
    kinds = {name: value.dtype for name, value in parameters.arrays(model).items()}
    assert kinds["blocks.q.kernel"] == jnp.bfloat16 and kinds["conv.kernel"] == jnp.float32


@pytest.mark.parametrize("prefix", ["model.", "module.", ""])
def test_names_of_other_exports(official, prefix):
    model = tables.load(make, TABLE, Held({prefix + name.replace("wte", "tok"): value for name, value in official.items()}))
    np.testing.assert_array_equal(np.asarray(model.embed.embedding[...]), official["wte.weight"])


def test_ignored_tensors_and_absent_copies(official):
    official["h.1.attn.statistics"] = np.zeros(100, np.float32)
    del official["lm_head.weight"]
    held = Held(official)
    tables.load(make, TABLE, held)
    assert held.count == sum(value.size for name, value in official.items() if "statistics" not in name)


def without(name):
    return {key: shape for key, shape in SHAPES.items() if key != name}


DIFFERENCES = {
    "missing": (without("conv.bias"), TABLE, ["missing: conv.bias (4,)"]),
    "missing fused": (without("h.1.attn.bias"), TABLE, [f"missing: h.1.attn.bias ({3 * WIDTH},)"]),
    "unused": (SHAPES | {"extra": (3,)}, TABLE, ["unused: extra (3,)"]),
    "one more layer": (SHAPES | {"h.3.ln.bias": (8,)}, TABLE, ["unused: h.3.ln.bias (8,)"]),
    "misshaped": (SHAPES | {"wte.weight": (11, 8)}, TABLE, ["shape of wte.weight: (11, 8) in the file, (10, 8) in the model"]),
    "transposed": (SHAPES | {"conv.weight": (3, 3, 3, 4)}, TABLE, ["shape of conv.weight: (3, 3, 3, 4) in the file, (4, 3, 3, 3) in the model"]),
    "flat": (SHAPES | {"point.weight": (6, 4)}, TABLE, ["shape of point.weight: (6, 4) in the file, (6, 4, 1, 1) in the model"]),
    "duplicate": (SHAPES | {"model.wte.weight": (10, 8)}, TABLE, ["in the file 2 times: wte.weight"]),
    "hole in the table": (
        without("point.bias"),
        Table(tuple(entry for entry in ENTRIES if entry.ours != "point.bias"), TABLE.ignored, TABLE.copies),
        ["not in the table: our point.bias (6,)"],
    ),
    "unknown variable": (
        SHAPES,
        Table((*ENTRIES, Entry("x", "nothing")), TABLE.ignored, TABLE.copies),
        ["in the table but not in the model: our nothing"],
    ),
    "filled twice": (
        SHAPES,
        Table((*ENTRIES, Entry("temperature", "temperature")), TABLE.ignored, TABLE.copies),
        ["in the table 2 times: our temperature", "read 2 times by the table: temperature"],
    ),
    "a part left out": (
        SHAPES,
        Table((*(entry for entry in ENTRIES if entry.ours != "blocks.v.bias"),), TABLE.ignored, TABLE.copies),
        [f"not in the table: our blocks.v.bias (3, {WIDTH})", *(f"read 2 times by the table: h.{i}.attn.bias" for i in range(3))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENCES)
def test_every_difference_is_named(case):
    shapes, table, expected = DIFFERENCES[case]
    assert sorted(differences(nnx.eval_shape(make), table, shapes)) == sorted(expected)


def test_wrong_number_of_layers():
    table = Table((*tables.embed("wte", "embed"), *tables.layers(range(4), BLOCKS), *ENTRIES[-5:]), TABLE.ignored, TABLE.copies)
    problems = differences(nnx.eval_shape(make), table, SHAPES)
    assert f"blocks.q.kernel stacks {LAYERS} layers, the table 4" in problems
    assert f"missing: h.3.ln.weight ({WIDTH},)" in problems


def test_load_lists_all_differences_and_names_the_source(official):
    del official["conv.bias"], official["h.0.ln.bias"]
    with pytest.raises(WeightsError, match=r"FILE does not match Tiny:\n(.*\n)*  missing: conv.bias \(4,\)") as error:
        tables.load(make, TABLE, Held(official | {"extra": np.zeros(1)}), source="FILE")
    assert "missing: h.0.ln.bias" in str(error.value) and "unused: extra" in str(error.value)


ON_A_MESH = """
import json
import sys
import jax
import numpy as np
sys.path.insert(0, {folder!r})
from test_table import Held, SHAPES, TABLE, make
from proxy_jax import sharding
from proxy_jax.models import parameters
from proxy_jax.weights import table as tables

rng = np.random.default_rng(0)
official = {{name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}}
official["lm_head.weight"] = official["wte.weight"].copy()
plain = parameters.arrays(tables.load(make, TABLE, Held(official)))
with sharding.use(sharding.make_mesh(data=2, fsdp=2, tensor=2)):
    held = Held(official)
    sharded = parameters.arrays(tables.load(make, TABLE, held))
for name, value in sharded.items():
    np.testing.assert_array_equal(np.asarray(value), np.asarray(plain[name]))
q = sharded["blocks.q.kernel"]
print(json.dumps(dict(devices=len(jax.devices()), shard=q.addressable_shards[0].data.shape, largest=held.largest, count=held.count)))
"""


def test_a_mesh_reads_no_more_than_its_shards():
    program = ON_A_MESH.format(folder=str(Path(__file__).parent))
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PATH": ""}
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, env=environment | {"PYTHONPATH": str(root)})
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    print(found)
    assert found["devices"] == 8 and found["shard"] == [LAYERS, WIDTH // 2, WIDTH // 2]
    largest = found["largest"]
    assert largest["h.0.attn.weight"] == (WIDTH // 2) ** 2  # of 3 · WIDTH²: one projection's half of both axes
    assert largest["wte.weight"] == 10 * WIDTH // 4
    assert largest["conv.weight"] == 4 * 3 * 3 * 3 // 2
    assert largest["h.0.ln.weight"] == WIDTH and largest["lm_head.weight"] == 0
