"""The direction of imports, and that nothing heavy or test-only is imported at run time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "proxy_jax"

# Each room may import the rooms listed for it, and itself. Rooms of one level do not see each other.
BELOW_LEARNERS = {"weights", "models", "sharding", "storage", "processes"}
MAY_IMPORT = {
    "processes": set(),
    "storage": {"processes"},
    "sharding": set(),
    "models": {"sharding"},
    "weights": {"models", "sharding", "processes"},
    "data": BELOW_LEARNERS,
    "training": BELOW_LEARNERS,
    "metrics": BELOW_LEARNERS,
    "supervisors": BELOW_LEARNERS,
    "students": BELOW_LEARNERS,
    "pretraining": {"supervisors", "students", "metrics", "training", "data"} | BELOW_LEARNERS,
    "stages": {"pretraining", "supervisors", "students", "metrics", "training", "data"} | BELOW_LEARNERS,
    "main": {"stages", "pretraining", "supervisors", "students", "metrics", "training", "data"} | BELOW_LEARNERS,
    "notebook": {"main", "stages", "metrics", "data", "storage"},
}
# Commands stand above every room, as main.py does.
COMMANDS = {"weights/check.py", "weights/golden/pipeline.py", "weights/golden/lumina.py"}


def room_of(file: Path) -> str:
    relative = file.relative_to(ROOT)
    return "main" if str(relative) in COMMANDS else relative.parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the direction"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(file for file in ROOT.rglob("*.py") if file.name != "__init__.py" or file.read_text().strip())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_downward(file):
    room = room_of(file)
    for name in imported(file):
        parts = name.split(".")
        if parts[0] in ("torch", "tensorflow", "configs", "tests"):
            raise AssertionError(f"{file.relative_to(ROOT)} imports {name}")
        if parts[0] == "proxy_jax":
            assert parts[1] == room or parts[1] in MAY_IMPORT[room], f"{file.relative_to(ROOT)} ({room}) imports {name}"


def test_every_room_is_known():
    # checkpoints/ holds data only
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.name not in ("__init__.py", "__pycache__", "checkpoints")}
    assert not list((ROOT / "checkpoints").rglob("*.py"))
    assert rooms == set(MAY_IMPORT)


def test_tensorflow_is_never_imported():
    """torch is imported by transformers where it is installed; tests/pipeline runs everything where it is not."""
    code = "import sys, proxy_jax.main; print('tensorflow' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip().splitlines()[-1] == "False"
