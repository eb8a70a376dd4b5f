"""A run inside a notebook: one stage after the other, and under each its pictures, its losses, its scores."""

import dataclasses
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from IPython.display import HTML, display
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from proxy_jax import main, storage
from proxy_jax.data import images
from proxy_jax.data.photos import image_files
from proxy_jax.metrics import page, report
from proxy_jax.stages import contract, evaluation, files, learners, proxy_generation

PROJECT = learners.PACKAGE.parent
CHART = ".raw{fill:none;stroke:#bbb}.smooth{fill:none;stroke:#06c;stroke-width:2}.rule{stroke:#ddd}text{font:11px sans-serif;fill:#888}"


def show(pictures: Sequence[Image.Image | Path], columns: int, side: int) -> None:
    """The middle squares of pictures, each `side` pixels wide, in rows of `columns`."""
    opened = [picture if isinstance(picture, Image.Image) else Image.fromarray(files.load_picture(picture)) for picture in pictures]
    squares = [np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC)) for picture in opened]
    display(Image.fromarray(images.grid(squares, columns)))


@dataclasses.dataclass(frozen=True)
class Run:
    """A config and a workdir, whose stages a notebook runs and shows."""

    config: ConfigDict
    workdir: Path
    file: Path  # of the config
    changes: Mapping[str, Any]

    @classmethod
    def of(cls, config: str, argument: str | None, workdir: str | Path, changes: Mapping[str, Any]) -> "Run":
        """The run of a file of configs/, with its argument if it takes one, and the fields in `changes`, by their dotted names.

        Raises ValueError for a workdir that is no folder of this machine.
        """
        if storage.is_address(str(workdir)):
            raise ValueError(f"a notebook's workdir is a folder, not {workdir}; the command line takes gs://BUCKET/FOLDER")
        if str(PROJECT) not in sys.path:
            sys.path.insert(0, str(PROJECT))  # configs import each other
        file = PROJECT / "configs" / config
        made = runpy.run_path(str(file))["get_config"](*([] if argument is None else [argument]))
        made.update_from_flattened_dict(dict(changes))
        contract.log_plainly()
        return cls(made, Path(workdir).expanduser().resolve(), file, changes)

    def preflight(self, topology: str) -> None:
        """What the run would need on a TPU topology. In a process of its own: this one has its devices."""
        flags = [f"--config.{name}={value}" for name, value in self.changes.items()]
        command = [sys.executable, "-m", "proxy_jax.main", "--config", str(self.file), "--workdir", str(self.workdir), *flags]
        done = subprocess.run([*command, "--preflight", topology], capture_output=True, text=True, check=False)
        print(done.stdout or done.stderr)

    def stage(self, name: str) -> None:
        """Runs a stage; one that is finished is skipped, one that was interrupted goes on."""
        main.run(self.config, self.workdir, [name])

    def photos(self) -> None:
        """The subject's photos."""
        show([photo.image for photo in learners.subject(self.config, self.workdir).photos], columns=5, side=144)

    def losses(self, stage: str) -> None:
        """The loss of every step of a stage, and its running mean."""
        curve = evaluation.curve(stage, self.workdir)
        chart = page.line_chart(curve["steps"], curve["losses"], f"loss of {stage}")
        display(HTML(f'<div style="max-width:480px"><style>{CHART}</style>{chart}</div>'))

    def previews(self, stage: str) -> None:
        """What the learner drew while it was tuned: the same prompts and noise, every so many steps."""
        for path in image_files(self.workdir / stage / "previews"):
            picture = Image.fromarray(files.load_picture(path))
            display(ImageOps.contain(picture, (640, 640)))

    def proxies(self, count: int) -> None:
        """The first proxies."""
        drawn = image_files(self.workdir / proxy_generation.NAME / "images")
        print(f"{len(drawn)} proxies; the first {min(count, len(drawn))}:")
        show(drawn[:count], columns=10, side=96)

    def scores(self) -> None:
        """The evaluation's table, the real photos against each other first."""
        found = self._report()
        rows = [("real photos", found["ceiling"])] + [(row["label"], row["scores"]) for row in found["rows"]]
        shown = report.metrics(found)
        cells = [[label, *("–" if scores[name] is None else f"{scores[name]:.3f}" for name in shown)] for label, scores in rows]
        lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in cells)
        display(HTML(f"<table><tr><th></th>{''.join(f'<th>{name}</th>' for name in shown)}</tr>{lines}</table>"))

    def samples(self, arm: str) -> None:
        """What an arm drew: one picture for each prompt."""
        drawn = self._report()["samples"][arm][:: self.config.evaluation.images_per_prompt]
        print(f"{arm.replace('_', ' ')}: one picture for each prompt")
        show([self.workdir / picture["path"] for picture in drawn], columns=9, side=104)

    def _report(self) -> dict[str, Any]:
        return files.read_json(self.workdir / evaluation.NAME / "report.json")
