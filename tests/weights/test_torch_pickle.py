"""PyTorch's pickled files: what torch writes is read exactly; what could do harm is refused and does nothing."""

import argparse
import collections
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from proxy_jax.weights import torch_pickle
from proxy_jax.weights.region import CheckpointError
from proxy_jax.weights.tensors import open_tensors
from proxy_jax.weights.torch_pickle import PickleRefused

LAYOUTS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch writes the files that this test reads")


def save(content, path: Path, zipped: bool = True, protocol: int = 2) -> Path:
    import torch

    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


def check(path: Path, expected: dict) -> None:
    """The file's tensors are `expected`, in type, shape and value; slices too."""
    tensors = open_tensors(path)
    assert tensors.shapes() == {name: tuple(value.shape) for name, value in expected.items()}
    for name, value in expected.items():
        read = tensors.read(name, (slice(None),) * value.ndim)
        assert str(read.dtype) == str(value.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(read.astype(np.float64), value.detach().double().numpy())
        if value.ndim == 2:
            part = tensors.read(name, (slice(1, 3), slice(0, 2)))
            np.testing.assert_array_equal(part.astype(np.float64), value.detach().double().numpy()[1:3, 0:2])


def state_dict(torch) -> dict:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    return {
        **torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5)).state_dict(),
        "base": base,
        "tied": base,
        "transposed": base.T,
        "strided": base[1:5:2, 2:7:3],
        "row": base[3],
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "half": torch.randn(3, 3).half(),
        "bfloat16": torch.randn(3, 3).bfloat16(),
        "double": torch.randn(2).double(),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        **{str(dtype): torch.tensor([1, 0, 1]).to(dtype) for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)},
    }


@LAYOUTS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_type_and_view(torch, tmp_path, zipped, protocol):
    expected = state_dict(torch)
    check(save(expected, tmp_path / "x.pt", zipped, protocol), expected)


@LAYOUTS
def test_tied_tensors_lie_in_one_place(torch, tmp_path, zipped):
    regions = torch_pickle.torch_regions(save(state_dict(torch), tmp_path / "x.pt", zipped))
    assert regions["base"] == regions["tied"]
    assert regions["row"].offset == regions["base"].offset + 3 * 8 * 4


@LAYOUTS
@pytest.mark.parametrize("key", ["model", "module", "state_dict"])
def test_a_training_checkpoint(torch, tmp_path, zipped, key):
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(lr=1e-4, betas=(0.9, 0.95), name="XL", nested=[1, None])
    content = {"optimizer": optimizer.state_dict(), "args": args, "steps": 5, key: model.state_dict()}
    check(save(content, tmp_path / "x.pt", zipped), model.state_dict())


def test_the_order_of_the_keys(torch, tmp_path):
    content = {"state_dict": {"a": torch.zeros(1)}, "module": {"b": torch.zeros(1)}, "model": {"c": torch.zeros(1)}}
    assert set(open_tensors(save(content, tmp_path / "x.pt")).shapes()) == {"c"}


def test_a_module_named_model_is_no_key(torch, tmp_path):
    content = {"model": torch.zeros(2), "other": torch.ones(3)}
    check(save(content, tmp_path / "x.pt"), content)


@LAYOUTS
def test_shards_with_an_index(torch, tmp_path, zipped):
    shards = {"pytorch_model-00001-of-00002.bin": {"a": torch.randn(3, 2)}, "pytorch_model-00002-of-00002.bin": {"b": torch.randn(4)}}
    for name, content in shards.items():
        save(content, tmp_path / name, zipped)
    weight_map = {key: name for name, content in shards.items() for key in content}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    check(tmp_path, {key: value for content in shards.values() for key, value in content.items()})


def test_any_top_folder_name(torch, tmp_path):
    check(save({"a": torch.ones(2)}, tmp_path / "some name.v2.ckpt"), {"a": torch.ones(2)})


def test_no_state_dict(torch, tmp_path):
    huge = 10**5000  # which Python will not write out
    for content in ([1, 2], {"epoch": 3}, {}, {"a": torch.zeros(1), "b": {"c": torch.zeros(1)}}, {"a": torch.zeros(1), "epoch": 3}, {huge: 1}):
        with pytest.raises(CheckpointError, match="tensors"):
            open_tensors(save(content, tmp_path / "x.pt"))


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 and nothing more", b"\x89PNG\r\n\x1a\n" * 20])
def test_other_files(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError):
        open_tensors(tmp_path / "x.pt")


