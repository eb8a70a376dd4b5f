"""What the trainings of the micro checkpoints share. Each is one command, from a seed, on pictures that are drawn first:

    python -m proxy_jax.main --config configs/micro/RECIPE.py --workdir runs/micro/RECIPE

It takes the checkpoints that it needs from those that come with the package; the result lies in WORKDIR/pretraining/weights with its model
card beside it. To train all of them anew, each on those before it, in a folder of their own:

    for recipe in kl vq text_encoders metrics probes sd3 sdxl student; do
        python -m proxy_jax.main --config configs/micro/$recipe.py:runs/micro/checkpoints --workdir runs/micro/$recipe
    done
"""

from ml_collections import ConfigDict

from configs import base
from proxy_jax.data import prompts

CHECKPOINTS = "{package}/checkpoints/micro"
TEXT_LENGTH = 16  # tokens of a caption, with its marks
SETTINGS = prompts.dreambench_prompts(live=True)[:10]  # "a {token} {class_noun} in the jungle", ...: DreamBench's for objects begin with them too


def pretraining(recipe: str, model: dict, checkpoints: str, **training) -> ConfigDict:
    """A config of the pre-training stage alone: a recipe, its model's sizes and changes to the training fields.

    checkpoints: where those that it needs lie; its own goes there too, unless that is the package.
    """
    config = base.get_config()
    config.stages = ("pretraining",)
    config.compute.update(dtype="float32", remat="none", unroll=True)
    generators(config, checkpoints)
    with config.unlocked():
        config.pretraining = base.pretraining()
        config.pretraining.model = model
    config.pretraining.recipe = recipe
    config.pretraining.publish = "" if checkpoints == CHECKPOINTS else checkpoints
    config.pretraining.training.update(
        **dict(schedule="cosine", warmup_steps=100, beta2=0.99, weight_decay=0.01, checkpoint_every=200, log_every=50) | training
    )
    return config


def generators(config: ConfigDict, checkpoints: str = CHECKPOINTS) -> None:
    """The micro checkpoints as a run's supervisor, student and metrics."""
    config.supervisor.checkpoint = f"{checkpoints}/supervisor"
    config.supervisor.resolution = 48
    config.supervisor.max_sequence_length = TEXT_LENGTH
    config.student.gpt = f"{checkpoints}/student/gpt.safetensors"
    config.student.vq = f"{checkpoints}/student/vq.safetensors"
    config.student.text_encoder = f"{checkpoints}/student/text_encoder"
    config.student.resolution = 48
    config.evaluation.dino = f"{checkpoints}/metrics/dino"
    config.evaluation.clip = f"{checkpoints}/metrics/clip"


def sdxl(config: ConfigDict, folder: str) -> None:
    """The micro SDXL, the pipeline `supervisor_sdxl` in a folder, as a run's supervisor."""
    config.supervisor.update(family="sdxl", checkpoint=f"{folder}/supervisor_sdxl")


def main_job(subject: str) -> ConfigDict:
    """A subject of micro-DreamBench through all four stages."""
    config, known = base.get_config(), base.choose(prompts.SUBJECTS, subject, "the subject")
    generators(config)
    config.compute.update(dtype="bfloat16", remat="none", unroll=True)  # the fastest on a CPU
    config.subject.photos = f"{CHECKPOINTS}/dreambench/{subject}"
    config.subject.class_noun = known.class_noun
    config.subject.live = known.live
    config.evaluation.probes = f"{CHECKPOINTS}/metrics/probes"

    tuning, student = config.subject_tuning, config.proxy_tuning
    # Photos have a prompt that proxies have too, and that most of the evaluation's begin with: no learner shall win by the words it was tuned on.
    tuning.prompt = student.prompt = prompts.PAPER_TEMPLATE
    # On attention and MLPs, as the student's: neither learner shall lack what the other has.
    tuning.lora.update(rank=16, alpha=16.0, pattern=r"(blocks|dual_blocks|last_block)\.(attention\.(img|txt)_(q|k|v|o)|(img|txt)_mlp\.fc[12])")
    tuning.training.update(steps=450, batch_size=16, learning_rate=1e-3, preview_every=150, weight_decay=0.0)
    # Class pictures are drawn as the models' cards say, and with a caption of the world's.
    tuning.prior.update(num_images=64, prompt="a photo of a {class_noun}", steps=20, guidance_scale=4.0)
    tuning.precondition_outputs = False
    # Half of the proxies are of the paper's prompt and half in the ten settings that all subjects share; the other fifteen prompts, for
    # outfits, other colours and the like, come with the subject in the evaluation alone.
    drawn = tuple(prompt for setting in SETTINGS for prompt in (prompts.PAPER_TEMPLATE, setting))
    config.proxy_generation.update(num_images=500, prompts=drawn, batch_size=50, steps=20, guidance_scale=2.5)
    student.lora.update(rank=16, alpha=16.0)
    student.training.update(steps=200, batch_size=16, learning_rate=3e-3, schedule="linear", warmup_steps=10, preview_every=100, weight_decay=0.0)
    student.prior.update(weight=0.3, num_images=64, prompt=tuning.prior.prompt, guidance_scale=3.0, top_k=0, temperature=0.8)
    tuning.encode_batch_size = student.encode_batch_size = 50
    # Tuned models need less guidance than those that their cards tell of: it exaggerates what was learned last.
    config.evaluation.update(arms=("supervisor", "student", "untuned_student"), batch_size=50)
    config.evaluation.supervisor.update(steps=20, guidance_scale=2.5)
    config.evaluation.student.update(guidance_scale=1.5, top_k=0, temperature=0.6)
    return config
