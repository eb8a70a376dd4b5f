"""The command line: its help, and what it says where a user has erred. In processes of its own only where nothing less will do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags
from safetensors.numpy import save_file

from configs import smoke
from proxy_jax import main
from proxy_jax.stages import files, learners, random_weights
from proxy_jax.stages.contract import StageError
from proxy_jax.training.loop import NonFiniteError

ROOT = Path(__file__).resolve().parent.parent
SMOKE = str(ROOT / "configs" / "smoke.py")
SUBJECT = (f"--config.subject.photos={ROOT}/configs/smoke_photos", "--config.subject.class_noun=dog")


def in_shell(*arguments, cwd=ROOT):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-m", "proxy_jax.main", *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """The command in this process: command(arguments) -> None, or SystemExit."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def reset():
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()

    def call(*arguments):
        reset()
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        main.main(main.parse_flags(sys.argv))

    yield call
    reset()


@pytest.fixture
def stage(monkeypatch):
    """Puts a made-up stage with this `run` in the place of all others."""

    def put(run):
        fake = SimpleNamespace(NAME="subject_tuning", OUTPUTS=(), inputs=lambda config, workdir: {"seed": config.seed}, run=run)
        monkeypatch.setattr(main, "STAGES", {"subject_tuning": fake})

    return put


def said(command, *arguments) -> str:
    """What the command says as it exits with 1."""
    with pytest.raises(SystemExit) as caught:
        command(*arguments)
    assert isinstance(caught.value.code, str) and caught.value.code.startswith("error: ")  # Python prints it and exits with 1
    return caught.value.code


def test_help_reads_well():
    out = in_shell("--help")
    assert out.returncode == 0, out.stderr
    lines = out.stdout.splitlines()
    assert len(lines) < 45 and max(map(len, lines)) <= 135
    for text in ("usage: python -m proxy_jax.main --config FILE", "examples:", "--config configs/smoke.py", "--config          The run's config"):
        assert text in out.stdout
    for name in (*main.STAGES, "--workdir", "--stages", "--helpfull"):
        assert name in out.stdout
    assert "pdb" not in out.stdout and "verbosity" not in out.stdout


def test_errors_reach_the_shell_from_any_folder(tmp_path):
    """A config of one's own, given from elsewhere, imports its neighbours; its wrong field ends the command with 1 and one paragraph."""
    folder = tmp_path / "mine" / "configs"
    folder.mkdir(parents=True)
    (folder / "neighbour.py").write_text("from ml_collections import ConfigDict\nCONFIG = ConfigDict({'group': {'field': 1}})\n")
    (folder / "mine.py").write_text("from configs import neighbour\n\n\ndef get_config():\n    return neighbour.CONFIG\n")
    out = in_shell("--config=../mine/configs/mine.py", "--workdir=run", "--config.group.feild=2", cwd=folder.parent)
    assert out.returncode == 1 and "Traceback" not in out.stderr
    assert "error: the config has no field group.feild; the nearest: group.field" in out.stderr


