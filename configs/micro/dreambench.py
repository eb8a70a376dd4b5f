"""The paper's comparison on micro-DreamBench: is the proxy-tuned student better than its supervisor, and than direct tuning?

    python -m proxy_jax.main --config configs/micro/dreambench.py --workdir runs/micro/dreambench            nine subjects (paper9)
    python -m proxy_jax.main --config configs/micro/dreambench.py:dreambench30 --workdir runs/micro/dreambench

Hardware: 2 CPU cores, about half an hour a subject. Finished runs are kept as small files in docs/weak_to_strong/results; tables and figures
are written into docs/weak_to_strong/PROTOCOL too, and docs/weak_to_strong.md tells what came out.
"""

from ml_collections import ConfigDict

from configs.micro import common
from proxy_jax.data import prompts
from proxy_jax.data.microworld.vocabulary import RARE_WORDS

PROTOCOLS = {"paper9": prompts.PAPER9, "dreambench30": tuple(prompts.SUBJECTS)}


def arm(*, source: str = "proxies", evaluated: str = "student", **changes) -> dict:
    """An arm's changes of the run: what stage 3 learns from, who is scored, and further fields of stage 3."""
    return dict(proxy_tuning=dict(source=source) | changes, evaluation=dict(arms=(evaluated,)))


def get_config(protocol: str = "paper9") -> ConfigDict:
    config = common.main_job(next(iter(PROTOCOLS[protocol])))
    config.stages = ("experiment",)
    config.proxy_generation.num_images = 1000
    # Every arm has the same prior batches, but for those without: of the student drawn as it is evaluated, as many as the supervisor's.
    config.proxy_tuning.prior.update(weight=1.0, num_images=64, guidance_scale=3.0, top_k=0)
    whole = dict(mode="full", training=dict(learning_rate=1e-4))
    arms = dict(
        proxy=arm(),
        direct_lora=arm(source="photos"),
        direct_full=arm(source="photos", **whole),
        direct_augmented=arm(source="photos", augment="paper", augment_variants=20),
        direct_two_stage=arm(source="photos", mode="two_stage", embedding=dict(steps=300), training=dict(steps=70, learning_rate=5e-5)),
        diffusion_on_proxies=dict(subject_tuning=dict(source="proxies"), evaluation=dict(arms=("supervisor",))),
        proxy_without_prior=arm(prior=dict(weight=0.0)),
        direct_without_prior=arm(source="photos", prior=dict(weight=0.0)),
        **{f"proxy_{count}": arm(num_proxies=count) for count in (10, 30, 100, 300)},
    )
    with config.unlocked():
        config.experiment.shared = dict(evaluation=dict(arms=("supervisor", "untuned_supervisor", "untuned_student")))
        config.experiment.arms = arms
    config.experiment.update(
        subjects=PROTOCOLS[protocol],
        photos=f"{common.CHECKPOINTS}/dreambench",
        results="docs/weak_to_strong/results",
        document=f"docs/weak_to_strong/{protocol}",
        together=3,
        tokens=RARE_WORDS[1:],
        baselines=tuple(name for name in arms if name.startswith("direct_")),
        account_arms=("proxy", "diffusion_on_proxies"),
    )
    return config
