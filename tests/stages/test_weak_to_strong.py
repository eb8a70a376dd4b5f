"""The account of one subject on drawn pictures whose errors are known: the proxies show it in a wrong colour, the arms more or less so.

The tokenizer's codes are real ones of random weights; what goes through either codec is marked instead, so that it shows who did; the probe
and the search for the nearest rendering are told the answer (tested elsewhere).
"""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs import smoke
from proxy_jax.data import proxy_set
from proxy_jax.data.microworld import benchmark, matching, render
from proxy_jax.data.microworld.attributes import IDENTITY
from proxy_jax.data.microworld.scenes import PLAIN, Scene, recoloured, show
from proxy_jax.metrics.account import AttributeAccount, TokenAccount
from proxy_jax.stages import evaluation, files, microworld, training_set, weak_to_strong
from proxy_jax.stages.contract import StageError

NAME, SIZE, WRONG = "teapot", 32, "red"
SUBJECT = benchmark.subjects()[NAME]
PICTURES = 6


class World:
    """Pictures drawn of scenes; their scenes, and the codecs that they went through, by the pictures' bytes."""

    def __init__(self):
        self.scenes: dict[bytes, Scene] = {}
        self.codecs: dict[bytes, tuple[str, ...]] = {}
        self.looked_at: list[set[tuple[str, ...]]] = []  # the codecs of the pictures of each search
        self.judged: list[set[tuple[str, ...]]] = []  # and of those that were scored

    def draw(self, seed: int, n: int, wrong: int) -> list[np.ndarray]:
        """n pictures of the subject, the first `wrong` of them in a wrong colour."""
        rng, found = np.random.default_rng(seed), []
        for number in range(n):
            scene = dataclasses.replace(show(SUBJECT, PLAIN, rng), setting="snow", variation=0)
            shown = dataclasses.replace(scene, identity=recoloured(SUBJECT, WRONG)) if number < wrong else scene
            found.append(self.render(shown, SIZE))
        return found

    def render(self, scene: Scene, size: int) -> np.ndarray:
        picture = render.render(scene, size)
        self.scenes[picture.tobytes()], self.codecs[picture.tobytes()] = scene, ()
        return picture

    def through(self, codec: str, bit: int):
        """A codec that changes a bit of every pixel."""

        def run(model, pictures):
            assert pictures.dtype == np.uint8 and type(model).__name__ == {"vq": "VQModel", "kl": "AutoencoderKL"}[codec]
            for picture, out in zip(pictures, pictures ^ np.uint8(bit), strict=True):
                self.scenes[out.tobytes()] = self.scenes[picture.tobytes()]
                self.codecs[out.tobytes()] = (*self.codecs[picture.tobytes()], codec)
            return pictures ^ np.uint8(bit)

        return run

    def nearest(self, pictures, identity) -> list[Scene]:
        assert identity == SUBJECT
        self.looked_at.append({self.codecs[picture.tobytes()] for picture in pictures})
        return [dataclasses.replace(self.scenes[picture.tobytes()], identity=identity) for picture in pictures]

    def read(self, probes, pictures) -> dict[str, list[str]]:
        shown = [self.scenes[picture.tobytes()] for picture in pictures]
        found = {name: [str(getattr(scene.identity, name)) for scene in shown] for name in ("class_noun", *IDENTITY)}
        return found | {name: [getattr(scene, name) for scene in shown] for name in ("setting", "outfit", "surface")}


@pytest.fixture
def world(monkeypatch) -> World:
    own = World()
    monkeypatch.setattr(matching, "nearest", own.nearest)
    monkeypatch.setattr(evaluation, "read", own.read)
    monkeypatch.setattr(evaluation.Probes, "load", lambda folder: "a probe")
    monkeypatch.setattr(weak_to_strong.autoencoders, "through_vq", own.through("vq", 1))
    monkeypatch.setattr(weak_to_strong.autoencoders, "through_kl", own.through("kl", 2))
    monkeypatch.setattr(weak_to_strong, "renderer", lambda: (matching, SimpleNamespace(render=own.render)))
    return own