def test_a_run_that_cannot_start_ends_with_a_paragraph(tmp_path):
    out = in_shell("--config=configs/smoke.py", f"--workdir={tmp_path}", "--stages=subject_tuning", f"--config.subject.photos={tmp_path}/none")
    assert out.returncode == 1 and "Traceback" not in out.stderr
    assert f"error: the photo folder {tmp_path}/none does not exist" in out.stderr
    assert not (tmp_path / "subject_tuning").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give --config=FILE; there are "),
        (["--config="], "configs/base.py"),
        (["--workdir=run", "--config"], "give --config=FILE"),
        ([f"--config={SMOKE}:sdx", "--workdir=run"], "the supervisor is 'sdx'; there are sd3, sdxl, flux, sd35"),
        ([f"--config={SMOKE}", "--workdir=s3://bucket/run"], "is an address; give a folder of this machine, or gs://BUCKET/FOLDER"),
        (
            [f"--config={SMOKE}", "--workdir=gs://bucket/run", "--stages=experiment"],
            "the stage experiment takes a workdir on this machine, not gs://",
        ),
        ([f"--config={SMOKE}", "--workdir=gs://bucket/run", "--preflight=v5e:2x4"], "--preflight keeps its figures in a folder of this machine"),
        (["--config=configs/absent.py", "--workdir=run"], "there is no config file configs/absent.py (seen from "),
        (["--config=configs/absent.py", "--workdir=run"], "configs/smoke.py"),
        ([f"--config={SMOKE}"], "give --workdir=FOLDER"),
        ([f"--config={SMOKE}", f"--workdir={SMOKE}"], "is a file; give a folder"),
        ([f"--config={SMOKE}", "--workdir=run", "--config.subjct.photos=x"], "no field subjct.photos; the nearest: subject.photos"),
        (
            [f"--config={SMOKE}", "--workdir=run", "--config.training.clip_norm=1"],
            "the nearest: proxy_tuning.embedding.clip_norm, proxy_tuning.training.clip_norm, subject_tuning.training.clip_norm",
        ),
        ([f"--config={SMOKE}", "--workdir=run", "--config.zzz=1"], "no field zzz; its top fields: "),
        ([f"--config={SMOKE}", "--workdir=run", "--noconfig.subject.life"], "no field subject.life; the nearest: subject.live"),
        ([f"--config={SMOKE}", "--workdir=run", "--config.subject=dog"], "subject is a group of fields; set them one by one: subject.class_noun, "),
        ([f"--config={SMOKE}", "--workdir=run", "--config.seed=abc"], "flag --config.seed=abc: invalid literal for int() with base 10: 'abc'"),
        ([f"--config={SMOKE}", "--workdir=run", "--config.subject.live=maybe"], "--config.subject.live=maybe"),
        ([f"--config={SMOKE}", "--workdir=run", "--config.proxy_tuning.lora.alpha=x"], "could not convert string to float: 'x'"),
        ([f"--config={SMOKE}", "--workdir=run", "--stage=evaluation"], "Unknown command line flag 'stage'. Did you mean: stages"),
        ([f"--config={SMOKE}", "--workdir=run", "evaluation"], "unexpected argument 'evaluation'"),
        ([f"--config={SMOKE}", "--workdir=run", "--stages=evaluaton"], "unknown stage 'evaluaton'; did you mean evaluation?"),
        (["--config.seed=1", f"--config={SMOKE}", "--workdir=run"], "Found --config.seed=1 in argv before a value for --config"),
    ],
)
def test_a_wrong_command_line_is_explained(command, arguments, text, tmp_path):
    assert text in said(command, *arguments)
    assert list(tmp_path.iterdir()) == [], "nothing has been run"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (["proxy_tuning.source=proxys"], "proxy_tuning.source is 'proxys'; it can be proxies or photos"),
        (["subject_tuning.mode=lore"], "subject_tuning.mode is 'lore'; it can be lora or full"),
        (["proxy_tuning.augment=papers"], "proxy_tuning.augment is 'papers'; it can be none or paper"),
        (["evaluation.arms=teacher"], "evaluation.arms is 'teacher'; it can be supervisor or student or untuned_supervisor"),
        (["evaluation.arms=student", "evaluation.arms=student"], "evaluation.arms names one arm or more, each once"),
        (["supervisor.family=sdxxl"], "supervisor.family is 'sdxxl'; it can be sd3"),
        (["supervisor.sampler=heun"], "supervisor.sampler is 'heun'; it can be euler or ddim"),
        (["subject_tuning.snr_gamma=-1.0"], "subject_tuning.snr_gamma is -1.0; it must be at least 0"),
        (["student.family=gpt4"], "student.family is 'gpt4'; it can be llamagen"),
        (["compute.dtype=int8"], "compute.dtype is 'int8'; it can be bfloat16 or float32"),
        (["evaluation.images_per_prompt=0"], "evaluation.images_per_prompt is 0; it must be at least 1"),
        (["evaluation.num_prompts=26"], "evaluation.num_prompts is 26; it must be from 1 to 25"),
        (["proxy_tuning.training.learning_rate=-0.1"], "proxy_tuning.training.learning_rate is -0.1; it must be more than 0"),
        (["subject_tuning.prior.num_images=0"], "subject_tuning.prior.num_images is 0; it must be at least 1, or prior.weight 0"),
        (["evaluation.student.top_p=1.5"], "evaluation.student.top_p is 1.5; it must be more than 0 and at most 1"),
        (["seed=-1"], "seed is -1; it must be at least 0"),
        (["subject_tuning.prompt=a photo of {noun}"], "subject_tuning.prompt: a template has {class_noun} and may have {token}"),
        (["proxy_generation.prompts=('a sks dog',)"], "proxy_generation.prompts[0]: a template has {class_noun}"),
        (["proxy_tuning.lora.pattern=("], "proxy_tuning.lora.pattern: missing )"),
        (["proxy_tuning.training.schedule=cosin"], "proxy_tuning.training: unknown schedule 'cosin'; did you mean 'cosine'?"),
        (["subject_tuning.training.warmup_steps=900"], "subject_tuning.training: warmup_steps is 900"),
        (["subject_tuning.weighting=cos"], "subject_tuning.weighting: unknown weighting 'cos'"),
        (["stages=evaluation", "stages=proxy_tuning"], "the stages evaluation, proxy_tuning are not in their order, each once: "),
        (["subject_tuning.training.batch_size=6", "subject_tuning.training.accumulation=4"], "batch_size is 6, which is not a multiple of 4"),
        (["proxy_tuning.training.batch_size=9"], "proxy_tuning.training.batch_size is 9, which is not a multiple of 2: it is cut into 2 piece(s)"),
        (
            ["subject_tuning.training.batch_size=5", "subject_tuning.training.accumulation=1"],
            "half of it are class images (prior); give e.g. --config.subject_tuning.training.batch_size=6",
        ),
        (["mesh.data=3"], "does not cover"),
        (["subject.photos="], "the config names no subject: give --config.subject.photos=FOLDER"),
        (["subject.class_noun="], "or --config.subject.dreambench=FOLDER/SUBJECT"),
    ],
)
def test_wrong_values_are_found_before_any_stage_runs(command, fields, text, tmp_path):
    assert text in said(command, f"--config={SMOKE}", "--workdir=run", *SUBJECT, *(f"--config.{field}" for field in fields))
    assert list(tmp_path.iterdir()) == [], "nothing has been run"