# Malicious files. `bomb(marker)` is a pickle that, under pickle.load, would leave the marker file.


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def write_zip(path: Path, program: bytes, storages=(("0", b"\0" * 16),), **changes) -> Path:
    with zipfile.ZipFile(path, "w", changes.pop("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in storages:
            archive.writestr(f"archive/data/{name}", content)
        for name, content in changes.items():
            archive.writestr(name, content)
    return path


def write_legacy(path: Path, program: bytes, keys=("0",), storages: bytes = struct.pack("<q", 4) + b"\0" * 16) -> Path:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(part, 2) for part in (torch_pickle.LEGACY_MAGIC, torch_pickle.LEGACY_PROTOCOL, system)]
    path.write_bytes(b"".join([*parts, program, pickle.dumps(list(keys), 2), storages]))
    return path


def touch(marker: Path) -> str:
    return f"touch {marker}"


def global_(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def system_call(marker: Path) -> bytes:
    return b"\x80\x02" + global_("os.system") + b"(" + text(touch(marker)) + b"tR."


def nested_reduce(marker: Path) -> bytes:
    """getattr(__import__("os"), "system")("touch ..."), all by REDUCE."""
    module = global_("builtins.__import__") + b"(" + text("os") + b"tR"
    function = global_("builtins.getattr") + b"(" + module + text("system") + b"tR"
    return b"\x80\x02" + function + b"(" + text(touch(marker)) + b"tR."


def evaluated(marker: Path) -> bytes:
    return pickle.dumps({"a": Calls(eval, f"open({str(marker)!r}, 'w')")}, 2)


def executed_by_stack_global(marker: Path) -> bytes:
    return pickle.dumps([Calls(exec, f"open({str(marker)!r}, 'w')")], 4)


def dotted_stack_global(marker: Path) -> bytes:
    """A path of attributes from an allowed module, as protocol 4 permits."""
    name = text("torch._utils") + text("sys.modules.__getitem__") + b"\x93"
    return b"\x80\x04" + name + b"(" + text("os") + b"tR."


def instance_opcode(marker: Path) -> bytes:
    return b"(" + text(touch(marker)) + b"ios\nsystem\n."


def object_opcode(marker: Path) -> bytes:
    return b"\x80\x02(" + global_("os.system") + text(touch(marker)) + b"o."


def build_on_a_record(marker: Path) -> bytes:
    """A Namespace whose state would be a call's result."""
    call = global_("os.system") + b"(" + text(touch(marker)) + b"tR"
    return b"\x80\x02" + global_("argparse.Namespace") + b")\x81}" + text("a") + call + b"sb."


def build_on_a_function(marker: Path) -> bytes:
    """Sets __defaults__ of an allowed function, to change what later files do."""
    return b"\x80\x02" + global_("torch._utils._rebuild_tensor") + b"}" + text("__defaults__") + b")sb0N."


def build_on_a_tensor(marker: Path) -> bytes:
    return b"\x80\x02" + tensor() + b"}" + text("shape") + b")sb."


def called_namespace(marker: Path) -> bytes:
    return b"\x80\x02" + global_("argparse.Namespace") + b")R."


def called_storage_type(marker: Path) -> bytes:
    return b"\x80\x02" + global_("torch.FloatStorage") + b"(K\x04tR."


def new_of_a_call(marker: Path) -> bytes:
    return b"\x80\x02" + global_("torch._utils._rebuild_tensor") + b")\x81."


def extension_registry(marker: Path) -> bytes:
    return b"\x80\x02\x82\x01."


def unknown_tensor_kind(marker: Path) -> bytes:
    return b"\x80\x02" + global_("torch._utils._rebuild_wrapper_subclass") + b")R."


def tensor_hooks(marker: Path) -> bytes:
    hooks = b"}" + text("hook") + global_("collections.OrderedDict") + b"s"
    arguments = b"(" + storage() + b"K\x00K\x04\x85K\x01\x85\x89" + hooks + b"t"
    return b"\x80\x02" + global_("torch._utils._rebuild_tensor_v2") + arguments + b"R."


def exponential_key(marker: Path) -> bytes:
    """A dict key of 2**60 nested tuples, which hashing would never finish."""
    return b"\x80\x02}" + b")" + b"2\x86" * 60 + b"Ns."


def deep_key(marker: Path) -> bytes:
    return b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"Ns."


def memo_bomb(marker: Path) -> bytes:
    """A memo index that C's unpickler would make 16 GiB of table for, then an unknown name."""
    return b"\x80\x02Nr\xff\xff\xff\x7f" + global_("os.system") + b"."


def append_to_a_call(marker: Path) -> bytes:
    return b"\x80\x02" + global_("collections.OrderedDict") + b"Na."


def underflow(marker: Path) -> bytes:
    return b"\x80\x02R."


def unfinished(marker: Path) -> bytes:
    return b"\x80\x02}"


def int_key_persistent_id(marker: Path) -> bytes:
    return b"\x80\x02K\x07Q."


def shared_tuples() -> bytes:
    """A tuple of 2**60 empty ones, each level the one below it twice."""
    return b")" + b"".join(b"q" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(60))


def endless_persistent_id(marker: Path) -> bytes:
    return b"\x80\x02" + shared_tuples() + b"Q."


def endless_name(marker: Path) -> bytes:
    return b"\x80\x04" + shared_tuples() + text("a") + b"\x93."


def endless_shape(marker: Path) -> bytes:
    arguments = b"(" + storage() + b"K\x00(" + shared_tuples() + b"tK\x01\x85t"
    return b"\x80\x02" + global_("torch._utils._rebuild_tensor") + arguments + b"R."


def deep_persistent_id(marker: Path) -> bytes:
    return b"\x80\x02)" + b"\x85" * 100_000 + b"Q."


def chain_of_allowed_calls(marker: Path) -> bytes:
    """A parameter of a parameter of ... of a dict."""
    chain = global_("collections.OrderedDict") + b")R"
    for _ in range(1000):
        chain = global_("torch._utils._rebuild_parameter") + b"(" + chain + b"\x89NtR"
    return b"\x80\x02" + chain + b"."


def storage(key: str = "0", kind: str = "torch.FloatStorage", size: bytes = b"K\x04") -> bytes:
    return b"(" + text("storage") + global_(kind) + text(key) + text("cpu") + size + b"tQ"


def tensor(shape=(4,), strides=(1,), offset=0, **storage_changes) -> bytes:
    """The opcodes of one tensor, by default all of a storage of 4 floats."""

    def number(value: int) -> bytes:
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

    numbers = [b"(" + b"".join(map(number, values)) + b"t" for values in (shape, strides)]
    return global_("torch._utils._rebuild_tensor") + b"(" + storage(**storage_changes) + number(offset) + b"".join(numbers) + b"tR"


def one_tensor(**changes) -> bytes:
    return b"\x80\x02}" + text("x") + tensor(**changes) + b"s."


PROGRAMS = [
    *(system_call, nested_reduce, evaluated, executed_by_stack_global, dotted_stack_global, instance_opcode, object_opcode),
    *(build_on_a_record, build_on_a_function, build_on_a_tensor, called_namespace, called_storage_type, new_of_a_call),
    *(extension_registry, unknown_tensor_kind, tensor_hooks, exponential_key, deep_key, memo_bomb, append_to_a_call),
    *(underflow, unfinished, int_key_persistent_id),
    *(endless_persistent_id, endless_name, endless_shape, deep_persistent_id, chain_of_allowed_calls),
]
HARMFUL = (system_call, nested_reduce, evaluated, executed_by_stack_global, instance_opcode, object_opcode, build_on_a_record)


@LAYOUTS
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_programs_are_refused_and_not_run(tmp_path, zipped, program):
    marker = tmp_path / "marker"
    path = (write_zip if zipped else write_legacy)(tmp_path / "x.pt", program(marker))
    defaults = torch_pickle._tensor.__defaults__
    with pytest.raises(PickleRefused, match=r"x\.pt is refused: "):
        open_tensors(path)
    assert not marker.exists()
    assert torch_pickle._tensor.__defaults__ == defaults


@pytest.mark.parametrize("program", HARMFUL, ids=lambda program: program.__name__)
def test_the_harmful_programs_do_harm_under_pickle(tmp_path, program):
    """So that the test above shows something: these programs work."""
    pickle.loads(program(tmp_path / "marker"))
    assert (tmp_path / "marker").exists()


def test_the_message_names_what_is_refused(tmp_path):
    with pytest.raises(PickleRefused, match=r"names 'os\.system'"):
        open_tensors(write_zip(tmp_path / "x.pt", system_call(tmp_path / "marker")))


def test_an_unknown_class_in_the_arguments_is_named(torch, tmp_path):
    with pytest.raises(PickleRefused, match="names 'pathlib"):
        open_tensors(save({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(path=Path("x"))}, tmp_path / "y.pt"))


def test_a_malicious_pickle_in_place_of_the_magic_number(tmp_path):
    (tmp_path / "x.pt").write_bytes(system_call(tmp_path / "marker"))
    with pytest.raises(PickleRefused, match=r"names 'os\.system'"):
        open_tensors(tmp_path / "x.pt")
    assert not (tmp_path / "marker").exists()


@LAYOUTS
def test_the_handwritten_tensor_is_fine(tmp_path, zipped):
    """What the cases below each spoil in one place."""
    path = (write_zip if zipped else write_legacy)(tmp_path / "x.pt", one_tensor())
    assert open_tensors(path).shapes() == {"x": (4,)}


SPOILED = {
    "too long": dict(shape=(5,)),
    "offset past the end": dict(offset=1),
    "negative offset": dict(offset=-1),
    "negative stride": dict(strides=(-1,), offset=3),
    "negative size": dict(shape=(-1,)),
    "strides past the end": dict(shape=(2, 2), strides=(4, 1)),
    "huge size": dict(shape=(1 << 63,)),
    "huge stride": dict(shape=(2,), strides=(1 << 63,)),
    "repeated elements": dict(shape=(1 << 40,), strides=(0,)),
    "overlapping rows": dict(shape=(3, 2), strides=(1, 1)),
    "fewer strides than sizes": dict(shape=(2, 2)),
    "too many axes": dict(shape=(1,) * 40, strides=(1,) * 40),
    "storage larger than its bytes": dict(size=b"J\x00\x00\x00\x40"),
    "storage of wider elements": dict(kind="torch.DoubleStorage"),
    "absent storage": dict(key="1"),
    "path in the storage's key": dict(key="../../secret"),
    "unknown storage type": dict(kind="torch.EvilStorage"),
}


@LAYOUTS
@pytest.mark.parametrize("case", SPOILED)
def test_tensors_outside_their_storage(tmp_path, zipped, case):
    path = (write_zip if zipped else write_legacy)(tmp_path / "x.pt", one_tensor(**SPOILED[case]))
    with pytest.raises(PickleRefused):
        open_tensors(path)


def test_legacy_storages_that_do_not_fit(tmp_path):
    for storages in (struct.pack("<q", 4) + b"\0" * 8, struct.pack("<q", 1 << 40) + b"\0" * 16, struct.pack("<q", -4) + b"\0" * 16, b""):
        with pytest.raises(PickleRefused, match="is stored with"):
            open_tensors(write_legacy(tmp_path / "x.pt", one_tensor(), storages=storages))
    with pytest.raises(PickleRefused, match="list of storages"):
        open_tensors(write_legacy(tmp_path / "x.pt", one_tensor(), keys=("0", "1")))


def test_zip_bombs(tmp_path):
    path = write_zip(tmp_path / "x.pt", one_tensor(), [("0", b"\0" * 10_000_000)], compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(PickleRefused, match=r"larger than itself|compressed"):
        open_tensors(path)
    small = write_zip(tmp_path / "y.pt", one_tensor(), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(PickleRefused, match="compressed"):
        open_tensors(small)


def test_declared_sizes_beyond_the_file(tmp_path):
    path = write_zip(tmp_path / "x.pt", one_tensor())
    content = bytearray(path.read_bytes())
    # The central directory's entry of archive/data/0: compressed and uncompressed size are at bytes 20 and 24.
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(PickleRefused, match="larger than itself"):
        open_tensors(path)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "archive/../../evil", "archive\\..\\evil"])
def test_paths_that_leave_the_archive(tmp_path, name):
    with pytest.raises(PickleRefused, match="a zip entry with the path"):
        open_tensors(write_zip(tmp_path / "x.pt", one_tensor(), **{name: b"x"}))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.pt"]


def test_two_entries_of_one_name(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"), pytest.raises(PickleRefused, match="two entries"):
        open_tensors(write_zip(tmp_path / "x.pt", one_tensor(), [("0", b"\0" * 16), ("0", b"\1" * 16)]))


def test_big_endian_files(tmp_path):
    with pytest.raises(CheckpointError, match="big-endian"):
        open_tensors(write_zip(tmp_path / "x.pt", one_tensor(), **{"archive/byteorder": b"big"}))


def test_a_pickle_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "PICKLE_LIMIT", 1000)
    program = b"\x80\x02]" + b"N0" * 1000 + b"."
    for write in (write_zip, write_legacy):
        with pytest.raises(PickleRefused, match="longer than 1000"):
            open_tensors(write(tmp_path / "x.pt", program))


def test_ordered_dicts_become_dicts(torch, tmp_path):
    content = collections.OrderedDict(b=torch.ones(1), a=torch.zeros(2))
    assert list(open_tensors(save(content, tmp_path / "x.pt")).shapes()) == ["b", "a"]
