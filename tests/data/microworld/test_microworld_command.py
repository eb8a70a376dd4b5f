"""python -m proxy_jax.data.microworld: contact sheets, photos, speed, and clear errors."""

import json
import os
import runpy
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from proxy_jax.data.microworld import benchmark, render
from proxy_jax.data.microworld.looks import Identity

MODULE = "proxy_jax.data.microworld"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process; returns its exit status and what it printed."""

    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [MODULE, *map(str, arguments)])
        try:
            runpy.run_module(MODULE, run_name="__main__", alter_sys=False)
            status = 0
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def pictures_of(file, size: int, columns: int, count: int) -> list[np.ndarray]:
    """The pictures on a sheet, found by its regular rows."""
    sheet = np.asarray(Image.open(file))
    rows = -(-count // columns)
    width, height = size + 6, (sheet.shape[0] - 6) // rows
    assert sheet.shape == (rows * height + 6, columns * width + 6, 3)
    corners = [(6 + row * height, 6 + column * width) for row in range(rows) for column in range(columns)][:count]
    return [sheet[top : top + size, left : left + size] for top, left in corners]


def test_a_sheet_of_pretraining(tmp_path):
    file = tmp_path / "out.png"
    arguments = [sys.executable, "-m", MODULE, "--sheet", str(file), "--count", "7", "--columns", "3", "--seed", "2"]
    out = subprocess.run(arguments, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout == f"7 pictures in {file}\n"
    np.testing.assert_array_equal(pictures_of(file, 96, 3, 7), [render.render(scene, 96) for scene in render.draw_chunk(2, 0)[:7]])


def test_a_sheet_longer_than_a_chunk(command, tmp_path):
    file, count = tmp_path / "out.png", render.CHUNK + 3
    assert command("--sheet", file, "--count", count, "--columns", 40, "--size", 16)[0] == 0
    np.testing.assert_array_equal(pictures_of(file, 16, 40, count)[-1], render.render(render.draw_chunk(0, 1)[2], 16))


def test_captions_are_whole_and_under_their_pictures(command, tmp_path):
    """As dark as the caption written alone would be, in the strip below each picture, and nothing between the strips."""
    file = tmp_path / "out.png"
    command("--sheet", file, "--count", 6, "--columns", 2, "--size", 48)
    sheet = np.asarray(Image.open(file))
    height = (sheet.shape[0] - 6) // 3
    for row in range(3):
        top = 6 + row * height + 48
        assert (sheet[top + height - 48 - 6 : top + height - 48] == 255).all()  # the gap above the next row
        for column in range(2):
            strip = sheet[top : top + height - 48, 6 + 54 * column : 54 + 54 * column]
            letters = render.draw_chunk(0, 0)[2 * row + column].caption.replace(" ", "")
            assert 5 < (255 - strip.mean(-1)).sum() / 255 / len(letters) < 30


def test_a_sheet_of_the_subjects(command, tmp_path):
    file = tmp_path / "out.png"
    status, printed = command("--sheet", file, "--subjects", "--columns", "7", "--size", "16")
    assert status == 0 and printed == f"210 pictures in {file}\n"
    found = pictures_of(file, 16, 7, 210)
    scenes = [scene for _, _, scene in benchmark.contexts()]
    for number, name in enumerate(benchmark.subjects()):
        expected = [*benchmark.photos(name), *scenes[25 * number : 25 * number + 2]]
        np.testing.assert_array_equal(found[7 * number : 7 * number + 7], [render.render(scene, 16) for scene in expected])


def test_photos_are_a_folder_a_subject_with_its_truth(command, tmp_path):
    status, printed = command("--photos", tmp_path / "photos", "--size", "24")
    assert (status, printed) == (0, f"150 photos in {tmp_path / 'photos'}\n")
    assert {folder.name for folder in (tmp_path / "photos").iterdir()} == set(benchmark.subjects())
    for name, identity in benchmark.subjects().items():
        folder = tmp_path / "photos" / name
        assert Identity(**json.loads((folder / "truth.json").read_text())) == identity
        files = sorted(folder.glob("*.png"))
        assert [file.name for file in files] == [f"{number:02d}.png" for number in range(benchmark.PHOTOS)]
        for file, scene in zip(files, benchmark.photos(name), strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(file)), render.render(scene, 24))


def test_speed_is_that_of_what_comes_after_the_start(command, monkeypatch):
    asked, times = [], iter([10.0, 12.0])

    def pictures(seed, count, size, *, workers):
        asked.append((seed, size, workers))
        yield from [([], np.zeros((number, size, size, 3), np.uint8)) for number in (500, 30, 20)]

    monkeypatch.setattr(render, "pictures", pictures)
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    status, printed = command("--speed", "--size", "32", "--seed", "5")
    assert (status, printed) == (0, f"25 pictures/s at 32 pixels with {os.cpu_count()} processes\n") and asked == [(5, 32, os.cpu_count())]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --sheet FILE, --photos FOLDER or --speed"),
        (["--sheet", "out.foo"], "must end as a picture's does"),
        (["--sheet", "nowhere/out.png"], "there is no folder nowhere"),
        (["--photos", __file__], "that is not a folder"),
        (["--sheet", "out.png", "--count", "0"], "argument --count: invalid positive number value: '0'"),
        (["--sheet", "out.png", "--size", "-3"], "argument --size: invalid positive number value"),
        (["--sheet", "out.png", "--columns", "two"], "argument --columns: invalid positive number value: 'two'"),
        (["--sheet", "out.png", "--seed", "-1"], "--seed must not be negative"),
        (["--sheet", "out.png", "--subjects", "--columns", "4"], "from 5 to 30"),
        (["--sheet", "out.png", "--subjects", "--columns", "31"], "from 5 to 30"),
    ],
)
def test_wrong_arguments_are_explained(command, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed = command(*arguments)
    assert status == 2 and message in printed and "Traceback" not in printed
    assert not any(tmp_path.iterdir())
