"""What stages 1 and 3 tune on, chosen by config: photos, this run's proxies or another's, few of them, class pictures; at tiny size."""

import hashlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from configs import smoke
from proxy_jax import main
from proxy_jax.data import proxy_set
from proxy_jax.data.proxy_set import ProxySetError
from proxy_jax.models.layers import Compute
from proxy_jax.stages import contract, files, learners, training_set, tuning
from proxy_jax.stages.contract import StageError
from proxy_jax.training import lora
from proxy_jax.weights.table import Part, Table, WeightsError
from tests.stages.tiny_runs import metrics, tiny, write_proxies

LORA = "weights/pytorch_lora_weights.safetensors"


def test_pictures_keep_their_prompts_among_many(tmp_path, monkeypatch):
    """150 000 pictures with 10 000 prompts: every row of a batch has the text of its own picture (and it does not take for ever)."""
    count, kinds = 150_000, 10_000
    learner = SimpleNamespace(
        encoders=dict,
        encode_prompts=lambda prompts: {"text": np.asarray([int(prompt.split()[-1]) for prompt in prompts], np.int32)},
        encode_images=lambda pictures: {"picture": pictures[:, 0, 0].astype(np.int32) @ [65536, 256, 1]},
        resolution=1,
    )
    numbers = np.arange(count + 10)
    pictures = np.stack([numbers >> 16, numbers >> 8 & 255, numbers & 255], -1).astype(np.uint8)[:, None, None]
    prompts = [f"picture {number % kinds}" for number in numbers]
    seen = []

    def fit(model, loss, batches, **options):
        seen.extend(next(batches) for _ in range(3))
        return model

    monkeypatch.setattr(tuning, "fit", fit)
    monkeypatch.setattr(tuning, "trainable_model", lambda *args: None)
    monkeypatch.setattr(tuning, "count", lambda *args: 0)
    monkeypatch.setattr(tuning.lora, "save", lambda *args, **options: None)
    stage = smoke.get_config().proxy_tuning
    learner.save_subjects = lambda model, folder: None
    learner.parts, learner.lora_prefix, learner.loss = lambda model: [Part(model, Table(()), "")], "", None
    common = dict(stage=stage, batch_size=50_000, seed=0, folder=tmp_path, cache=tmp_path / "cache")
    tuning.tune(learner, pictures[:count], prompts[:count], **common)
    stage.prior.weight = 1.0
    tuning.tune(learner, pictures[:count], prompts[:count], prior=(pictures[count:], prompts[count:]), **common)
    for batch in seen:
        np.testing.assert_array_equal(batch["text"], batch["picture"] % kinds)
    assert max(seen[0]["picture"]) > kinds and min(seen[-1]["picture"][4:]) >= count > max(seen[-1]["picture"][:4])


def test_the_first_proxies_in_the_subjects_words(runs):
    workdir = runs / "first"
    config = tiny(workdir)
    config.proxies = "{workdir}/../other/dataset"

    def pictures(num_proxies, *proxy_prompts):
        return training_set.pictures(training_set.sources(config, workdir, "proxy_tuning"), "a photo", num_proxies, proxy_prompts)

    everything = proxy_set.read(runs / "other" / "dataset")
    plain, snow = "a sks toy", "a sks toy in the snow"
    for wanted, places, expected in (
        ((3,), (0, 1, 2), [plain, snow, plain]),
        ((0, "a {token} {class_noun} in the snow"), (1, 3, 5), [snow] * 3),
        ((2, "a {token} {class_noun}"), (0, 2), [plain] * 2),
    ):
        found, prompts = pictures(*wanted)
        assert prompts == expected and len(found) == len(places)
        for picture, index in zip(found, places, strict=True):
            np.testing.assert_array_equal(np.asarray(picture), everything[index]["image"])
    assert len(pictures(0)[0]) == 6
    with pytest.raises(StageError, match=r"proxy_tuning\.num_proxies is 7, but .*dataset holds 6 proxies$"):
        pictures(7)
    with pytest.raises(StageError, match=r"proxy_tuning\.num_proxies is 4, but .*dataset holds 3 proxies of proxy_tuning.proxy_prompts"):
        pictures(4, "a {token} {class_noun}")
    with pytest.raises(StageError, match=r"proxy_tuning.proxy_prompts has 'a photo of toy', for which .*dataset holds no proxy"):
        pictures(0, "a {token} {class_noun}", "a photo of {class_noun}")
    config.proxies = str(runs / "absent")
    with pytest.raises(ProxySetError, match="absent holds no proxy set"):
        pictures(0)


