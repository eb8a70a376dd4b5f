"""Contact sheets of the micro-world.

python -m proxy_jax.data.microworld --sheet out.png                     what pre-training sees, captioned
python -m proxy_jax.data.microworld --sheet out.png --subjects          the 30 held-out subjects: photos, then prompts
python -m proxy_jax.data.microworld --speed                             pictures a second
"""

import argparse
import itertools
import os
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from proxy_jax.data.microworld import benchmark, render

CAPTION_HEIGHT = 28


def sheet(cells: Sequence[tuple[np.ndarray, str]], columns: int) -> Image.Image:
    """Pictures of one size in rows, each over its caption in two lines."""
    size = cells[0][0].shape[0]
    rows = -(-len(cells) // columns)
    image = Image.new("RGB", (columns * (size + 6) + 6, rows * (size + 6 + CAPTION_HEIGHT) + 6), "white")
    draw = ImageDraw.Draw(image)
    for number, (picture, caption) in enumerate(cells):
        left, top = 6 + number % columns * (size + 6), 6 + number // columns * (size + 6 + CAPTION_HEIGHT)
        image.paste(Image.fromarray(picture), (left, top))
        width = max(8, size // 6)
        lines = [caption[:width], caption[width : 2 * width]]
        draw.text((left, top + size + 1), "\n".join(lines), fill="black", font_size=11)
    return image


def pretraining_cells(seed: int, count: int, size: int) -> list[tuple[np.ndarray, str]]:
    scenes = itertools.chain.from_iterable(render.draw_chunk(seed, number) for number in itertools.count())
    return [(render.render(scene, size), scene.caption) for scene in itertools.islice(scenes, count)]


def subject_cells(size: int, prompts: int) -> list[tuple[np.ndarray, str]]:
    """A row a subject: its photos, then the first `prompts` prompts' pictures."""
    cells, contexts = [], benchmark.contexts()
    for number, name in enumerate(benchmark.subjects()):
        own = [(template, scene) for subject, template, scene in contexts if subject == number]
        cells += [(render.render(scene, size), f"{name} photo") for scene in benchmark.photos(name)]
        cells += [(render.render(scene, size), template.replace("a {token} {class_noun}", "").strip()) for template, scene in own[:prompts]]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m proxy_jax.data.microworld", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sheet", metavar="FILE", help="write a contact sheet")
    parser.add_argument("--subjects", action="store_true", help="of the held-out subjects")
    parser.add_argument("--speed", action="store_true", help="draw for some seconds and print pictures a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=96, help="pictures on a sheet of pre-training")
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--size", type=int, default=96, help="pixels along one side of a picture")
    arguments = parser.parse_args()
    if not (arguments.sheet or arguments.speed):
        parser.error("give --sheet FILE or --speed")
    if arguments.sheet:
        prompts = max(1, arguments.columns - benchmark.PHOTOS)
        cells = subject_cells(arguments.size, prompts) if arguments.subjects else pretraining_cells(arguments.seed, arguments.count, arguments.size)
        sheet(cells, benchmark.PHOTOS + prompts if arguments.subjects else arguments.columns).save(arguments.sheet)
        print(f"{len(cells)} pictures in {arguments.sheet}")
    if arguments.speed:
        workers, count = os.cpu_count() or 1, 20 * render.CHUNK
        parts = render.pictures(arguments.seed, count, arguments.size, workers=workers)
        next(parts)  # the workers have started
        begin = time.perf_counter()
        drawn = sum(len(pictures) for _, pictures in parts)
        print(f"{drawn / (time.perf_counter() - begin):.0f} pictures/s at {arguments.size} pixels with {workers} processes")


if __name__ == "__main__":
    main()
