"""The check of weights and models against official ones: golden cases, and manifests of full-size checkpoints.

python -m proxy_jax.weights.check golden DIR...      every array's largest error; exit 1 on a miss
python -m proxy_jax.weights.check manifest FILE...   names and shapes, both ways; exit 1 on a difference
"""

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from proxy_jax.models import parameters
from proxy_jax.weights.golden import Case, Comparison, Describe, Run, diffusion, encoders, llamagen, lumina, pipeline
from proxy_jax.weights.hub import read_json
from proxy_jax.weights.region import CheckpointError
from proxy_jax.weights.table import WeightsError, differences

OK, MISS, USAGE = 0, 1, 2  # exit codes

HELP = """\
golden: DIR is a case (a folder with config.json and io.npz, named after its kind), or a folder of cases. Each array of a case is
computed from the case's weights and inputs and compared with what the official code computed. A kind that no runner knows is an
error (exit 2) where DIR is the case itself, and is only listed inside a folder of cases.

manifest: FILE is JSON with "config" (official fields) and "tensors" (official name -> shape); the file's name says which model it
is. The model is built at full size without memory, and every tensor is matched by name and shape, in both directions.
"""


@dataclasses.dataclass
class Tally:
    """What was checked so far."""

    arrays: int = 0
    misses: int = 0
    unknown: int = 0


def runners() -> dict[str, list[Run]]:
    """The functions that run each golden kind. A kind may have several, each for other arrays of the case."""
    found: dict[str, list[Run]] = {}
    for module in (llamagen, lumina, encoders, diffusion, pipeline):
        for kind, run in module.KINDS.items():
            found.setdefault(kind, []).append(run)
    return found


def describers() -> dict[str, Describe]:
    """From a regular expression of a manifest's stem to the function that makes its model and table."""
    return llamagen.MANIFESTS | lumina.MANIFESTS | encoders.MANIFESTS | diffusion.MANIFESTS


def is_case(folder: Path) -> bool:
    """Whether a folder holds a golden case."""
    return (folder / "config.json").is_file() and (folder / "io.npz").is_file()


def check_case(folder: Path, tally: Tally) -> bool:
    """Runs and prints one case. False if no runner knows its kind."""
    kind, known = folder.resolve().name, runners()
    if kind not in known:
        print(f"no runner for kind {kind}")
        return False
    for run in known[kind]:
        try:
            with jax.default_matmul_precision("highest"):  # accelerators round float32 products otherwise, beyond the tolerances
                comparisons = run(Case(folder))
        except (CheckpointError, WeightsError) as error:
            print(f"{kind}: {error}\n{kind:<24} MISS")
            tally.misses += 1
            continue
        for comparison in comparisons:
            tally.arrays += 1
            tally.misses += not comparison.passed
            print(_line(kind, comparison))
    return True


def _line(kind: str, comparison: Comparison) -> str:
    shape = "x".join(map(str, comparison.expected.shape)) or "scalar"
    error = f"max {'relative ' if comparison.relative else ''}error {comparison.error:.3g}"
    return f"{kind:<24} {comparison.name:<32} {shape:<20} {error:<28} tolerance {comparison.tolerance:<8.3g} {'ok' if comparison.passed else 'MISS'}"


def golden(folders: Sequence[Path]) -> int:
    """Checks each case, and each case in a folder of cases. Returns the exit code."""
    tally, code = Tally(), OK
    for folder in folders:
        inside = [folder] if is_case(folder) else sorted(child for child in folder.glob("*") if is_case(child))
        if not inside:
            print(f"{folder}: neither a golden case (config.json, io.npz) nor a folder of them")
            code = USAGE
        for case in inside:
            if not check_case(case, tally):
                tally.unknown += 1
                code = USAGE if case == folder else code
    print(f"{tally.arrays} arrays, {tally.misses} missed, {tally.unknown} cases without a runner")
    return MISS if tally.misses else code


def check_manifest(path: Path) -> int:
    """Checks one manifest and prints the result. Returns the exit code."""
    describe = next((known for pattern, known in describers().items() if re.fullmatch(pattern, path.stem)), None)
    if describe is None:
        print(f"{path.stem}: no model known for a manifest of this name")
        return USAGE
    manifest = read_json(path)
    make_model, table = describe(manifest["config"])
    model = parameters.skeleton(make_model)
    problems = differences(model, table, {name: tuple(shape) for name, shape in manifest["tensors"].items()})
    for problem in problems:
        print(f"{path.stem}: {problem}")
    elements = sum(math.prod(shape) for shape in manifest["tensors"].values())
    ours = sum(math.prod(array.shape) for array in parameters.arrays(model).values())
    verdict = f"{len(problems)} differences MISS" if problems else "all matched ok"
    print(f"{path.stem:<28} {len(manifest['tensors'])} tensors, {elements} elements; our model {ours} elements; {verdict}")
    return MISS if problems else OK


def manifests(paths: Sequence[Path]) -> int:
    """Checks each manifest. Returns the exit code."""
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        print(f"error: no file {', '.join(absent)}")
        return USAGE
    codes = [check_manifest(path) for path in paths]
    print(f"{len(codes)} manifests, {codes.count(MISS)} missed, {codes.count(USAGE)} without a model")
    return MISS if MISS in codes else max(codes)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 all well, 1 a miss, 2 nothing to check by."""
    parser = argparse.ArgumentParser(
        prog="python -m proxy_jax.weights.check", description=__doc__, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, target, meaning in (
        ("golden", "DIR", "compare what the models compute with golden cases"),
        ("manifest", "FILE", "compare names and shapes with listings of official checkpoints"),
    ):
        command = commands.add_parser(name, help=meaning, description=meaning, epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument("paths", metavar=target, nargs="+", type=Path)
    options = parser.parse_args(arguments)
    try:
        return golden(options.paths) if options.command == "golden" else manifests(options.paths)
    except CheckpointError as error:
        print(error)
        return USAGE


if __name__ == "__main__":
    sys.exit(main())
