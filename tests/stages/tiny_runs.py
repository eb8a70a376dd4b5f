"""A run of one stage at the least size, and proxy sets of noise, for the tests of stages 1 and 3."""

import json

import numpy as np

from configs import smoke
from proxy_jax.data import proxy_set

SIZE = 16


def write_proxies(folder, prompts, *, words=None, seed=0):
    """A proxy set of noise, as a run for the subject `words` would have written it."""
    rng = np.random.default_rng(seed)
    records = (
        dict(image=rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), prompt=prompt, seed=0, index=index, supervisor="x", config_hash="y")
        for index, prompt in enumerate(prompts)
    )
    proxy_set.write(folder, records, metadata={} if words is None else {"subject": words})
    return folder


def tiny(workdir, **proxy_tuning):
    """The smoke config made smaller yet, on checkpoints that lie in workdir/../random_weights."""
    config = smoke.get_config()
    config.subject.photos, config.subject.class_noun, config.subject.live = str(smoke.DRAWINGS), "toy", False
    for place in (config.supervisor, config.student, config.evaluation):
        for name, value in place.items():
            if isinstance(value, str) and "{workdir}" in value:
                place[name] = value.replace("{workdir}", str(workdir.parent))
    config.supervisor.resolution = config.student.resolution = SIZE
    config.compute.unroll = True
    for stage in (config.subject_tuning, config.proxy_tuning):
        stage.training.update(dict(steps=2, batch_size=4, accumulation=1, preview_every=0, log_every=1))
    config.subject_tuning.prior.weight = 0.0
    config.proxy_tuning.prior.update(dict(num_images=3, top_k=50))
    config.proxy_tuning.update(proxy_tuning)
    return config


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
