"""Contact sheets and photos of the micro-world.

python -m proxy_jax.data.microworld --sheet out.png                     what pre-training sees, captioned
python -m proxy_jax.data.microworld --sheet out.png --subjects          the 30 held-out subjects: photos, then prompts
python -m proxy_jax.data.microworld --photos FOLDER --size 48          micro-DreamBench: each subject's photos and its truth.json
python -m proxy_jax.data.microworld --speed                             pictures a second
"""

import argparse
import dataclasses
import itertools
import json
import os
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from proxy_jax.data import images, prompts
from proxy_jax.data.microworld import benchmark, render

GAP, FONT_SIZE, LINE_HEIGHT = 6, 11, 14  # pixels
MOST_COLUMNS = benchmark.PHOTOS + len(prompts.dreambench_prompts(live=True))  # of a subject's row


def sheet(cells: Sequence[tuple[np.ndarray, str]], columns: int) -> Image.Image:
    """Pictures of one size in rows, each over its caption."""
    size = cells[0][0].shape[0]
    texts = [textwrap.wrap(caption, max(8, size // 6)) for _, caption in cells]
    width, height = size + GAP, size + GAP + LINE_HEIGHT * max(len(lines) for lines in texts)
    image = Image.new("RGB", (columns * width + GAP, -(-len(cells) // columns) * height + GAP), "white")
    draw = ImageDraw.Draw(image)
    for number, ((picture, _), lines) in enumerate(zip(cells, texts, strict=True)):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        image.paste(Image.fromarray(picture), (left, top))
        for row, line in enumerate(lines):
            draw.text((left, top + size + 1 + row * LINE_HEIGHT), line, fill="black", font_size=FONT_SIZE)
    return image


def pretraining_cells(seed: int, count: int, size: int) -> list[tuple[np.ndarray, str]]:
    """The first `count` pictures that pre-training sees from a seed, with their captions."""
    scenes = itertools.chain.from_iterable(render.draw_chunk(seed, number) for number in itertools.count())
    return [(render.render(scene, size), scene.caption) for scene in itertools.islice(scenes, count)]


def subject_cells(size: int, columns: int) -> list[tuple[np.ndarray, str]]:
    """A row of `columns` pictures a subject: its photos, then those of its first prompts."""
    cells, contexts = [], benchmark.contexts()
    for number, (name, identity) in enumerate(benchmark.subjects().items()):
        own = [(template, scene) for subject, template, scene in contexts if subject == number][: columns - benchmark.PHOTOS]
        cells += [(render.render(scene, size), f"{name} photo") for scene in benchmark.photos(name)]
        cells += [(render.render(scene, size), prompts.without_token(template, identity.class_noun)) for template, scene in own]
    return cells


def write_photos(folder: Path, size: int) -> int:
    """Writes folder/<subject>/00.png, ... and truth.json, the identity that evaluation compares with. Returns the number of photos."""
    count = 0
    for name, identity in benchmark.subjects().items():
        own = folder / name
        own.mkdir(parents=True, exist_ok=True)
        (own / "truth.json").write_text(json.dumps(dataclasses.asdict(identity), indent=1) + "\n")
        for number, scene in enumerate(benchmark.photos(name)):
            (own / f"{number:02d}.png").write_bytes(images.encode_png(render.render(scene, size)))
            count += 1
    return count


def speed(seed: int, size: int) -> str:
    """Draws some chunks of pictures with a process a core and tells how fast that was."""
    workers, chunks = os.cpu_count() or 1, 20
    parts = render.pictures(seed, chunks * render.CHUNK, size, workers=workers)
    next(parts)  # the workers have started
    begin = time.perf_counter()
    drawn = sum(len(pictures) for _, pictures in parts)
    return f"{drawn / (time.perf_counter() - begin):.0f} pictures/s at {size} pixels with {workers} processes"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = "positive number"  # what argparse calls a wrong value


def main() -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m proxy_jax.data.microworld", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sheet", metavar="FILE", type=Path, help="write a contact sheet")
    parser.add_argument("--subjects", action="store_true", help="of the held-out subjects")
    parser.add_argument("--photos", metavar="FOLDER", type=Path, help="write micro-DreamBench's photos")
    parser.add_argument("--speed", action="store_true", help="draw for some seconds and print pictures a second")
    parser.add_argument("--seed", type=int, default=0, help="of pre-training's pictures")
    parser.add_argument("--count", type=_positive, default=96, help="pictures on a sheet of pre-training")
    parser.add_argument("--columns", type=_positive, default=12, help=f"pictures in a row; with --subjects {benchmark.PHOTOS} to {MOST_COLUMNS}")
    parser.add_argument("--size", type=_positive, default=96, help="pixels along one side of a picture")
    arguments = parser.parse_args()
    if not (arguments.sheet or arguments.photos or arguments.speed):
        parser.error("give --sheet FILE, --photos FOLDER or --speed")
    if arguments.seed < 0:
        parser.error("--seed must not be negative")
    if arguments.photos and arguments.photos.exists() and not arguments.photos.is_dir():
        parser.error(f"--photos {arguments.photos}: that is not a folder")
    if arguments.sheet:
        if arguments.sheet.suffix.lower() not in Image.registered_extensions():
            parser.error(f"--sheet {arguments.sheet}: the name must end as a picture's does, such as .png")
        if not arguments.sheet.parent.is_dir():
            parser.error(f"--sheet {arguments.sheet}: there is no folder {arguments.sheet.parent}")
        if arguments.subjects:
            if not benchmark.PHOTOS <= arguments.columns <= MOST_COLUMNS:
                parser.error(f"--columns with --subjects: from {benchmark.PHOTOS} to {MOST_COLUMNS}")
            cells = subject_cells(arguments.size, arguments.columns)
        else:
            cells = pretraining_cells(arguments.seed, arguments.count, arguments.size)
        sheet(cells, arguments.columns).save(arguments.sheet)
        print(f"{len(cells)} pictures in {arguments.sheet}")
    if arguments.photos:
        print(f"{write_photos(arguments.photos, arguments.size)} photos in {arguments.photos}")
    if arguments.speed:
        print(speed(arguments.seed, arguments.size))


if __name__ == "__main__":
    main()