def test_words_are_replaced_whole_and_foreign_sets_keep_theirs(tmp_path):
    subject = learners.Subject((), "stuffed animal", "sks", False)
    prompts = ["a zwx dog by a doghouse", "a red zwx dog, zwxy"]
    known = proxy_set.read(write_proxies(tmp_path / "known", prompts, words={"token": "zwx", "class_noun": "dog", "live": True}))
    assert training_set.prompts(known, subject) == ["a sks stuffed animal by a doghouse", "a red sks stuffed animal, zwxy"]
    foreign = proxy_set.read(write_proxies(tmp_path / "foreign", prompts))
    assert training_set.prompts(foreign, subject) == prompts


def test_the_inputs_name_the_set_by_what_it_holds(runs, tmp_path):
    workdir = runs / "inputs"
    config = tiny(workdir)
    with pytest.raises(StageError, match="the stage proxy_generation is not done"):
        training_set.key(config, workdir, "proxy_tuning")

    def key_of(folder, stage="proxy_tuning"):
        config[stage].source, config.proxies = "proxies", str(folder)
        return training_set.key(config, workdir, stage)

    same = [key_of(write_proxies(tmp_path / name, ["a", "b"])) for name in ("one", "copy")]
    others = [key_of(write_proxies(tmp_path / "prompt", ["a", "c"])), key_of(write_proxies(tmp_path / "pixels", ["a", "b"], seed=1))]
    assert same[0] == same[1] == key_of(tmp_path / "one", "subject_tuning") and same[0]["subject"]["token"] == "sks"
    assert len({json.dumps(key) for key in [same[0], *others]}) == 3
    config.proxy_tuning.source = "photos"
    assert "photos" in training_set.key(config, workdir, "proxy_tuning")["subject"]


def test_a_student_tuned_on_another_runs_proxies_with_its_own_class_pictures(runs):
    """No stage 1 or 2 of its own; the prior's pictures are what the untuned student draws, drawn once."""
    workdir = runs / "prior"
    config = tiny(workdir, num_proxies=4)
    config.proxies = str(runs / "other" / "dataset")
    config.proxy_tuning.prior.weight = 0.5
    main.run(config, workdir, ["proxy_tuning"])
    assert sorted(path.name for path in workdir.iterdir()) == ["cache", "proxy_tuning"]
    drawn = sorted((workdir / "proxy_tuning" / "class_images").iterdir())
    learner = learners.student(config, workdir)
    text = {name: np.repeat(rows, 8, 0) for name, rows in learner.encode_prompts(["a photo of toy"]).items()}
    options = {"guidance_scale": 7.5, "top_k": 50, "top_p": 1.0, "temperature": 1.0}
    expected = learner.draw(learner.load_model(lambda name: np.float32), text, {}, 0, np.arange(8), options)
    np.testing.assert_array_equal([files.load_picture(path) for path in drawn], expected[:3])
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in drawn}) == 3
    inputs = json.loads((workdir / "proxy_tuning" / "DONE.json").read_text())["inputs"]
    assert inputs["subject"]["proxies"] and inputs["proxy_tuning"]["prior"]["weight"] == 0.5

    before = {path: path.stat().st_mtime_ns for path in drawn}
    (workdir / "proxy_tuning" / "weights" / "adapter_model.safetensors").unlink()
    main.run(config, workdir, ["proxy_tuning"])
    assert before == {path: path.stat().st_mtime_ns for path in drawn}

    config.proxy_tuning.prior.weight = 0.0
    plain = runs / "no_prior"
    main.run(config, plain, ["proxy_tuning"])
    assert not (plain / "proxy_tuning" / "class_images").exists()
    assert metrics(plain / "proxy_tuning")[0]["loss"] != metrics(workdir / "proxy_tuning")[0]["loss"]


def test_runs_that_share_a_cache_draw_their_class_pictures_once(tmp_path, monkeypatch):
    drawn = []

    def draw_images(learner, load_model, prompts, folder, *, seed, **others):
        drawn.append(folder.parents[1].name)
        paths = [folder / f"{index:05d}.png" for index in range(len(prompts))]
        for index, path in enumerate(paths):
            files.save_picture(path, np.full((4, 4, 3), 10 * seed + index, np.uint8))
        return paths

    def class_pictures(run, seed=0, noun="toy"):
        config.seed = seed
        subject = learners.Subject((), noun, "sks", False)
        pictures, prompts = training_set.class_pictures(learner, config, tmp_path / run, "proxy_tuning", [subject])
        kept = [files.load_picture(path) for path in sorted((tmp_path / run / "proxy_tuning" / "class_images").iterdir())]
        np.testing.assert_array_equal(pictures, kept)
        return pictures[:, 0, 0, 0].tolist(), prompts

    monkeypatch.setattr(training_set, "draw_images", draw_images)
    (tmp_path / "base").write_bytes(b"weights")
    learner = SimpleNamespace(encoders=dict, settings=dict, base=tmp_path / "base", compute=Compute())
    config = smoke.get_config()
    config.proxy_tuning.prior.update(dict(weight=1.0, num_images=3))
    (tmp_path / "cache").mkdir()
    for run in ("one", "two", "three", "four", "five", "six"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "cache").symlink_to(tmp_path / "cache")
    assert class_pictures("one") == class_pictures("two") == ([0, 1, 2], ["a photo of toy"] * 3)
    assert class_pictures("three", seed=1)[0] == [10, 11, 12]
    class_pictures("four", noun="dog")
    (tmp_path / "base").write_bytes(b"others")
    class_pictures("five")
    learner.compute = Compute(np.float16)
    class_pictures("six")
    assert drawn == ["one", "three", "four", "five", "six"]