def test_everything_wrong_is_said_at_once(command):
    text = said(command, f"--config={SMOKE}", "--workdir=run", *SUBJECT, "--config.proxy_tuning.mode=x", "--config.evaluation.batch_size=0")
    assert text.splitlines()[0] == "error: these are wrong:" and len(text.splitlines()) == 3


def test_the_configs_of_this_project_are_valid(command, stage):
    ran = []
    stage(lambda config, workdir: ran.append(config.seed) or {})
    for name in ("base", "smoke", "sd3_llamagen"):
        command(f"--config={ROOT}/configs/{name}.py", f"--workdir={name}", "--stages=subject_tuning", *SUBJECT, "--config.seed=7")
    assert ran == [7, 7, 7]


def test_random_weights_need_their_sizes(command):
    text = said(command, f"--config={ROOT}/configs/base.py", "--workdir=run", *SUBJECT, "--stages=random_weights")
    assert "the stage random_weights needs a config with a field random_weights" in text


def test_a_stage_alone_says_what_comes_first(command, tmp_path):
    photos = ("--config.subject.photos=photos", "--config.subject.class_noun=dog")
    (tmp_path / "photos").mkdir()
    text = said(command, f"--config={SMOKE}", "--workdir=run", *photos, "--stages=subject_tuning")
    assert "no photo in photos: it is empty" in text
    (tmp_path / "photos" / "dog.png").write_bytes(b"not a picture")
    text = said(command, f"--config={SMOKE}", "--workdir=run", *photos, "--stages=subject_tuning")
    assert "no photo in photos can be read:\n  dog.png: " in text
    files.save_picture(tmp_path / "photos" / "dog.png", np.zeros((8, 8, 3), np.uint8))
    text = said(command, f"--config={SMOKE}", "--workdir=run", *photos, "--stages=proxy_generation")
    assert "the stage subject_tuning is not done in" in text and "run it first (--stages=subject_tuning,...)" in text
    text = said(command, f"--config={SMOKE}", "--workdir=run", *photos, "--stages=subject_tuning")
    assert "no file or folder" in text and "random_weights/supervisor" in text
    text = said(
        command, f"--config={SMOKE}", "--workdir=run", *photos, "--stages=subject_tuning", "--config.supervisor.checkpoint=nobody/has-this-model"
    )
    assert "could not be had from https://huggingface.co/nobody/has-this-model" in text and "what to do: " in text


