"""The paper's comparison on micro-DreamBench: is the proxy-tuned student better than its supervisor, and than direct tuning?

    python -m proxy_jax.main --config configs/micro/dreambench.py:development --workdir runs/micro/development
    python -m proxy_jax.main --config configs/micro/dreambench.py:variations --workdir runs/micro/development
    python -m proxy_jax.main --config configs/micro/dreambench.py --workdir runs/micro/paper9                nine subjects
    python -m proxy_jax.main --config configs/micro/dreambench.py:proxies --workdir runs/micro/paper9        how many proxies, and which
    python -m proxy_jax.main --config configs/micro/dreambench.py:dreambench30 --workdir runs/micro/dreambench30    all thirty, on a GPU
    python -m proxy_jax.main --config configs/micro/dreambench.py:replication --workdir runs/micro/dreambench30    those seen nowhere before
    python -m proxy_jax.main --config configs/micro/dreambench.py:development_sdxl --workdir runs/micro/development_sdxl
    python -m proxy_jax.main --config configs/micro/dreambench.py:paper9_sdxl --workdir runs/micro/paper9_sdxl    another supervisor
    python -m proxy_jax.main --config configs/micro/dreambench.py:paper9_sdxl_rate --workdir runs/micro/paper9_sdxl_rate    tuned as the first

The first two are on two subjects that paper9 lacks. development chooses what the others use: it has each arm at each of RATES. variations has
the arms proxy and BEST_DIRECT, as chosen, with each of VARIATIONS. dreambench30 has the arms of paper9 and of proxies, but for `together` and
the account, made anew for all its subjects; replication is those among them that are in none of the others, from the same results. Those with
sdxl have SDXL as the supervisor. development_sdxl chooses its rate and that of diffusion_on_proxies; paper9_sdxl has the arms of PRIMARY and
CONTRASTS; paper9_sdxl_rate, thought of when paper9_sdxl was there, the same but for diffusion_on_proxies with SDXL tuned at SD3's rate.

Hardware: a CPU, a command on each of its cores; a GPU, several beside each other (docs/weak_to_strong.md says how). Commands of one workdir share
the work. Results are kept as small files in docs/weak_to_strong/results, or dreambench30/results; tables and figures are written into
docs/weak_to_strong/PROTOCOL too, and docs/weak_to_strong.md tells what came out.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import base
from configs.micro import common
from proxy_jax.data import prompts
from proxy_jax.data.microworld.vocabulary import RARE_WORDS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "weak_to_strong"
DEVELOPMENT = ("dog2", "can")
PROTOCOLS = {
    "development": DEVELOPMENT,
    "variations": DEVELOPMENT,
    "paper9": prompts.PAPER9,
    "proxies": prompts.PAPER9,
    "dreambench30": tuple(prompts.SUBJECTS),
    "replication": tuple(name for name in prompts.SUBJECTS if name not in (*prompts.PAPER9, *DEVELOPMENT)),
    "development_sdxl": DEVELOPMENT,
    "paper9_sdxl": prompts.PAPER9,
    "paper9_sdxl_rate": prompts.PAPER9,
}
OF_ALL = ("dreambench30", "replication")
# The rule, one for all arms: of each arm the rate of RATES with the highest mean identity × context over the development subjects, in the table
# that the protocol development writes. Steps × batch are given, the same for all students. BEST_DIRECT: the direct arm that is then highest.
# The supervisor's rate, as it draws the proxies, was set before, by hand on dog2.
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
SUPERVISOR_RATE = 1e-3
CHOSEN = dict(proxy=1e-3, diffusion_on_proxies=3e-4, direct_lora=3e-4, direct_full=1e-4, direct_augmented=1e-3, direct_two_stage=1e-4)
BEST_DIRECT = "direct_augmented"
PRIMARY = (("proxy", "supervisor"), ("proxy", BEST_DIRECT))
CONTRASTS = (
    *(("proxy", name) for name in CHOSEN if name.startswith("direct_") and name != BEST_DIRECT),
    ("proxy", "diffusion_on_proxies"),
    ("diffusion_on_proxies", "supervisor"),
)
# Of the second supervisor, by the same rule, its own rate first: the others learn from its proxies. The student's on these is that of CHOSEN.
CHOSEN_SDXL = dict(supervisor=3e-4, diffusion_on_proxies=3e-3)
FEWER = (300, 100, 30, 10)  # proxies, of the 1000
# Of the arms proxy and BEST_DIRECT, each alone: fields of stage 3, and how its student draws. Rates stay as chosen, but for `full`, where
# it is the one chosen for all weights on photos.
VARIATIONS = {
    "prior_0": (dict(prior=dict(weight=0.0)), {}),
    "prior_1": (dict(prior=dict(weight=1.0)), {}),
    "full": (dict(mode="full", training=dict(learning_rate=CHOSEN["direct_full"])), {}),
    "rank_64": (dict(lora=dict(rank=64, alpha=64.0)), {}),
    "steps_800": (dict(training=dict(steps=800)), {}),
    "guidance_1": ({}, dict(guidance_scale=1.0)),
    "guidance_3": ({}, dict(guidance_scale=3.0)),
    "temperature_1": ({}, dict(temperature=1.0)),
    "top_k_100": ({}, dict(top_k=100)),
}


def student(rate: float, *, source: str = "photos", **changes) -> dict:
    """An arm: what the student learns from, and further fields of stage 3."""
    return dict(proxy_tuning=dict(source=source, training=dict(learning_rate=rate)) | changes, evaluation=dict(arms=("student",)))


def arm(name: str, rate: float) -> dict:
    """The changes of one of the arms that have a rate of their own, at that rate."""
    if name in ("supervisor", "diffusion_on_proxies"):
        tuning = dict(source="photos" if name == "supervisor" else "proxies", training=dict(learning_rate=rate))
        return dict(subject_tuning=tuning, evaluation=dict(arms=("supervisor",)))
    changes = dict(
        proxy=dict(source="proxies"),
        direct_lora=dict(),
        direct_full=dict(mode="full"),
        direct_augmented=dict(augment="paper", augment_variants=20),
        direct_two_stage=dict(mode="two_stage"),  # its embedding is trained before, beyond the steps of the others
    )
    return student(rate, **changes[name])


def variation(of: str, name: str) -> dict:
    """The changes of an arm with one of VARIATIONS."""
    found, (tuning, drawing) = ConfigDict(arm(of, CHOSEN[of])), VARIATIONS[name]
    with found.unlocked():
        found.proxy_tuning.update(tuning)
        found.evaluation.student = drawing
    return found.to_dict()


def second_supervisor(config: ConfigDict, name: str, rate: float) -> None:
    """Makes SDXL the supervisor, tuned at a rate, else as SD3 is, LoRA on its attention and MLPs too; name: of the folder of its results."""
    common.sdxl(config, str(DOCUMENT))
    config.subject_tuning.lora.pattern = r".*\.((self|cross)_attention\.(q|k|v|o)|value|gate|out)"
    config.subject_tuning.training.learning_rate = rate
    config.experiment.supervisor = name


def get_config(protocol: str = "paper9") -> ConfigDict:
    subjects = base.choose(PROTOCOLS, protocol, "the protocol")
    config = common.main_job(subjects[0])
    config.stages = ("experiment",)
    config.proxy_generation.num_images = 1000
    config.subject_tuning.training.learning_rate = SUPERVISOR_RATE
    config.proxy_tuning.training.learning_rate = CHOSEN["proxy"]  # of the arm `together`
    config.proxy_tuning.embedding.update(steps=100, batch_size=config.proxy_tuning.training.batch_size)
    for stage in (config.subject_tuning, config.proxy_tuning):
        stage.training.preview_every = 0
    # Every arm has the same prior batches (common.main_job), but for those without.
    with config.unlocked():
        config.experiment = base.experiment()
        config.experiment.shared = dict(evaluation=dict(arms=("supervisor", "untuned_supervisor", "untuned_student")))
    config.experiment.update(subjects=subjects, photos=f"{common.CHECKPOINTS}/dreambench")
    # All thirty are made anew, on a GPU as the others were not, so none is shared with the nine.
    results = DOCUMENT / "dreambench30" / "results" if protocol in OF_ALL else DOCUMENT / "results"
    config.experiment.update(results=str(results), document=str(DOCUMENT / protocol))
    chosen = CHOSEN
    if protocol.endswith("_sdxl"):
        second_supervisor(config, "sdxl", CHOSEN_SDXL["supervisor"])
        chosen = CHOSEN_SDXL
    if protocol.startswith("development"):
        config.experiment.update(arms=tuple((f"{name}_{rate:g}", arm(name, rate)) for name in chosen for rate in RATES), main_arm="")
        return config
    if protocol == "paper9_sdxl":
        rates = CHOSEN | {"diffusion_on_proxies": CHOSEN_SDXL["diffusion_on_proxies"]}
        config.experiment.arms = tuple((name, arm(name, rate)) for name, rate in rates.items())
        config.experiment.primary = PRIMARY
        config.experiment.contrasts = CONTRASTS  # a repetition: a family of its own
        return config
    if protocol == "paper9_sdxl_rate":
        second_supervisor(config, "sdxl_rate", SUPERVISOR_RATE)
        config.experiment.arms = tuple((name, arm(name, rate)) for name, rate in CHOSEN.items() if name != "diffusion_on_proxies")
        config.experiment.primary = PRIMARY
        return config
    if protocol == "variations":
        varied = ("proxy", BEST_DIRECT)
        variations = tuple((f"{of}_{name}", variation(of, name)) for of in varied for name in VARIATIONS)
        config.experiment.update(arms=(*((name, arm(name, CHOSEN[name])) for name in varied), *variations), main_arm="")
        return config
    config.experiment.further_tests = {"paper9": 2, "proxies": 7}.get(protocol, 0)  # each other's contrasts: nine in all, of the same subjects
    if protocol in ("paper9", *OF_ALL):
        without = dict(prior=dict(weight=0.0))
        config.experiment.arms = (
            *((name, arm(name, rate)) for name, rate in CHOSEN.items()),
            ("proxy_without_prior", student(CHOSEN["proxy"], source="proxies", **without)),
            ("direct_without_prior", student(CHOSEN["direct_lora"], **without)),
            ("oracle", arm("proxy", CHOSEN["proxy"])),
        )
        config.experiment.primary = PRIMARY
        config.experiment.contrasts = (*CONTRASTS, ("proxy_without_prior", "direct_without_prior"), ("oracle", "proxy"))
        config.experiment.account_arms = ("proxy", "diffusion_on_proxies", "oracle") if protocol == "paper9" else ()
    if protocol in ("proxies", *OF_ALL):
        one = student(CHOSEN["proxy"], source="proxies", proxy_prompts=(prompts.PAPER_TEMPLATE,))
        fewer = tuple((f"proxy_{count}", student(CHOSEN["proxy"], source="proxies", num_proxies=count)) for count in FEWER)
        config.experiment.contrasts += (("proxy", "proxy_one_prompt"),)
        config.experiment.arms += (("proxy_one_prompt", one), *fewer)
    if protocol == "proxies":
        config.experiment.arms = (*((name, arm(name, CHOSEN[name])) for name in ("proxy", BEST_DIRECT)), *config.experiment.arms)
        config.experiment.update(reference=BEST_DIRECT, together=3, tokens=RARE_WORDS[1:3])
        config.experiment.contrasts += (("proxy", "together"),)
    return config