def test_a_supervisor_tuned_on_proxies(runs):
    workdir = runs / "control"
    config = tiny(workdir)
    config.subject_tuning.source, config.proxies = "proxies", str(runs / "other" / "dataset")
    main.run(config, workdir, ["subject_tuning"])
    on_proxies = load_file(workdir / "subject_tuning" / LORA)
    config.subject_tuning.source = "photos"
    main.run(config, workdir, ["subject_tuning"])
    on_photos = load_file(workdir / "subject_tuning" / LORA)
    assert on_proxies.keys() == on_photos.keys() and any(not np.array_equal(on_proxies[name], on_photos[name]) for name in on_photos)


def test_several_subjects_each_with_its_own_words(runs, tmp_path):
    """Own photos, another's proxies drawn under the same token, and further photos; one student learns them all, token by token."""
    workdir = runs / "several"
    cats = write_proxies(tmp_path / "cats, two", ["a sks cat", "a sks cat in the snow", "a sks cat"], words={"token": "sks", "class_noun": "cat"})
    config = tiny(workdir, source="photos", mode="two_stage")
    config.subjects = (f"token=zwx,class_noun=cat,proxies={cats}", f"token=qov,class_noun=toy,photos={smoke.DRAWINGS}")
    sources = training_set.sources(config, workdir, "proxy_tuning")
    found, prompts = training_set.pictures(sources, config.proxy_tuning.prompt, num_proxies=2)
    assert prompts == ["a photo of sks toy"] * 3 + ["a zwx cat", "a zwx cat in the snow"] + ["a photo of qov toy"] * 3
    np.testing.assert_array_equal(np.asarray(found[3]), proxy_set.read(cats)[0]["image"])
    assert len(training_set.sources(config, workdir, "subject_tuning")) == 1

    config.proxy_tuning.prior.weight = 1.0
    config.proxy_tuning.embedding.update(dict(steps=2, batch_size=8))
    main.run(config, workdir, ["proxy_tuning"])
    inputs = json.loads((workdir / "proxy_tuning" / "DONE.json").read_text())["inputs"]
    assert [subject["token"] for subject in inputs["subjects"]] == ["zwx", "qov"] and "proxies" in inputs["subjects"][0]
    assert len(list((workdir / "proxy_tuning" / "class_images").iterdir())) == 3
    learned = load_file(workdir / "proxy_tuning" / "weights" / "subject_embed.safetensors")
    assert learned.keys() == {"sks", "zwx", "qov"} and not np.array_equal(learned["sks"], learned["zwx"])
    learner = learners.student(config, workdir)
    model = tuning.tuned_model(learner, config.proxy_tuning, workdir / "proxy_tuning")
    np.testing.assert_array_equal(model.subject_embed[...], np.concatenate([learned[token] for token in ("sks", "zwx", "qov")]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"subject_tuning.source": "proxies"}, "subject_tuning.source is 'proxies', but this run's own come after it: give --config.proxies=FOLDER"),
        ({"subjects": ("token=zwx,class_noun=cat",)}, "subjects[0]: 'token=zwx,class_noun=cat' is not token=WORD,class_noun=NOUN,photos=FOLDER"),
        ({"subjects": ("token=zwx,class_noun=cat,photos=a,proxies=b",)}, "is not token=WORD,class_noun=NOUN,photos=FOLDER (or proxies=FOLDER)"),
        ({"subjects": ("token=zwx,token=qov,class_noun=cat,photos=a",)}, "is not token=WORD"),
        ({"subjects": ("token=sks,class_noun=cat,photos=a",)}, "each subject needs a token of its own, not sks, sks"),
        ({"subjects": ("token=<x>,class_noun=cat,photos=a",)}, "the token of subjects[0] is '<x>', but llamagen reads 'a <x> dog' as 'a dog'"),
        (
            {"subject_tuning.embedding.tokens": 2, "subject_tuning.mode": "full"},
            "subject_tuning.embedding.tokens is 2, for which subject_tuning.mode must be 'lora', not 'full'",
        ),
        ({"subject_tuning.embedding.tokens": 2, "supervisor.lora": "x"}, "nothing is trained: subject_tuning.embedding.tokens must be 0"),
        ({"subject_tuning.source": "proxy"}, "subject_tuning.source is 'proxy'; it can be proxies or photos"),
        ({"proxy_tuning.num_proxies": -1}, "proxy_tuning.num_proxies is -1; it must be at least 0"),
        ({"proxy_tuning.prior.weight": 1.0, "proxy_tuning.prior.num_images": 0}, "proxy_tuning.prior.num_images is 0; it must be at least 1"),
        ({"proxy_tuning.prior.prompt": "a photo"}, "proxy_tuning.prior.prompt: a template has {class_noun}"),
        ({"proxy_tuning.proxy_prompts": ("a photo",)}, "proxy_tuning.proxy_prompts[0]: a template has {class_noun}"),
        ({"proxy_tuning.prior.top_p": 0.0}, "proxy_tuning.prior.top_p is 0.0; it must be more than 0"),
        (
            {"proxy_tuning.prior.weight": 1.0, "proxy_tuning.training.batch_size": 5},
            "proxy_tuning.training.batch_size is 5, which is not a multiple of 2",
        ),
    ],
)
def test_wrong_values_are_found(tmp_path, change, text):
    config = tiny(tmp_path / "run")
    with config.unlocked():
        config.update_from_flattened_dict(change)
    with pytest.raises(StageError) as caught:
        main.run(config, tmp_path / "run", ["proxy_tuning"])
    assert text in str(caught.value)