@pytest.fixture
def drawn(monkeypatch, world) -> dict[str, dict]:
    """What the arms are asked to draw. The proxy arm is wrong in one picture, guided in none, the control in all."""
    asked = {}

    def draw_images(learner, load_model, prompts, folder, **fields):
        asked[folder.name] = fields | {"prompts": prompts, "learner": type(learner).__name__}
        wrong = {"proxy": 1, "proxy_guided": 0, "control": PICTURES, "control_guided": PICTURES}
        pictures = world.draw(1 + list(wrong).index(folder.name) // 2, len(prompts), wrong[folder.name])
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
        for place in (config.supervisor, config.student, config.evaluation):
            place.update({key: value.replace("{workdir}", str(runs)) for key, value in place.items() if isinstance(value, str)})
        config.subject.update(photos=str(folder / "photos"), class_noun="teapot", live=False)
        config.proxies = str(folder / "proxies")
        config.evaluation.update(arms=(evaluated,), probes=str(folder))
        found[name] = config, folder / name
    return found


def test_the_account_of_a_subject(runs, tmp_path, world, drawn):
    told = weak_to_strong.tell(NAME, arms(runs, tmp_path, world), PICTURES, tmp_path / "account")
    assert json.loads(json.dumps(told))["pictures"] == PICTURES
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
    # The two accounts compare the proxies' same tokens.
    splits = [told["arms"][name]["tokens"]["supervisor_inside"]["split"] for name in ("proxy", "control")]
    assert splits[0] == splits[1]
    guided = {found["attribute"]: found for found in told["guided"]["proxy"]["attributes"]}
    assert guided["primary"]["student"]["wrong"]["rate"] == 0 and guided["primary"]["supervisor"]["wrong"]["rate"] == 0.5


def test_codecs(runs, tmp_path, world, drawn, monkeypatch):
    """Everything is looked at out of the tokenizer; the floor is what the codecs alone make; renderings are scored through neither and either."""
    score = evaluation.Judge.score

    def watched(judge, pictures):
        world.judged.append({world.codecs[picture.tobytes()] for picture in pictures})
        return score(judge, pictures)

    monkeypatch.setattr(evaluation.Judge, "score", watched)
    told = weak_to_strong.tell(NAME, arms(runs, tmp_path, world), PICTURES, tmp_path / "account")
    proxies, floor_supervisor, floor_student, *of_arms = world.looked_at
    assert (proxies, floor_supervisor, floor_student) == ({("vq",)}, {("kl", "vq")}, {("vq",)})
    assert of_arms == [{()}, {("vq",)}] * 2  # the stand-in for the student draws renderings: its pictures are taken as they are
    floor = told["floor"]
    assert all(found[side]["wrong"]["rate"] == 0 for found in floor["attributes"] for side in ("supervisor", "student"))
    tokens = TokenAccount.from_dict(floor["tokens"])
    # The tokens are held against those of renderings out of the tokenizer: only the other codec leaves a difference.
    assert tokens.student_inside.deviation.mean == tokens.student_outside.deviation.mean == 0
    assert tokens.supervisor_inside.deviation.mean + tokens.supervisor_outside.deviation.mean > 0
    rows = told["rows"]
    assert [row["arm"] for row in rows] == ["renderings", "renderings_supervisor", "renderings_student"]
    assert world.judged == [{()}, {("kl",)}, {("vq",)}]
    for row in rows:
        # The stand-in for the probe reads the truth: right, and what each prompt asked for.
        assert (row["identity"], row["context"], row["identity_context"], row["right_class"]) == (1, 1, 1, 1)
        assert all(-1 <= row[name] <= 1 for name in ("dino", "clip_i", "clip_t"))
    assert rows[0]["dino"] != rows[1]["dino"]


def test_an_oracles_proxies_are_true_renderings(runs, tmp_path, world):
    config, workdir = arms(runs, tmp_path, world)["proxy"]
    config.proxy_generation.update(num_images=5, prompts=("a {token} {class_noun}", "a {token} {class_noun} in the snow"))
    folder = tmp_path / "oracle" / "renderings"
    config.proxies = str(folder)
    weak_to_strong.write_oracle(config, workdir)
    proxies = proxy_set.read(folder)
    assert proxies.prompts() == [f"a {config.subject.token} teapot", f"a {config.subject.token} teapot in the snow"] * 2 + [proxies.prompts()[0]]
    shown = [world.scenes[record["image"].tobytes()] for record in proxies]
    assert all(scene.identity == SUBJECT for scene in shown) and len({scene.pose for scene in shown}) == 5
    assert [scene.setting == "snow" for scene in shown][1::2] == [True, True]
    assert proxies[0]["image"].shape == (config.supervisor.resolution, config.supervisor.resolution, 3)
    # The student's stage takes it as any other run's.
    (source,) = training_set.sources(config, workdir, "proxy_tuning")
    assert training_set.pictures([source], "")[1] == proxies.prompts()
    before = (folder / "dataset_info.json").stat().st_mtime_ns
    weak_to_strong.write_oracle(config, workdir)
    assert (folder / "dataset_info.json").stat().st_mtime_ns == before
    config.seed += 1
    weak_to_strong.write_oracle(config, workdir)
    assert not np.array_equal(proxy_set.read(folder)[0]["image"], proxies[0]["image"])


def test_each_arm_draws_the_proxies_prompts_in_its_own_words(runs, tmp_path, world, drawn):
    weak_to_strong.tell(NAME, arms(runs, tmp_path, world), PICTURES, tmp_path / "account")
    config = smoke.get_config()
    learners = {"proxy": "LlamaGenStudent", "control": "SD3Supervisor"}
    assert {name: asked["learner"] for name, asked in drawn.items()} == learners | {f"{name}_guided": own for name, own in learners.items()}
    for asked in drawn.values():
        assert asked["prompts"] == [f"a {config.subject.token} teapot {number}" for number in range(PICTURES)]
        assert asked["seed"] not in (config.seed, config.seed + 1, config.seed + 2)  # class images, proxies, evaluation
    assert drawn["proxy_guided"]["options"] == config.evaluation.student.to_dict()
    assert drawn["control_guided"]["options"] == config.evaluation.supervisor.to_dict()
    assert drawn["proxy"]["options"] == {"guidance_scale": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert drawn["control"]["options"] == {"guidance_scale": 1.0, "steps": config.evaluation.supervisor.steps}


def test_only_proxies_that_all_arms_learned_from_count(runs, tmp_path, world, drawn):
    own = arms(runs, tmp_path, world)
    own["proxy"][0].proxy_tuning.num_proxies = 2
    told = weak_to_strong.tell(NAME, {"proxy": own["proxy"]}, 200, tmp_path / "account")
    (colour,) = (found for found in told["arms"]["proxy"]["attributes"] if found["attribute"] == "primary")
    assert told["pictures"] == 2 and (colour["supervisor"]["wrong"]["n"], colour["supervisor"]["wrong"]["rate"]) == (2, 1)


def test_what_is_lacking_is_said(runs, tmp_path, world):
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


def test_skia_that_is_lacking_and_skia_that_cannot_be_loaded(monkeypatch):
    assert weak_to_strong.renderer() == (matching, render)
    monkeypatch.setitem(sys.modules, "skia", None)
    with pytest.raises(StageError, match="pip install"):
        weak_to_strong.renderer()

    def broken(name):
        raise ImportError("libGL.so.1: cannot open shared object file", name="skia")

    monkeypatch.setattr(microworld.importlib, "import_module", broken)
    with pytest.raises(StageError, match=r"libGL.*installed but cannot be loaded"):
        weak_to_strong.renderer()
