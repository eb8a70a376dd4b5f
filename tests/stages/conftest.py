"""What the tests of stages 1 and 3 share: random checkpoints and another run's proxies."""

import pytest

from configs import smoke
from proxy_jax.stages import random_weights
from tests.stages.tiny_runs import write_proxies


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with random_weights and other/dataset: six proxies of another run for a "zwx figure"."""
    folder = tmp_path_factory.mktemp("runs")
    random_weights.run(smoke.get_config(), folder)
    prompts = ["a zwx figure", "a zwx figure in the snow"] * 3
    write_proxies(folder / "other" / "dataset", prompts, words={"token": "zwx", "class_noun": "figure", "live": False})
    return folder