def test_a_lora_from_elsewhere_takes_the_place_of_stage_1(runs, tmp_path):
    """Of kohya's naming; nothing is trained, its file in diffusers' naming is what stage 2 draws with. It is refused for another model."""
    workdir = runs / "adopted"
    config = tiny(workdir)
    learner = learners.supervisor(config, workdir)
    model = learner.load_model(lambda name: np.float32)
    lora.attach(model, config.subject_tuning.lora.pattern, 2, 3.0, jax.random.key(0))
    lora.save_kohya(learner.parts(model), tmp_path / "kohya.safetensors")
    config.supervisor.lora = str(tmp_path / "kohya.safetensors")
    main.run(config, workdir, ["subject_tuning"])
    lora.save(learner.parts(model), tmp_path / "ours.safetensors")
    assert (workdir / "subject_tuning" / LORA).read_bytes() == (tmp_path / "ours.safetensors").read_bytes()
    kohya = workdir / "subject_tuning" / "weights" / "kohya_lora_weights.safetensors"
    assert kohya.read_bytes() == (tmp_path / "kohya.safetensors").read_bytes()
    assert metrics(workdir / "subject_tuning") == []
    assert contract.upstream(workdir, "subject_tuning")
    # One that kohya's naming cannot hold, for q and k are one module there, is taken all the same.
    model = learner.load_model(lambda name: np.float32)
    for part, rank in (("q", 2), ("k", 3)):
        lora.attach(model, rf"blocks\.attention\.img_{part}", rank, 3.0, jax.random.key(0))
    lora.save(learner.parts(model), tmp_path / "ranks.safetensors")
    config.supervisor.lora = str(tmp_path / "ranks.safetensors")
    main.run(config, workdir, ["subject_tuning"])
    assert (workdir / "subject_tuning" / LORA).read_bytes() == (tmp_path / "ranks.safetensors").read_bytes() and not kohya.exists()
    config.subject_tuning.mode, config.subject_tuning.lora.base, config.subject_tuning.lora.text_encoders = "full", "int8", "blocks"
    with pytest.raises(StageError) as caught:
        main.run(config, workdir, ["subject_tuning"])
    assert "supervisor.lora is given, which takes the place of stage 1's LoRA, but subject_tuning.mode" in str(caught.value)
    assert "subject_tuning.lora.base is 'int8', which cannot be trained" in str(caught.value)
    assert "subject_tuning.lora.text_encoders is 'blocks', for which subject_tuning.mode must be 'lora', not 'full'" in str(caught.value)
    config.subject_tuning.lora.base, config.subject_tuning.lora.text_encoders = "compute", ""
    config.subject_tuning.mode = "lora"
    config.supervisor.lora = str(tmp_path / "text.safetensors")
    save_file({"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((2, 32), np.float32)}, config.supervisor.lora)
    with pytest.raises(WeightsError, match=r"under 'transformer': .*; for adapters of CLIP text encoders set subject_tuning\.lora\.text_encoders"):
        main.run(config, workdir, ["subject_tuning"])
