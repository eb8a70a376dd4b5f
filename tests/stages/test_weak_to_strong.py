"""The account of one subject on drawn pictures whose errors are known: the proxies show it in a wrong colour, the arms more or less so.

The tokenizer is a real one of random weights; the probe and the search for the nearest rendering are told the answer (tested elsewhere).
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import smoke
from proxy_jax.data import proxy_set
from proxy_jax.data.microworld import benchmark, matching, render
from proxy_jax.data.microworld.attributes import IDENTITY
from proxy_jax.data.microworld.scenes import PLAIN, Scene, recoloured, show
from proxy_jax.metrics.account import AttributeAccount, TokenAccount
from proxy_jax.stages import evaluation, files, weak_to_strong
from proxy_jax.stages.contract import StageError

NAME, SIZE, WRONG = "teapot", 32, "red"
SUBJECT = benchmark.subjects()[NAME]
PICTURES = 6


class World:
    """Pictures drawn of scenes, and their scenes by the pictures' bytes."""

    def __init__(self):
        self.scenes: dict[bytes, Scene] = {}

    def draw(self, seed: int, n: int, wrong: int) -> list[np.ndarray]:
        """n pictures of the subject, the first `wrong` of them in a wrong colour."""
        rng, found = np.random.default_rng(seed), []
        for number in range(n):
            scene = dataclasses.replace(show(SUBJECT, PLAIN, rng), setting="snow", variation=0)
            shown = dataclasses.replace(scene, identity=recoloured(SUBJECT, WRONG)) if number < wrong else scene
            found.append(render.render(shown, SIZE))
            self.scenes[found[-1].tobytes()] = shown
        return found

    def nearest(self, pictures, identity) -> list[Scene]:
        assert identity == SUBJECT
        return [dataclasses.replace(self.scenes[picture.tobytes()], identity=identity) for picture in pictures]

    def read(self, probes, pictures) -> dict[str, list[str]]:
        """A rendering that nobody drew is right in all."""
        shown = [self.scenes[picture.tobytes()].identity if picture.tobytes() in self.scenes else SUBJECT for picture in pictures]
        return {name: [str(getattr(identity, name)) for identity in shown] for name in IDENTITY}


@pytest.fixture
def world(monkeypatch) -> World:
    own = World()
    monkeypatch.setattr(matching, "nearest", own.nearest)
    monkeypatch.setattr(evaluation, "read", own.read)
    monkeypatch.setattr(weak_to_strong.Probes, "load", lambda folder: None)
    return own


@pytest.fixture
def drawn(monkeypatch, world) -> dict[str, dict]:
    """What the arms are asked to draw. The proxy arm is wrong in one picture, the control in all."""
    asked = {}

    def draw_images(learner, load_model, prompts, folder, **fields):
        asked[folder.name] = fields | {"prompts": prompts, "learner": type(learner).__name__}
        pictures = world.draw(*{"proxy": (1, PICTURES, 1), "control": (2, PICTURES, PICTURES)}[folder.name])
        for index, picture in enumerate(pictures):
            files.save_picture(folder / f"{index:05d}.png", picture)
        return sorted(folder.glob("*.png"))

    monkeypatch.setattr(weak_to_strong, "draw_images", draw_images)
    return asked


def arms(runs: Path, folder: Path, world: World) -> dict:
    """The configs and workdirs of two arms about the teapot, of whose eight proxies the first three are wrong."""
    for number, picture in enumerate(world.draw(3, 2, 0)):
        files.save_picture(folder / "photos" / f"{number}.png", picture)
    files.write_json(folder / "photos" / evaluation.TRUTH, dataclasses.asdict(SUBJECT))
    records = (
        dict(image=picture, prompt=f"a zwx teapot {number}", seed=0, index=number, supervisor="x", config_hash="y")
        for number, picture in enumerate(world.draw(0, PICTURES, 3) + world.draw(4, 2, 2))
    )
    proxy_set.write(folder / "proxies", records, metadata={"subject": {"token": "zwx", "class_noun": "teapot", "live": False}})
    found = {}
    for name, evaluated in (("proxy", "student"), ("control", "supervisor")):
        config = smoke.get_config()
        for place in (config.supervisor, config.student):
            place.update({key: value.replace("{workdir}", str(runs)) for key, value in place.items() if isinstance(value, str)})
        config.subject.update(photos=str(folder / "photos"), class_noun="teapot", live=False)
        config.proxies = str(folder / "proxies")
        config.evaluation.update(arms=(evaluated,), probes=str(folder))
        found[name] = config, folder / name
    return found


