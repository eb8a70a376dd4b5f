"""How FLUX.1's schedulers move noise levels, against diffusers' scheduler; the rest of the supervisor: tests/pipeline/test_diffusers_parity.py."""

import dataclasses
import json

import numpy as np
import pytest

from proxy_jax.models.layers import Compute
from proxy_jax.supervisors import noise
from proxy_jax.supervisors.flux import FluxSupervisor, Shift
from proxy_jax.weights import hub

DEV = Shift(shift=3.0, use_dynamic_shifting=True)  # as published, like the next
SCHNELL = Shift()
STATIC = Shift(shift=2.5)


@pytest.mark.parametrize("shift", [DEV, SCHNELL, STATIC], ids=["dev", "schnell", "static"])
def test_sampling_and_training_sigmas_equal_diffusers(shift):
    diffusers = pytest.importorskip("diffusers", reason="its scheduler is the oracle")
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**dataclasses.asdict(shift))
    np.testing.assert_allclose(noise.training_sigmas(shift.training), scheduler.sigmas, atol=1e-6)
    for steps, tokens in ((4, 1024), (28, 4096)):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=calculate_shift(tokens) if shift.use_dynamic_shifting else None)
        ours = noise.dynamic_sigmas(steps, tokens, base=shift.ends[0], top=shift.ends[1])
        np.testing.assert_allclose(ours, scheduler.sigmas, atol=1e-6)


@pytest.mark.parametrize("field", [dict(time_shift_type="linear"), dict(shift_terminal=0.1)], ids=["linear", "terminal"])
def test_refuses_another_scheduler(field, tmp_path):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(field))
    supervisor = FluxSupervisor(folder=tmp_path, resolution=32, max_sequence_length=8, weighting=noise.Weighting(), compute=Compute())
    with pytest.raises(hub.CheckpointError, match=r"scheduler_config\.json: .*shift_terminal"):
        supervisor.settings()