def test_a_checkpoint_that_does_not_fit_is_named_tensor_by_tensor(command, stage, tmp_path):
    (tmp_path / "gpt.json").write_text(smoke_json("gpt"))
    save_file({"tok_embeddings.weight": np.zeros((3, 64), np.float32), "surplus": np.zeros(1, np.float32)}, tmp_path / "gpt.safetensors")
    stage(lambda config, workdir: learners.student(config, workdir).load_model(lambda name: np.float32))
    (tmp_path / "vq.json").write_text(smoke_json("vq"))
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "vq.safetensors")
    files = {"gpt": "gpt.safetensors", "vq": "vq.safetensors", "text_encoder": "gpt.safetensors"}
    places = [f"--config.student.{name}={tmp_path / file}" for name, file in files.items()]
    text = said(command, f"--config={SMOKE}", "--workdir=run", *SUBJECT, "--stages=subject_tuning", *places)
    assert "gpt.safetensors does not match LlamaGen:" in text
    assert "shape of tok_embeddings.weight: (3, 64) in the file, (256, 64) in the model" in text and "unused: surplus (1,)" in text


def smoke_json(part: str) -> str:
    return json.dumps(smoke.weights()["student"][part].to_dict())


def test_a_stop_at_nan_is_explained_and_a_bug_is_not(command, stage):
    def diverge(config, workdir):
        raise NonFiniteError("step 3: loss nan, gradient not finite in blocks.q.kernel")

    stage(diverge)
    assert "error: step 3: loss nan" in said(command, f"--config={SMOKE}", "--workdir=run", *SUBJECT, "--stages=subject_tuning")
    stage(lambda config, workdir: {}["a bug"])
    with pytest.raises(KeyError, match="a bug"):
        command(f"--config={SMOKE}", "--workdir=run", *SUBJECT, "--stages=subject_tuning")


def test_the_compilation_cache_is_the_environments_or_the_runs(command, stage, monkeypatch, tmp_path):
    seen = {}
    stage(lambda config, workdir: {})
    monkeypatch.setattr(jax.config, "update", seen.__setitem__)
    command(f"--config={SMOKE}", "--workdir=one", *SUBJECT, "--stages=subject_tuning")
    assert "jax_compilation_cache_dir" not in seen
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    command(f"--config={SMOKE}", "--workdir=two", *SUBJECT, "--stages=subject_tuning")
    assert seen["jax_compilation_cache_dir"] == str(tmp_path / "two" / "cache" / "xla")


def test_stages_come_from_the_config_or_the_command_line(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(main.contract, "complete", lambda name, stage, config, workdir: ran.append(name))
    config = smoke.get_config()
    config.subject.photos = str(ROOT / "configs" / "smoke_photos")
    main.run(config, tmp_path, config.stages)
    assert ran == ["random_weights", "subject_tuning", "proxy_generation", "proxy_tuning", "evaluation"]
    with pytest.raises(StageError, match="no stage to run"):
        main.run(config, tmp_path, [])


def test_photos_that_cannot_be_read_stop_a_run_before_it_writes(command, tmp_path):
    text = said(command, f"--config={SMOKE}", "--workdir=run", "--config.subject.photos=nowhere", "--config.subject.class_noun=dog")
    assert "the photo folder nowhere does not exist" in text and not (tmp_path / "run").exists()


def test_a_token_that_the_students_text_cleaning_drops_is_refused(command):
    text = said(command, f"--config={SMOKE}", "--workdir=run", *SUBJECT, "--config.subject.token=<cat-toy>")
    assert "subject.token is '<cat-toy>', but llamagen reads 'a <cat-toy> dog' as 'a dog'" in text


def test_a_resolution_that_the_checkpoint_cannot_draw_is_refused(command, tmp_path):
    """Found by the stage's inputs, before what an earlier run left is put away."""
    workdir = tmp_path / "run"
    random_weights.run(smoke.get_config(), workdir)
    text = said(command, f"--config={SMOKE}", f"--workdir={workdir}", *SUBJECT, "--stages=subject_tuning", "--config.supervisor.resolution=36")
    assert "supervisor.resolution is 36" in text and "multiples of 8" in text and not (workdir / "subject_tuning").exists()