def test_the_account_of_a_subject(runs, tmp_path, world, drawn):
    told = weak_to_strong.tell(NAME, arms(runs, tmp_path, world), PICTURES, tmp_path / "account")
    assert json.loads(json.dumps(told))["pictures"] == PICTURES
    assert told["floor"] == {"inside": 0, "outside": 0}  # the photos are renderings
    for name, wrong, deviates in (("proxy", 1, 0.0), ("control", PICTURES, 1.0)):
        attributes = {found["attribute"]: AttributeAccount.from_dict(found) for found in told["arms"][name]["attributes"]}
        assert attributes.keys() == set(IDENTITY)
        colour = attributes["primary"]
        assert (colour.subject, colour.truth, colour.misread) == (NAME, SUBJECT.primary, 0)
        assert colour.supervisor.wrong.rate == 0.5 and colour.student.wrong.rate == pytest.approx(wrong / PICTURES, abs=1e-5)
        assert attributes["pattern"].supervisor.wrong.rate == attributes["pattern"].student.wrong.rate == 0
        tokens = TokenAccount.from_dict(told["arms"][name]["tokens"])
        assert tokens.compared == PICTURES and tokens.supervisor_inside.deviation.n == PICTURES
        # Wrong colours make wrong tokens, above all on the subject; the more pictures, the more.
        assert tokens.supervisor_inside.deviation.mean > max(0.01, tokens.supervisor_outside.deviation.mean)
        assert (tokens.student_inside.deviation.mean > tokens.supervisor_inside.deviation.mean) == bool(deviates)


def test_each_arm_draws_the_proxies_prompts_in_its_own_words(runs, tmp_path, world, drawn):
    weak_to_strong.tell(NAME, arms(runs, tmp_path, world), PICTURES, tmp_path / "account")
    config = smoke.get_config()
    assert {name: asked["learner"] for name, asked in drawn.items()} == {"proxy": "LlamaGenStudent", "control": "SD3Supervisor"}
    for name, options in (("proxy", config.evaluation.student), ("control", config.evaluation.supervisor)):
        assert drawn[name]["prompts"] == [f"a {config.subject.token} teapot {number}" for number in range(PICTURES)]
        assert drawn[name]["options"] == options.to_dict()
        assert drawn[name]["seed"] not in (config.seed, config.seed + 1, config.seed + 2)  # class images, proxies, evaluation


def test_only_proxies_that_all_arms_learned_from_count(runs, tmp_path, world, drawn):
    own = arms(runs, tmp_path, world)
    own["proxy"][0].proxy_tuning.num_proxies = 2
    told = weak_to_strong.tell(NAME, {"proxy": own["proxy"]}, 200, tmp_path / "account")
    (colour,) = (found for found in told["arms"]["proxy"]["attributes"] if found["attribute"] == "primary")
    assert told["pictures"] == 2 and (colour["supervisor"]["wrong"]["n"], colour["supervisor"]["wrong"]["rate"]) == (2, 1)


def test_what_is_lacking_is_said(runs, tmp_path, world, monkeypatch):
    own = arms(runs, tmp_path, world)
    config, workdir = own["proxy"]
    with pytest.raises(StageError, match="needs a probe"):
        config.evaluation.probes = ""
        weak_to_strong.tell(NAME, own, PICTURES, tmp_path)
    truth = tmp_path / "photos" / evaluation.TRUTH
    files.write_json(truth, {name: value for name, value in dataclasses.asdict(SUBJECT).items() if name != "width"})
    with pytest.raises(StageError, match="lacks width"):
        weak_to_strong.identity(config, workdir)
    truth.unlink()
    with pytest.raises(StageError, match=r"no truth\.json"):
        weak_to_strong.identity(config, workdir)
    for name in ("matching", "render"):
        monkeypatch.delitem(sys.modules, f"proxy_jax.data.microworld.{name}")
    monkeypatch.setitem(sys.modules, "skia", None)
    with pytest.raises(StageError, match="pip install"):
        weak_to_strong.renderer()
