"""The modules that draw the micro-world: only some stages need them, and they need skia, which is an extra."""

import importlib
from types import ModuleType

from proxy_jax.stages.contract import StageError


def module(name: str) -> ModuleType:
    """proxy_jax.data.microworld.<name>. Raises StageError if skia is not installed or not usable."""
    try:
        importlib.import_module("skia")
    except ImportError as error:
        hint = '; pip install "skia-python>=138"' if isinstance(error, ModuleNotFoundError) else ", which is installed but cannot be loaded"
        raise StageError(f"the micro-world is drawn with skia ({error}){hint}") from error
    return importlib.import_module(f"proxy_jax.data.microworld.{name}")
