"""diffusers' PyTorch models with random parameters: what ours are compared with."""

from collections.abc import Callable
from typing import Any

import pytest


def random_model(make: Callable[[Any], Any], randomise: Callable[[Any, str, Any], Any]) -> Any:
    """make(diffusers) in evaluation mode, each parameter set to randomise(torch, name, parameter), from a fixed seed; skips without diffusers."""
    torch = pytest.importorskip("torch", reason="diffusers' PyTorch model is the oracle")
    diffusers = pytest.importorskip("diffusers", reason="diffusers' PyTorch model is the oracle")
    torch.manual_seed(0)
    model = make(diffusers).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(randomise(torch, name, parameter))
    return model


def anew(torch: Any, name: str, parameter: Any) -> Any:
    """All random: diffusers starts modulations at zero, which would hide them."""
    return torch.randn_like(parameter) * 0.1 + (parameter.ndim == 1) * 0.2


def nearby(torch: Any, name: str, parameter: Any) -> Any:
    """As diffusers starts it, with noise: more on norms and biases, which start at 1 and 0."""
    return parameter + torch.randn_like(parameter) * (0.2 if "norm" in name or "bias" in name else 0.02)
