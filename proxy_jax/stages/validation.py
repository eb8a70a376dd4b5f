"""What can be wrong in a config, found before any stage runs."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from proxy_jax import sharding, students, supervisors
from proxy_jax.data import prompts
from proxy_jax.models.layers import REMAT
from proxy_jax.stages import learners, tuning
from proxy_jax.stages.contract import TRAININGS, StageError
from proxy_jax.supervisors import diffusion, noise
from proxy_jax.training import optimizer

TUNINGS = ("subject_tuning", "proxy_tuning")
WITHOUT_SUBJECT = ("random_weights", "pretraining", "experiment")  # these have none, or many
NEEDS_FIELD = {  # which base.py does not have
    "random_weights": "configs/smoke.py",
    "pretraining": "configs/micro/vq.py",
    "experiment": "configs/micro/dreambench.py",
}

# field -> the values it can have; of a tuple, its members
CHOICES: Mapping[str, Sequence[str]] = {
    "compute.dtype": ("bfloat16", "float32"),
    "compute.remat": tuple(REMAT),
    "supervisor.family": tuple(supervisors.FAMILIES),
    "supervisor.sampler": diffusion.SAMPLERS,
    "student.family": tuple(students.FAMILIES),
    "evaluation.arms": ("supervisor", "student", "untuned_supervisor", "untuned_student"),
    **{f"{stage}.source": ("proxies", "photos") for stage in TUNINGS},
    "subject_tuning.mode": ("lora", "full"),
    "proxy_tuning.mode": ("lora", "full", "two_stage"),
    **{f"{stage}.lora.base": ("compute", "int8") for stage in TUNINGS},
    **{f"{stage}.augment": ("none", "paper") for stage in TUNINGS},
}


def _both(*names: str) -> tuple[str, ...]:
    return tuple(f"{stage}.{name}" for stage in TUNINGS for name in names)


def _trainings(*names: str) -> tuple[str, ...]:
    return tuple(f"{training}.{name}" for training in TRAININGS for name in names)


# what a number must be, a test of it, and the fields for which it must hold
RANGES: Sequence[tuple[str, Callable[[float], bool], Sequence[str]]] = (
    (
        "at least 1",
        lambda x: x >= 1,
        (
            *("supervisor.resolution", "supervisor.max_sequence_length", "student.resolution"),
            *_both("encode_batch_size"),
            *_both("lora.rank", "augment_variants"),
            *_trainings("steps", "batch_size", "accumulation", "checkpoint_every", "keep_checkpoints", "log_every"),
            *("proxy_generation.num_images", "proxy_generation.batch_size", "proxy_generation.steps"),
            *("evaluation.images_per_prompt", "evaluation.batch_size", "evaluation.supervisor.steps", "subject_tuning.prior.steps"),
        ),
    ),
    (
        "more than 0",
        lambda x: x > 0,
        (
            *(*_both("lora.alpha"), *_trainings("learning_rate", "epsilon")),
            *("subject_tuning.lora.text_encoder_learning_rate", "subject_tuning.embedding.learning_rate"),
        ),
    ),
    (
        "at least 0",
        lambda x: x >= 0,
        (
            *("supervisor.vae_tile", "proxy_tuning.num_proxies", "proxy_tuning.z_loss", *_both("prior.weight")),
            *("subject_tuning.snr_gamma", "subject_tuning.embedding.tokens"),
            *(f"{group}.{name}" for group in ("evaluation.student", "proxy_tuning.prior") for name in ("top_k", "temperature")),
            *_trainings("warmup_steps", "weight_decay", "clip_norm", "preview_every"),
        ),
    ),
    ("at least 0 and below 2**31", lambda x: 0 <= x < 2**31, ("seed",)),
    ("at least 0 and below 1", lambda x: 0 <= x < 1, ("proxy_tuning.dropout", *_trainings("beta1", "beta2", "ema_decay"))),
    ("from 0 to 1", lambda x: 0 <= x <= 1, ("proxy_tuning.class_dropout",)),
    (
        "more than 0 and at most 1",
        lambda x: 0 < x <= 1,
        ("evaluation.student.top_p", "proxy_tuning.prior.top_p", "subject_tuning.embedding.fraction"),
    ),
    ("from 1 to 25 (DreamBench's)", lambda x: 1 <= x <= 25, ("evaluation.num_prompts",)),
)


def validate(config: ConfigDict, stages: Sequence[str], known: Sequence[str]) -> None:
    """Checks the stages to run, `known` being all of them in their order, and the config. Raises StageError with everything that is wrong."""
    problems = [*_stages(config, stages, known), *_choices(config), *_ranges(config), *_texts(config)]
    if problems:
        raise StageError("; ".join(problems) if len(problems) == 1 else "these are wrong:\n  " + "\n  ".join(problems))
    if not set(stages) <= set(WITHOUT_SUBJECT):
        learners.check_subject(config)


def validate_batches(config: ConfigDict, stages: Sequence[str], mesh: Mesh) -> None:
    """Checks that each training batch of the stages to run can be cut over the mesh. Raises StageError."""
    for stage in (stage for stage in TUNINGS if stage in stages):
        for name, fields in tuning.trainings(config[stage]).items():
            field, devices = f"{stage}.{name or 'training'}.batch_size", sharding.batch_multiple(mesh)
            # With prior preservation each process fills half of its rows with class images.
            multiple = fields.accumulation * devices
            if tuning.has_prior(config[stage], name) and multiple % 2:
                multiple *= 2
            if fields.batch_size % multiple:
                raise StageError(
                    f"{field} is {fields.batch_size}, which is not a multiple of {multiple}: it is cut into "
                    f"{fields.accumulation} piece(s) (accumulation) over {devices} device(s) (the mesh's data and fsdp axes)"
                    + (", and half of it are class images (prior)" if multiple > fields.accumulation * devices else "")
                    + f"; give e.g. --config.{field}={-(-fields.batch_size // multiple) * multiple}"
                )


def _value(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


def _has(config: ConfigDict, name: str) -> bool:
    """Whether the config has the group that a field is of: `pretraining` is only in those that pre-train."""
    return name.split(".")[0] in config


def _stages(config: ConfigDict, stages: Sequence[str], known: Sequence[str]) -> list[str]:
    if not stages:
        return [f"no stage to run; known: {', '.join(known)}"]
    unknown = [name for name in stages if name not in known]
    if unknown:
        return [
            f"unknown stage {name!r}; did you mean {difflib.get_close_matches(name, known, 1, 0.0)[0]}? Known: {', '.join(known)}" for name in unknown
        ]
    if list(stages) != [name for name in known if name in stages]:
        return [f"the stages {', '.join(stages)} are not in their order, each once: {', '.join(known)}"]
    return [
        f"the stage {stage} needs a config with a field {stage}, e.g. {example}"
        for stage, example in NEEDS_FIELD.items()
        if stage in stages and stage not in config
    ]


def _choices(config: ConfigDict) -> list[str]:
    problems = []
    for name, choices in CHOICES.items():
        value = _value(config, name)
        members = value if isinstance(value, tuple | list) else (value,)
        problems += [f"{name} is {member!r}; it can be {' or '.join(choices)}" for member in members if member not in choices]
    if not config.evaluation.arms or len(set(config.evaluation.arms)) < len(config.evaluation.arms):
        problems.append(f"evaluation.arms names one arm or more, each once, not {tuple(config.evaluation.arms)}")
    problems += [
        f"{stage}.lora.base is 'int8', which cannot be trained: {stage}.mode must be 'lora', not {config[stage].mode!r}"
        for stage in TUNINGS
        if config[stage].lora.base == "int8" and config[stage].mode != "lora"
    ]
    problems += [
        f"{name} is {_value(config, name)!r}, for which subject_tuning.mode must be 'lora', not {config.subject_tuning.mode!r}"
        for name in ("subject_tuning.lora.text_encoders", "subject_tuning.embedding.tokens")
        if _value(config, name) and config.subject_tuning.mode != "lora"
    ]
    if config.supervisor.lora and config.subject_tuning.mode != "lora":
        problems.append("supervisor.lora is given, which takes the place of stage 1's LoRA, but subject_tuning.mode is not 'lora'")
    if config.supervisor.lora and config.subject_tuning.embedding.tokens:
        problems.append("supervisor.lora is given, so that nothing is trained: subject_tuning.embedding.tokens must be 0")
    if config.subject_tuning.source == "proxies" and not config.proxies:
        problems.append("subject_tuning.source is 'proxies', but this run's own come after it: give --config.proxies=FOLDER, another run's set")
    return problems


def _ranges(config: ConfigDict) -> list[str]:
    problems = [
        f"{name} is {_value(config, name)}; it must be {text}"
        for text, holds, names in RANGES
        for name in names
        if _has(config, name) and not holds(_value(config, name))
    ]
    for stage in TUNINGS:
        prior = config[stage].prior
        if prior.weight > 0 and prior.num_images < 1:
            problems.append(f"{stage}.prior.num_images is {prior.num_images}; it must be at least 1, or prior.weight 0")
    return problems


def _texts(config: ConfigDict) -> list[str]:
    lists = ("proxy_generation.prompts", "proxy_tuning.proxy_prompts")
    templates = {name: _value(config, name) for name in _both("prompt", "prior.prompt")}
    templates |= {f"{name}[{index}]": prompt for name in lists for index, prompt in enumerate(_value(config, name))}
    checks: dict[str, Callable[[], Any]] = {}
    checks |= {name: lambda text=text: prompts.fill(text, "sks", "dog") for name, text in templates.items()}
    patterns = (*_both("lora.pattern"), "subject_tuning.lora.text_encoders")
    checks |= {name: lambda name=name: re.compile(_value(config, name)) for name in patterns}
    checks |= {name: lambda name=name: optimizer.schedule(_value(config, name)) for name in TRAININGS if _has(config, name)}
    checks["subject_tuning.weighting"] = lambda: noise.Weighting(config.subject_tuning.weighting)
    problems = [] if config.proxy_generation.prompts else ["proxy_generation.prompts is empty"]
    tokens, family = {"subject.token": config.subject.token}, config.student.family
    for index, entry in enumerate(config.subjects):
        try:
            tokens[f"the token of subjects[{index}]"] = learners.parse_subject(entry)["token"]
        except StageError as error:
            problems.append(f"subjects[{index}]: {error}")
    if len(set(tokens.values())) < len(tokens):
        problems.append(f"each subject needs a token of its own, not {', '.join(tokens.values())}")
    for name, token in tokens.items():
        prompt = f"a {token} dog"
        read = students.READS[family](prompt) if family in students.READS else prompt
        if token.lower() not in read.split():
            problems.append(f"{name} is {token!r}, but {family} reads {prompt!r} as {read!r}; take a plain word like sks")
    for name, check in checks.items():
        try:
            check()
        except (ValueError, re.error) as error:
            problems.append(f"{name}: {error}")
    return problems
